"""Optimizer and learning-rate schedule that the training tasks share."""

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
"""An optimizer that lacks only its groups of parameters, as Hydra's ``_partial_: true`` gives it."""

UNDECAYED = ("attention_biases", "rel_pos", "relative_position", "pos_embed")
"""Tables of positions, by a part of their names; biases and norms, which have one axis, are not decayed either."""


def decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """The parameters to train, those that weight decay is for first; a group without any is left out.

    Raises:
        ValueError: nothing is to be trained.

    Source: timm's ``param_groups_weight_decay``, and the names that its models except.
    """
    decayed, others = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            alone = parameter.ndim <= 1 or any(part in name for part in UNDECAYED)
            (others if alone else decayed).append(parameter)
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    if not decayed and not others:
        raise ValueError("No parameter is to be trained: all of them are frozen.")
    return [group for group in groups if group["params"]]


def cosine_schedule(
    trainer: pl.Trainer, module: nn.Module, factory: OptimizerFactory, warmup_images: int
) -> dict[str, Any]:
    """What ``configure_optimizers`` returns: linear warm-up, then a cosine to zero at the end of the run.

    Args:
        trainer: knows how many steps the run has; its data are ``TrainingData``.
        module: what is trained of it.
        factory: makes the optimizer.
        warmup_images: images, of all processes, that the learning rate rises over.

    Raises:
        ValueError: the run has no end.
    """
    if math.isinf(trainer.estimated_stepping_batches):
        raise ValueError("The learning rate falls towards the end of the run: set trainer.max_epochs or max_steps.")
    total = max(1, int(trainer.estimated_stepping_batches))
    data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
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
