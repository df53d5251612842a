"""Segment everything in each image, by a model with a prompt sampler or by FastSAM, and measure the masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from mobilesamv2.evaluation.masks import EvaluateMasks
from mobilesamv2.evaluation.shards import ResultShards
from mobilesamv2.masks import boxes_from_rles
from mobilesamv2.metrics.mask_metric import MaskMetric
from mobilesamv2.metrics.stage_time import PROMPT_FREE_STAGES, StageTimer
from mobilesamv2.models.fastsam import FastSam, ScoredMasks
from mobilesamv2.models.object_detector import ObjectDetector
from mobilesamv2.ranges import Count, Share
from mobilesamv2.segevery import SegEvery
from mobilesamv2.structures import Masks


class EvaluateSegEvery(EvaluateMasks):
    """Measures the masks of a model with a prompt sampler.

    Args:
        segevery: the model with its prompt sampler.
        metric: measures the masks of an image.
        shards: where results are kept as they come, and those of an interrupted run are found; None keeps nothing.

    Raises:
        ValueError: if the metric caps prompts of a sampler that does not rank them, or whose masks go through NMS,
            which would see other masks for each K.
    """

    def __init__(self, segevery: SegEvery, metric: MaskMetric, shards: ResultShards | None = None) -> None:
        super().__init__(metric, shards)
        self.segevery = segevery
        detector = getattr(segevery.sampler, "detector", None)
        # registered, so that Lightning moves them to the device
        self.sam = segevery.segany.sam
        self.detector = detector if isinstance(detector, nn.Module) else None
        sampler = segevery.sampler
        if metric.needs_prompt_ranks and not sampler.ranks_prompts:
            raise ValueError(
                f"{type(sampler).__name__} does not rank its prompts; K caps its masks: task.metric.k_caps=masks."
            )
        if metric.needs_prompt_ranks and sampler.filters.box_nms_thresh < 1:
            raise ValueError("k_caps=prompts counts every mask of a prompt: prompt_sampler.box_nms_thresh=1.")

    @property
    def timer(self) -> StageTimer:
        """Return the timer of the image that was evaluated last."""
        return self.segevery.timer

    def find(self, images: Sequence[np.ndarray]) -> Iterator[Masks]:
        """Yield the masks of each image; the encoder takes all images in one pass."""
        return self.segevery.generate_batch(images)

    def to_coco(self, masks: Masks, image_id: int) -> list[dict[str, Any]]:
        """Return masks as COCO results, sorted by score."""
        return masks.to_coco(image_id)


class EvaluateFastSam(EvaluateMasks):
    """Measures the masks of a YOLO with a segmentation head, which needs no prompts.

    Args:
        detector: the network, in eval mode.
        metric: measures the masks of an image.
        confidence: masks of less are dropped.
        nms_iou: of two boxes that overlap by more, the more confident stays.
        max_masks: at most this many masks per image, the most confident.
        shards: where results are kept as they come, and those of an interrupted run are found; None keeps nothing.

    Raises:
        ValueError: if the detector has no prototypes, a setting is out of its range, or the metric caps prompts.
    """

    def __init__(
        self,
        detector: ObjectDetector,
        metric: MaskMetric,
        confidence: Share = 0.001,
        nms_iou: Share = 0.9,
        max_masks: Count = 1000,
        shards: ResultShards | None = None,
    ) -> None:
        super().__init__(metric, shards)
        if metric.needs_prompt_ranks:
            raise ValueError("FastSAM has no prompts; K caps its masks: task.metric.k_caps=masks.")
        self.segmenter = FastSam(detector, confidence, nms_iou, max_masks)
        self._timer = StageTimer(self.device, PROMPT_FREE_STAGES)

    @property
    def timer(self) -> StageTimer:
        """Return the timer of the image that was evaluated last."""
        return self._timer

    def find(self, images: Sequence[np.ndarray]) -> Iterator[ScoredMasks]:
        """Yield the masks of each image, one image at a time."""
        for image in images:
            self._timer.device = self.device
            self._timer.start_image()
            with self._timer.stage("network"):
                output = self.segmenter.predict(image)
            with self._timer.stage("postprocessing"):
                found = self.segmenter.masks(output)
            yield found

    def to_coco(self, masks: ScoredMasks, image_id: int) -> list[dict[str, Any]]:
        """Return masks as COCO results, sorted by score."""
        boxes = boxes_from_rles(masks.rles)
        boxes[:, 2:] += 1 - boxes[:, :2]  # xywh, in covered pixels
        return [
            {"image_id": image_id, "category_id": 1, "segmentation": rle, "bbox": box, "score": score}
            for rle, box, score in zip(masks.rles, boxes.tolist(), masks.scores.tolist(), strict=True)
        ]
