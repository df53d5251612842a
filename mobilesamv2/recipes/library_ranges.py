"""Ranges of what Lightning's trainer and torch's optimizers take; their own errors are late tracebacks, if any."""

from __future__ import annotations

from typing import Annotated, Any

from mobilesamv2.ranges import Count, NonNegativeInt, Range, Share, Weight, annotated_types

MINUS_ONE = Annotated[int, Range(-1)]
"""-1 is no limit."""

DECAY = Annotated[float, Range(0, below=1)]


class Trainer:
    """Parameters of pytorch_lightning.Trainer, with ranges."""

    devices: list[NonNegativeInt] | str | MINUS_ONE
    num_nodes: Count
    max_epochs: MINUS_ONE  # null would be 1,000
    min_epochs: NonNegativeInt | None
    max_steps: MINUS_ONE
    min_steps: NonNegativeInt | None
    limit_train_batches: NonNegativeInt | Share | None
    limit_val_batches: NonNegativeInt | Share | None
    limit_test_batches: NonNegativeInt | Share | None
    limit_predict_batches: NonNegativeInt | Share | None
    overfit_batches: NonNegativeInt | Share
    val_check_interval: Count | Annotated[float, Range(above=0, most=1)] | str | dict[str, int] | None
    check_val_every_n_epoch: Count | None
    num_sanity_val_steps: MINUS_ONE | None
    log_every_n_steps: Count | None
    accumulate_grad_batches: Count
    gradient_clip_val: Weight | None
    reload_dataloaders_every_n_epochs: NonNegativeInt


class Optimizer:
    """Parameters of the optimizers of torch.optim, with ranges."""

    lr: Annotated[float, Range(0)]
    weight_decay: Annotated[float, Range(0)]
    eps: Annotated[float, Range(0)]
    betas: tuple[DECAY, DECAY]
    momentum: DECAY


RANGES = {"pytorch_lightning.trainer.trainer.Trainer": Trainer, "torch.optim.optimizer.Optimizer": Optimizer}


def library_ranges(target: Any) -> dict[str, Any]:
    """Return the types, with ranges, of parameters of a class of these libraries, or of one that is built on it."""
    bases = (f"{base.__module__}.{base.__qualname__}" for base in getattr(target, "__mro__", ()))
    return next((annotated_types(RANGES[name]) for name in bases if name in RANGES), {})
