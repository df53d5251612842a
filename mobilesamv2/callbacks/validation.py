"""What validation decides: the metric of a search, and the weights that were best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from mobilesamv2.callbacks.checkpoint import EMA
from mobilesamv2.files import check_archive, torch_save_atomic


def logged_value(setting: str, name: str, metrics: Mapping[str, Any]) -> float:
    """Return the value of a logged metric that a setting names.

    Raises:
        ValueError: if it was not logged.
    """
    if name not in metrics:
        known = ", ".join(sorted(metrics)) or "none, since there was no validation"
        raise ValueError(f"{setting} must be a logged metric, one of {known}, got {name}.")
    return float(metrics[name])


class LastMetrics(Callback):
    """Remembers the last value of each metric in every checkpoint, for a run that is resumed when it is over.

    The metric of a search is checked at the first validation, and not only when the run is over.

    Args:
        objective: the metric of a search; None without one.
    """

    def __init__(self, objective: str | None = None) -> None:
        self.objective = objective
        self.restored: dict[str, float] = {}

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.objective is not None and not trainer.sanity_checking:
            logged_value("objective", self.objective, trainer.callback_metrics)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["metrics"] = self.latest(trainer)

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.restored = {name: float(value) for name, value in checkpoint.get("metrics", {}).items()}

    def latest(self, trainer: pl.Trainer) -> dict[str, float]:
        """Return the last value of each metric, by name; those of before the run was resumed too."""
        return self.restored | {name: float(value) for name, value in trainer.callback_metrics.items()}


class Best(NamedTuple):
    """The best validation so far.

    Attributes:
        metric: its name.
        mode: ``min`` or ``max``.
        value: of the metric.
        epoch: in which it was, from 0.
        step: optimizer steps before it.
    """

    metric: str
    mode: str
    value: float
    epoch: int
    step: int


class KeepBest(Callback):
    """Keeps the weights of the best validation in a file, which is replaced whole when a validation is better.

    The file itself says what they are, so that a kill between two writes can't tear weights and record apart. It is not
    rewound: a resumed run that comes to the same validation again finds it no better, and leaves the file.

    Args:
        path: of the file.
        metric: the logged metric to compare.
        mode: ``min`` or ``max``.
        average: the average of the weights, if there is one, which is what was validated.

    Raises:
        ValueError: if ``mode`` is another.
    """

    def __init__(self, path: Path, metric: str, mode: str, average: EMA | None = None) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"best.mode must be min or max, got {mode}.")
        self.path = path
        self.metric = metric
        self.mode = mode
        self.average = average
        self.best: Best | None = None

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.read_best()

    def read_best(self) -> Best | None:
        """Read from the file which validation is the best so far, and return it; None without one of this metric.

        Raises:
            ValueError: if the file can't be read.
        """
        best = Best(**self._read()["best"]) if self.path.is_file() else None
        self.best = best if best and (best.metric, best.mode) == (self.metric, self.mode) else None
        return self.best

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        value = logged_value("best.metric", self.metric, trainer.callback_metrics)
        if not trainer.is_global_zero or not self._is_better(value):
            return
        self.best = Best(self.metric, self.mode, value, trainer.current_epoch, trainer.global_step)
        weights = pl_module.state_dict() if self.average is None else self.average.averaged_weights()
        torch_save_atomic({"state_dict": weights, "best": self.best._asdict()}, self.path)

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        return self.best is None or (value < self.best.value if self.mode == "min" else value > self.best.value)

    def load_into(self, task: pl.LightningModule) -> None:
        """Load the best weights into a task.

        Raises:
            ValueError: if the file can't be read or does not fit.
        """
        try:
            task.load_state_dict(self._read()["state_dict"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{self.path} does not fit this run ({error}); delete that file.") from error

    def _read(self) -> dict[str, Any]:
        try:
            check_archive(self.path)
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a damaged file raises any of a dozen types, as in checkpoints.py
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{self.path} can't be read ({reason}); delete that file.") from error
