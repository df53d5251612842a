"""The length of a run: where it ends, and how one goes on that has another length now."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override


class RunLength(Callback):
    """Ends a run after a number of optimizer steps, with a validation; a longer one goes on from there.

    Lightning's own ``max_steps`` does not validate amid an epoch, closes that epoch for good, and counts an epoch twice
    where a run resumes from its end.

    Args:
        max_steps: optimizer steps; -1 for no limit beside the epochs.
    """

    def __init__(self, max_steps: int = -1) -> None:
        self.max_steps = max_steps

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if self._is_over(trainer.global_step):
            trainer.should_stop = True  # Lightning validates before it stops

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        steps = checkpoint["global_step"]
        if self._is_over(steps):
            trainer.should_stop = True
            return
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        is_closed = epochs["current"]["processed"] == epochs["current"]["ready"]
        if is_closed and steps % data.batches.steps_per_epoch:  # a shorter run ended amid this epoch
            for counts in epochs.values():
                counts["processed"] -= 1

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A checkpoint has the rate of the schedule that it was saved with, up to its next step.
        for config in trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if isinstance(schedule, LambdaLR):
                factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
                rates = zip(schedule.optimizer.param_groups, schedule.base_lrs, factors, strict=True)
                for group, base, factor in rates:
                    group["lr"] = base * factor

    def _is_over(self, steps: int) -> bool:
        return 0 <= self.max_steps <= steps
