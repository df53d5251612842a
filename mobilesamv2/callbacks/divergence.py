"""A run whose loss is no number any more is stopped, before a checkpoint of it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from typing_extensions import override


class StopOnDivergence(Callback):
    """Stops at a loss that is NaN or infinite: when it is logged, and before every checkpoint.

    The step is noted on the device, so that no step waits for it.

    Args:
        folder: of the run, for the message.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._first_step: Tensor | None = None  # -1 while all losses are finite

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
            self._check()

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._check()

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check()

    def _check(self) -> None:
        step = -1 if self._first_step is None else int(self._first_step)
        if step < 0:
            return
        checkpoints = sorted((self.folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
        kept = f"the last sound checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint before"
        raise ValueError(
            f"The run diverged: the loss of step {step} is NaN or infinite; {kept}. Lower optimizer.lr, or raise "
            "task.warmup_images, and start over with resume=null."
        )
