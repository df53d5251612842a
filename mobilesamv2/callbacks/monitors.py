"""A callback that monitors a metric which is not logged is named, with the metrics that are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from mobilesamv2.names import did_you_mean


@contextmanager
def explain_monitors(trainer: pl.Trainer) -> Iterator[None]:
    """Name the logged metrics where a callback fails since what it monitors is none of them.

    It goes by the callback's own error, since a metric can be logged as late as at the end of an epoch.

    Raises:
        ValueError: if a callback monitors what is not logged.
    """
    try:
        yield
    except (LookupError, MisconfigurationException, RuntimeError) as error:
        known = sorted(trainer.callback_metrics)
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            name = getattr(callback, "monitor", None)
            if isinstance(name, str) and name not in known and name in str(error):
                raise ValueError(
                    f"{type(callback).__name__} of trainer.callbacks monitors {name}, which is not logged."
                    f"{did_you_mean(name, known, 'monitor: {}')} Logged are {', '.join(known) or 'no metrics'}."
                ) from error
        raise
