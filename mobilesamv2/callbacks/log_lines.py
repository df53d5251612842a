"""Progress in a log file: a line a minute and a line a validation, instead of a bar that moves."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from typing_extensions import override

EVERY_S = 60.0
"""Seconds between two lines."""


class LogLines(ProgressBar):
    """Prints to standard error how far a run is, its metrics, the time left, and where its checkpoints go.

    It takes the place of Lightning's bar. The time left is that of the work done since this process began.

    Args:
        every_s: seconds between two lines; a validation has a line of its own.
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        super().__init__()
        self.every_s = every_s
        self._is_on = True
        self._begin = self._last = 0.0
        self._first = 0

    @override
    def disable(self) -> None:
        self._is_on = False

    @override
    def enable(self) -> None:
        self._is_on = True

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer.global_step)

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(0)

    @override
    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(0)

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if self._is_due():
            self._say(f"{self._place(trainer)}{_figures(trainer.progress_bar_metrics, 'train/')}")

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        callback: Any = trainer.checkpoint_callback
        where = f"; checkpoints in {callback.dirpath}" if callback is not None and callback.dirpath else ""
        self._say(f"validated at {self._place(trainer)}{_figures(trainer.progress_bar_metrics, 'val/')}{where}")

    @override
    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._say_batches("evaluated", batch_idx + 1, sum(trainer.num_test_batches))

    @override
    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._say_batches("done", batch_idx + 1, sum(trainer.num_predict_batches))

    def _start(self, first: int) -> None:
        self._begin = self._last = time.monotonic()
        self._first = first

    def _is_due(self) -> bool:
        return self._is_on and time.monotonic() - self._last >= self.every_s

    def _say_batches(self, done: str, number: int, total: float) -> None:
        if self._is_due():
            self._say(f"{done}: {number} of {total} batches{self._left(number, total)}")

    def _place(self, trainer: pl.Trainer) -> str:
        steps = getattr(getattr(trainer, "datamodule", None), "total_steps", None)  # ``RunLength`` ends the run
        total = trainer.estimated_stepping_batches if steps is None else steps
        of = f" of {total}" if math.isfinite(total) else ""
        return f"step {trainer.global_step}{of}, epoch {trainer.current_epoch}{self._left(trainer.global_step, total)}"

    def _left(self, done: int, total: float) -> str:
        """Return the time that is left, at the pace of this process."""
        if done <= self._first or not math.isfinite(total):
            return ""
        seconds = (time.monotonic() - self._begin) / (done - self._first) * (total - done)
        return f", {timedelta(seconds=round(max(0.0, seconds)))} left"

    def _say(self, line: str) -> None:
        if self._is_on:
            self._last = time.monotonic()
            print(line, file=sys.stderr, flush=True)


def _figures(metrics: Mapping[str, Any], prefix: str) -> str:
    """Return the metrics of a stage, after a colon."""
    figures = ", ".join(f"{name} {float(value):.4g}" for name, value in metrics.items() if name.startswith(prefix))
    return f": {figures}" if figures else ""
