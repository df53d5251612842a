"""Loggers and throughput monitoring for training runs."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from typing_extensions import override

from mobilesamv2.files import write_text_atomic


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger, except that a run that resumes in its folder keeps the rows of metrics.csv."""

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            path = Path(self.log_dir) / "metrics.csv"
            previous = path.read_text() if path.is_file() else ""
            writer: Any = super().experiment  # deletes the file
            if previous:
                path.write_text(previous)
                writer.metrics_keys = next(csv.reader(previous.splitlines()))
        return self._experiment


def trim_metrics(path: Path, steps: int) -> None:
    """Remove from a log the rows that a run will log again, and a last line that a killed run left incomplete.

    Args:
        path: of metrics.csv; it need not exist.
        steps: optimizer steps of the checkpoint that the run resumes from.

    Raises:
        OSError: if the file can't be written.
    """
    if not path.is_file():
        return
    header, *lines = path.read_text().splitlines() or [""]
    columns = header.split(",")
    rows = [line for line in lines if line.count(",") == len(columns) - 1]
    if "step" in columns:
        at = columns.index("step")
        rows = [line for line in rows if (step := line.split(",")[at]).isdigit() and int(step) < steps]
    write_text_atomic(path, "".join(f"{line}\n" for line in (header, *rows)))


class ThroughputMonitor(Callback):
    """Logs the learning rate, images/s, the share of time spent waiting for data, and GPU memory.

    The values cover the images of all processes, over the steps since the last log. Waiting is the time from the end of
    a step until the next batch is on its device; the time around checkpoints and validation is left out. A GPU computes
    while its process waits, so there a share of nearly one step's slack is no loss.

    Lightning's LearningRateMonitor does not serve here: it logs one value for each parameter group, under other names.
    """

    def __init__(self) -> None:
        self._learning_rate = 0.0
        self._reset()

    def _reset(self) -> None:
        self._start = self._step_end = time.perf_counter()
        self._waited_s = 0.0
        self._batches = 0
        self._interrupted = False

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._reset()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._reset()

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._interrupted = True

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._interrupted:
            self._reset()
        self._waited_s += time.perf_counter() - self._step_end

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        # Read here: at the end of the step the schedule has already moved on.
        self._learning_rate = optimizer.param_groups[0]["lr"]

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        self._step_end = time.perf_counter()
        log_interval: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if log_interval == 0 or trainer.fit_loop._should_accumulate() or trainer.global_step % log_interval:
            return
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        elapsed_s = self._step_end - self._start
        images = self._batches * data.batches.batch_size * trainer.world_size
        values = {
            "train/learning_rate": self._learning_rate,
            "train/images_per_second": images / elapsed_s,
            "train/data_wait": self._waited_s / elapsed_s,
        }
        device = trainer.strategy.root_device
        if device.type == "cuda":
            values["train/gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        pl_module.log_dict(values, batch_size=data.batches.batch_size)
        self._reset()
