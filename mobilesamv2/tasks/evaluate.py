"""Mask AR@K of SegEvery under ``Trainer.test``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytorch_lightning as pl
from torch import distributed, nn

from mobilesamv2.data.datamodule import EvaluationSample
from mobilesamv2.metrics.average_recall import DEFAULT_KS, AverageRecall, ImageCounts, count_matches
from mobilesamv2.segevery import SegEvery


class EvaluateProposals(pl.LightningModule):
    """Segments everything in each image and counts the objects that were found.

    After ``Trainer.test``, every process has of all images the counts in ``images``, the stage times in ``stage_ms``
    (but for the first image of each process, which warms up), and the number of decoded prompts in ``num_prompts``.

    Args:
        segevery: the model with its prompt sampler.
        ks: how many of the best masks of an image count.
    """

    def __init__(self, segevery: SegEvery, ks: Sequence[int] = DEFAULT_KS) -> None:
        super().__init__()
        self.segevery = segevery
        self.sam = segevery.segany.sam  # registered, so that Lightning moves it to the device
        detector = getattr(segevery.sampler, "detector", None)
        self.detector = detector if isinstance(detector, nn.Module) else None
        self.recall = AverageRecall(ks)
        self.on_test_epoch_start()

    def on_test_epoch_start(self) -> None:
        """Nothing is left of an earlier run."""
        self.recall.reset()
        self.images: list[ImageCounts] = []
        self.stage_ms: list[dict[str, float]] = []
        self.num_prompts: list[int] = []

    def test_step(self, batch: EvaluationSample, batch_idx: int) -> None:
        """One image."""
        image, truth = batch
        masks = self.segevery(image)
        counts = count_matches(truth, masks.rles, masks.scores.tolist(), self.recall.ks)
        self.recall.update(counts)
        self.images.append(counts)
        self.stage_ms.append(self.segevery.timer.ms)
        self.num_prompts.append(self.segevery.timer.num_prompts)

    def on_test_epoch_end(self) -> None:
        """Brings the images of all processes together and logs AR."""
        self.stage_ms = self.stage_ms[1:] or self.stage_ms
        if distributed.is_available() and distributed.is_initialized():
            shares: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(shares, (self.images, self.stage_ms, self.num_prompts))
            self.images, self.stage_ms, self.num_prompts = (list(chain(*parts)) for parts in zip(*shares, strict=True))
        metrics: dict[str, Any] = self.recall.compute()
        self.log_dict(
            {f"test/{name.replace('@', '_').lower()}": value for name, value in metrics.items() if value is not None}
        )
