"""Measure the masks that a model finds in each image, by any metric of masks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mobilesamv2.data.evaluation_samples import EvaluationSample
from mobilesamv2.evaluation.loop import EvaluateImages, ImageOutcome
from mobilesamv2.evaluation.shards import ResultShards
from mobilesamv2.metrics.mask_metric import MaskMetric, RankedMasks, measure_image


class EvaluateMasks(EvaluateImages):
    """Finds the masks of each image and measures them.

    Args:
        metric: measures the masks of an image; AR@K or another.
        shards: where results are kept as they come, and those of an interrupted run are found; None keeps nothing.
    """

    def __init__(self, metric: MaskMetric, shards: ResultShards | None) -> None:
        super().__init__(shards)
        self.metric = metric

    @abstractmethod
    def find(self, images: Sequence[np.ndarray]) -> Iterator[RankedMasks]:
        """Yield the masks of each image, RGB uint8 (H, W, 3); ``timer`` is then that of the last one."""

    @abstractmethod
    def to_coco(self, masks: Any, image_id: int) -> list[dict[str, Any]]:
        """Return masks as COCO results."""

    def evaluate_images(self, samples: Sequence[EvaluationSample]) -> Iterator[ImageOutcome]:
        """Find and measure the masks of images that the encoder may take together."""
        keeps_masks = self.shards is not None and self.shards.keep_masks
        found = self.find([image for image, _ in samples])
        for (_, truth), masks in zip(samples, found, strict=True):
            values = measure_image(self.metric, truth, masks)
            yield ImageOutcome(values, self.to_coco(masks, truth.image_id) if keeps_masks else [])

    def on_test_epoch_end(self) -> None:
        """Log the metrics over the images of all processes."""
        super().on_test_epoch_end()
        if not self.results:
            return
        names = self.results[0].values
        sums = {name: np.sum([result.values[name] for result in self.results], axis=0) for name in names}
        metrics = self.metric.summarize(sums)
        self.log_dict(
            {f"test/{name.replace('@', '_').lower()}": value for name, value in metrics.items() if value is not None}
        )
