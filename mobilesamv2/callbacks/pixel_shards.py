"""Pixels that are kept on disk: written at the end of each epoch, and found by the workers of the next."""

from __future__ import annotations

from collections.abc import Sequence

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from mobilesamv2.data.pixels import PixelCache


class FlushPixels(Callback):
    """Writes the last, short shard of each cache of pixels, and finds what other processes wrote in an epoch.

    Args:
        caches: of the samples that a run reads.
    """

    def __init__(self, caches: Sequence[PixelCache]) -> None:
        self._caches = caches

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._flush()
        trainer.strategy.barrier()
        for pixels in self._caches:
            pixels.refresh()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._flush()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._flush()

    def _flush(self) -> None:
        for pixels in self._caches:
            pixels.flush()
