"""Checkpoints that are written atomically, and where a run can be resumed exactly; and the average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor
from typing_extensions import override

from mobilesamv2.files import torch_save_atomic


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file in its folder, and renames that.

    Lightning's own class copies from the system's temporary folder, and a job that is killed meanwhile leaves a partial
    file. ``storage_options`` are not read, as in that class.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        torch_save_atomic(checkpoint, path)


def follows(trainer: pl.Trainer) -> Literal["batch", "step", "validation", "end"]:
    """Return what follows a training batch that is over.

    That is another batch of the same step; another step; validation; or the end of the epoch or the run. A checkpoint
    that is saved before an end is none to resume from: Lightning would skip what an epoch and a run end with.
    """
    loop = trainer.fit_loop.epoch_loop
    if loop._should_accumulate():
        return "batch"
    if trainer.should_stop:
        return "end"
    fetcher: Any = trainer.fit_loop._data_fetcher
    if sum(trainer.num_val_batches) and loop._should_check_val_fx(fetcher):
        return "validation"
    return "end" if loop._is_training_done else "step"


@contextmanager
def validating_first(trainer: pl.Trainer) -> Iterator[None]:
    """Have a checkpoint that is saved before a validation say so: the run that resumes from it begins with that.

    To be used in ``on_validation_start``. Lightning resumes with a validation only if a batch of it was begun.
    """
    progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    counts = (progress.total, progress.current)
    for count in counts:
        count.ready, count.started = count.ready + 1, count.started + 1
    try:
        yield
    finally:
        for count in counts:
            count.ready, count.started = count.ready - 1, count.started - 1


class StepAlignedCheckpoint(ModelCheckpoint):
    """Saves only where a run can be resumed exactly: between optimizer steps, and before a validation.

    The end of an epoch or a run follows at once, and has its own checkpoint. The step's row is in the log by then: a
    run that is killed before the checkpoint is there removes the row as it resumes, and one killed after it has both.
    """

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if follows(trainer) == "step":
            super().on_train_batch_end(trainer, *args, **kwargs)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and follows(trainer) == "validation":
            with validating_first(trainer):
                super().on_train_batch_end(trainer, pl_module, None, None, 0)

    @override
    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        if trainer.training:  # before a validation it is written
            trainer._logger_connector.update_train_step_metrics()  # which Lightning does after ``on_train_batch_end``
        super()._save_checkpoint(trainer, filepath)


class EMA(WeightAveraging):
    """Exponential moving average of the weights, with a decay that rises: min(decay, (1 + steps) / (10 + steps)).

    So the first steps, whose weights are far from the last ones', soon leave the average. A run that is resumed at its
    end has the average too, unlike with Lightning's own class.

    Args:
        decay: decay of the average once it has risen.

    Source: Polyak averaging with the warm-up of TensorFlow's ExponentialMovingAverage(num_updates).
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
            risen = min(decay, (1 + float(num_averaged)) / (10 + float(num_averaged)))
            return averaged * risen + current * (1 - risen)

        super().__init__(avg_fn=average)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning copies the average into the model after the last step, but not if no step is left to run.
        self._copy_average_to_current(pl_module)

    def averaged_weights(self) -> dict[str, Tensor]:
        """Return the state dictionary of the average."""
        average = self._average_model
        assert average is not None
        return average.module.state_dict()
