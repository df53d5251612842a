"""A run whose loss is no number any more is stopped, before a checkpoint of it is written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from mobilesamv2.callbacks.resumable import steps_of


class StopOnDivergence(Callback):
    """Stops at a loss that is NaN or infinite: when it is logged, after a validation, and before every checkpoint.

    The step is noted on the device, so that no step waits for it. Of a validation the losses count, ``val/loss`` and
    others of such a name; a recall without objects may be NaN. A checkpoint whose weights are not finite is not written
    either: the loss of the step after it would be the first to show that.

    It is to be the first callback, so that the weights of such a validation become neither a checkpoint nor the best.

    Args:
        folder: of the run, for the message.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._first_step: Tensor | None = None  # -1 while all losses are finite
        self._sound_steps = 0  # optimizer steps whose weights have had a finite loss in a validation, or were resumed

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._sound_steps = checkpoint["global_step"]

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        diverged = torch.where(loss.detach().isfinite().all(), -1, trainer.global_step)
        before = diverged if self._first_step is None else self._first_step
        self._first_step = torch.where(before >= 0, before, diverged)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # pyright: ignore[reportAttributeAccessIssue]
            self._check_steps()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._check_steps()
        steps = trainer.global_step
        losses = {name: float(value) for name, value in trainer.callback_metrics.items() if _is_validation_loss(name)}
        for name, loss in losses.items():
            if not math.isfinite(loss):
                self._stop(f"{name} after step {steps} is NaN or infinite", steps - 1)
        if losses:
            self._sound_steps = steps

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._check_steps()
        if not all(parameter.isfinite().all() for parameter in pl_module.parameters()):
            steps = trainer.global_step
            self._stop(f"the weights after step {steps} are NaN or infinite", steps - 1)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_steps()

    def _check_steps(self) -> None:
        step = -1 if self._first_step is None else int(self._first_step)
        if step >= 0:  # its loss is that of the weights from before it
            self._stop(f"the loss of step {step} is NaN or infinite", max(step - 2, self._sound_steps))

    def _stop(self, what: str, sound_steps: int) -> None:
        """Raise, with the last checkpoint of so many steps at most."""
        steps = {path: steps_of(path) for path in (self.folder / "checkpoints").glob("*.ckpt")}
        sound = [path for path, done in steps.items() if done is not None and done <= sound_steps]
        last = max(sound, key=lambda path: path.stat().st_mtime_ns, default=None)
        kept = "there is no checkpoint before" if last is None else f"the last sound checkpoint is {last}"
        raise ValueError(
            f"The run diverged: {what}; {kept}. Lower optimizer.lr, or raise task.warmup_images, and start over with "
            "resume=null."
        )


def _is_validation_loss(name: str) -> bool:
    return name.startswith("val") and name.endswith("loss")
