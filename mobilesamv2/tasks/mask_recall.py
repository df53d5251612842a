"""Mask AR@K of a detector's boxes, once it is trained."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from mobilesamv2.metrics.average_recall import AverageRecall, count_matches
from mobilesamv2.models.sam import Sam
from mobilesamv2.prompts.object_aware import ObjectAware
from mobilesamv2.segevery import SegEvery

logger = logging.getLogger(__name__)


class MaskRecallAtEnd(Callback):
    """Segments everything in the images of validation, when training is done, and logs mask AR@K.

    Args:
        sam: decodes the masks.
        sampler: asks for the boxes of the detector that is trained.
    """

    def __init__(self, sam: Sam, sampler: ObjectAware) -> None:
        self.segevery = SegEvery(sam, sampler)
        self.recall = AverageRecall()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Each process takes its share; the sums are of all of them."""
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if not len(data.validation):
            return
        self.segevery.segany.sam.to(pl_module.device)
        self.recall.to(pl_module.device)
        pl_module.eval()
        images = data.samples.samples.images
        for index in data.validation[trainer.global_rank :: trainer.world_size]:
            try:
                image, truth = images[index]
            except ValueError as error:
                logger.warning("Left out of mask AR@K: %s", error)
                continue
            masks = self.segevery(image)
            self.recall.update(count_matches(truth, masks.rles, masks.scores.tolist(), self.recall.ks))
        metrics: dict[str, float | None] = self.recall.compute()
        named: dict[str, float] = {}
        for name, value in metrics.items():  # AR@K, ARs@K and so on, and mAR
            group, _, k = name.removeprefix("AR").partition("@")
            if k and value is not None:
                named[f"val/mask_ar_{group}_{k}" if group else f"val/mask_ar_{k}"] = value
        for each in trainer.loggers:
            each.log_metrics(named, step=trainer.global_step)
            each.save()
        if trainer.is_global_zero:
            shown = ", ".join(f"{k} {named.get(f'val/mask_ar_{k}', 0):.4f}" for k in self.recall.ks)
            print(f"mask AR@K of {len(data.validation)} validation images: {shown}")
