"""Any measure of SegEvery's masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import nn

from mobilesamv2.data.datamodule import EvaluationSample
from mobilesamv2.metrics.mask_metric import MaskMetric
from mobilesamv2.metrics.result_shards import ResultShards
from mobilesamv2.metrics.stage_time import StageTimer
from mobilesamv2.segevery import SegEvery
from mobilesamv2.tasks.evaluate import EvaluateImages, ImageOutcome


class EvaluateMasks(EvaluateImages):
    """Segments everything in each image, and measures its masks.

    Args:
        segevery: the model with its prompt sampler.
        metric: measures the masks of an image.
        shards: where results are kept as they come, and those of an interrupted run are found; None keeps nothing.
    """

    def __init__(self, segevery: SegEvery, metric: MaskMetric, shards: ResultShards | None = None) -> None:
        super().__init__(shards)
        self.segevery = segevery
        self.metric = metric
        detector = getattr(segevery.sampler, "detector", None)
        # registered, so that Lightning moves them to the device
        self.sam = segevery.segany.sam
        self.detector = detector if isinstance(detector, nn.Module) else None

    @property
    def timer(self) -> StageTimer:
        """Of the image that was evaluated last."""
        return self.segevery.timer

    def evaluate_images(self, samples: Sequence[EvaluationSample]) -> Iterator[ImageOutcome]:
        """Segments everything in images that the encoder takes together, and measures."""
        found = self.segevery.each([image for image, _ in samples])
        keeps_masks = self.shards is not None and self.shards.keep_masks
        for (_, truth), masks in zip(samples, found, strict=True):
            values = self.metric.measure(truth, masks) | {"n_gt": np.array(len(truth.rles))}
            yield ImageOutcome(values, masks.to_coco(truth.image_id) if keeps_masks else [])
