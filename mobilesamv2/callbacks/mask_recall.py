"""Mask AR@K of a trained detector's boxes."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from mobilesamv2.metrics.average_recall import AverageRecall, count_matches
from mobilesamv2.models.sam import Sam
from mobilesamv2.prompts.object_aware import ObjectAware
from mobilesamv2.segevery import SegEvery

logger = logging.getLogger(__name__)


class MaskRecallAtEnd(Callback):
    """Segments everything in the validation images at the end of training, and logs mask AR@K.

    Args:
        sam: the model that decodes the masks.
        sampler: prompts with the boxes of the detector that is trained.
    """

    def __init__(self, sam: Sam, sampler: ObjectAware) -> None:
        self.segevery = SegEvery(sam, sampler)
        self.recall = AverageRecall()
        self._is_done = False

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measure(trainer, pl_module)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._is_done:  # a run that is resumed when no step is left does not train, and was killed amid this
            self._measure(trainer, pl_module.to(trainer.strategy.root_device))

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._is_done = True
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if not len(data.validation):
            return
        self.segevery.segany.sam.to(pl_module.device)
        self.recall.to(pl_module.device)
        pl_module.eval()
        images = data.samples.samples.images
        # Each process takes its share of the images; the metric sums over all processes.
        for index in data.validation[trainer.global_rank :: trainer.world_size]:
            try:
                image, truth = images[index]
            except ValueError as error:
                logger.warning("Skipped in mask AR@K: %s", error)
                continue
            masks = self.segevery(image)
            self.recall.update(count_matches(truth, masks.rles, masks.scores.tolist(), self.recall.ks))
        metrics: dict[str, float | None] = self.recall.compute()
        logged: dict[str, float] = {}
        for name, value in metrics.items():  # AR@K, ARs@K and so on, and mAR
            group, _, k = name.removeprefix("AR").partition("@")
            if k and value is not None:
                logged[f"val/mask_ar_{group}_{k}" if group else f"val/mask_ar_{k}"] = value
        for run_logger in trainer.loggers:
            run_logger.log_metrics(logged, step=trainer.global_step)
            run_logger.save()
        if trainer.is_global_zero:
            summary = ", ".join(f"{k} {logged.get(f'val/mask_ar_{k}', 0):.4f}" for k in self.recall.ks)
            print(f"mask AR@K of {len(data.validation)} validation images: {summary}")
