"""How fast a training run is."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from typing_extensions import override


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
