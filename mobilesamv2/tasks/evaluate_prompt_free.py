"""Mask AR@K of a network that needs no prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mobilesamv2.masks import boxes_from_rles
from mobilesamv2.metrics.average_recall import DEFAULT_KS
from mobilesamv2.metrics.result_shards import ResultShards
from mobilesamv2.metrics.stage_time import PROMPT_FREE_STAGES, StageTimer
from mobilesamv2.models.object_detector import ObjectDetector
from mobilesamv2.models.prompt_free import FoundMasks, PromptFree
from mobilesamv2.structures import GroundTruth
from mobilesamv2.tasks.evaluate import ImageOutcome
from mobilesamv2.tasks.evaluate_recall import EvaluateRecall


class EvaluatePromptFree(EvaluateRecall):
    """Counts the objects among the masks of a YOLO with a segmentation head.

    Args:
        detector: the network, in eval mode.
        ks: how many of the best masks of an image count.
        confidence: masks of less are dropped.
        nms_iou: of two boxes that overlap by more, the more confident stays.
        max_masks: at most so many an image, the most confident.
        shards: where results are kept as they come, and those of an interrupted run are found; None keeps nothing.

    Raises:
        ValueError: the detector has no prototypes, or a setting is out of its range.
    """

    def __init__(
        self,
        detector: ObjectDetector,
        ks: Sequence[int] = DEFAULT_KS,
        confidence: float = 0.001,
        nms_iou: float = 0.9,
        max_masks: int = 1000,
        shards: ResultShards | None = None,
    ) -> None:
        super().__init__(ks, shards)
        self.segmenter = PromptFree(detector, confidence, nms_iou, max_masks)
        self._timer = StageTimer(self.device, PROMPT_FREE_STAGES)

    @property
    def timer(self) -> StageTimer:
        """Of the image that was evaluated last."""
        return self._timer

    def evaluate_image(self, image: np.ndarray, truth: GroundTruth) -> ImageOutcome:
        """The counts of an image, and its masks if they are kept."""
        self._timer.device = self.device
        self._timer.start_image()
        with self._timer.stage("network"):
            output = self.segmenter.predict(image)
        with self._timer.stage("postprocessing"):
            found = self.segmenter.masks(output)
        values = self.count(truth, found.rles, found.scores.tolist())
        return ImageOutcome(values, _as_coco(found, truth.image_id) if self.keeps_masks else [])


def _as_coco(found: FoundMasks, image_id: int) -> list[dict[str, Any]]:
    """COCO results, best score first."""
    boxes = boxes_from_rles(found.rles)
    boxes[:, 2:] += 1 - boxes[:, :2]  # xywh, in covered pixels
    return [
        {"image_id": image_id, "category_id": 1, "segmentation": rle, "bbox": box, "score": score}
        for rle, box, score in zip(found.rles, boxes.tolist(), found.scores.tolist(), strict=True)
    ]
