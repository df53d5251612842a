"""Optimizer and learning-rate schedule that the training tasks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""An optimizer that lacks only its parameters, as Hydra's ``_partial_: true`` gives it."""


def cosine_schedule(
    trainer: pl.Trainer, parameters: Iterable[nn.Parameter], factory: OptimizerFactory, warmup_steps: int
) -> dict[str, Any]:
    """What ``configure_optimizers`` returns: linear warm-up, then a cosine to zero at the end of the run.

    Args:
        trainer: knows how many steps the run has.
        parameters: those to train.
        factory: makes the optimizer.
        warmup_steps: optimizer steps.
    """
    total = max(1, int(trainer.estimated_stepping_batches))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    optimizer = factory(p for p in parameters if p.requires_grad)
    scheduler = LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
