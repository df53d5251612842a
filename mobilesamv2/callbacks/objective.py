"""The metric that a search improves."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override


class CheckObjective(Callback):
    """Checks at the first validation that the metric of a search is logged, and not only when the run is over.

    Args:
        name: of the metric.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            objective_value(self.name, trainer)


def objective_value(name: str, trainer: pl.Trainer) -> float:
    """Return the last value of a logged metric.

    Raises:
        ValueError: if it was not logged.
    """
    if name not in trainer.callback_metrics:
        known = ", ".join(sorted(trainer.callback_metrics))
        raise ValueError(f"objective must be a logged metric, one of {known}, got {name}.")
    return float(trainer.callback_metrics[name])
