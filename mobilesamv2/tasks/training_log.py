"""What a run writes down of itself."""

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


class ContinuedCSVLogger(CSVLogger):
    """Lightning's, but a run that goes on in its folder keeps the rows that it has."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes the file."""
        if self._experiment is None:
            path = Path(self.log_dir) / "metrics.csv"
            earlier = path.read_text() if path.is_file() else ""
            writer: Any = super().experiment  # deletes the file
            if earlier:
                path.write_text(earlier)
                writer.metrics_keys = next(csv.reader(earlier.splitlines()))
        return self._experiment


class TrainingLog(Callback):
    """Logs the learning rate, images/s, the share of time spent waiting for data, and GPU memory.

    Of all processes' images, over the steps since the last time. Waiting is the time from the end of a step to the
    moment that the next batch is on its device; the time around checkpoints and validation is left out. A GPU computes
    while its process waits, so that there a share of nearly one step's slack is no loss.
    """

    def __init__(self) -> None:
        self._learning_rate = 0.0
        self._forget()

    def _forget(self) -> None:
        self._begin = self._free_since = time.perf_counter()
        self._waited = 0.0
        self._batches = 0
        self._interrupted = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Time between epochs counts for nothing."""
        self._forget()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nor does validation."""
        self._forget()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Nor does saving."""
        self._interrupted = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A batch has come."""
        if self._interrupted:
            self._forget()
        self._waited += time.perf_counter() - self._free_since

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """The schedule moves on before the step's end."""
        self._learning_rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch is done."""
        self._batches += 1
        self._free_since = time.perf_counter()
        every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if every == 0 or trainer.fit_loop._should_accumulate() or trainer.global_step % every:
            return
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        passed = self._free_since - self._begin
        images = self._batches * data.batches.batch_size * trainer.world_size
        values = {
            "train/learning_rate": self._learning_rate,
            "train/images_per_second": images / passed,
            "train/data_wait": self._waited / passed,
        }
        device = trainer.strategy.root_device
        if device.type == "cuda":
            values["train/gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        pl_module.log_dict(values, batch_size=data.batches.batch_size)
        self._forget()
