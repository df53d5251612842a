"""Parameter groups and learning-rate schedule that the training tasks share."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

logger = logging.getLogger(__name__)

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
"""An optimizer that lacks only its parameter groups, as Hydra builds it with ``_partial_: true``."""

NO_WEIGHT_DECAY = ("attention_biases", "rel_pos", "relative_position", "pos_embed")
"""Parts of the names of positional tables; biases and norms, which have one axis, are not decayed either."""


def decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Return the trainable parameters in two groups, with weight decay first and without second; none is empty.

    Not timm's own function: that one takes the decay's value, which only the optimizer's factory has, and puts the
    group without decay first, which the optimizer states of saved checkpoints do not.

    Raises:
        ValueError: if no parameter is trainable.

    Source: timm's ``param_groups_weight_decay``, and the parameters that timm's models exempt by name.
    """
    decayed, undecayed = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_exempt = parameter.ndim <= 1 or any(part in name for part in NO_WEIGHT_DECAY)
            (undecayed if is_exempt else decayed).append(parameter)
    if not decayed and not undecayed:
        raise ValueError("At least one parameter must be trainable, got a frozen model.")
    groups = [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def cosine_schedule(
    trainer: pl.Trainer, module: nn.Module, factory: OptimizerFactory, warmup_images: int
) -> dict[str, Any]:
    """Build what ``configure_optimizers`` returns: linear warm-up, then a cosine to zero at the end of the run.

    Args:
        trainer: its datamodule is ``TrainingData``, which has the run's number of steps.
        module: the module whose trainable parameters are optimized.
        factory: builds the optimizer.
        warmup_images: images, over all processes, of the warm-up.

    Raises:
        ValueError: if the run has no end.
    """
    data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    if data.total_steps is None:
        raise ValueError("The run must have an end for the cosine schedule: set trainer.max_epochs or max_steps.")
    total = max(1, data.total_steps)
    warmup_steps = math.ceil(warmup_images / data.images_per_step)
    if warmup_steps >= total:
        logger.warning("All %d steps lie in the warm-up of %d; lower task.warmup_images.", total, warmup_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    optimizer = factory(decay_groups(module))
    scheduler = LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
