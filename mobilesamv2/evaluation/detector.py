"""Recall of a detector's boxes: how many objects they find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mobilesamv2.evaluation.loop import EvaluateEachImage, ImageOutcome
from mobilesamv2.evaluation.shards import ResultShards
from mobilesamv2.masks import areas, tight_boxes
from mobilesamv2.metrics.box_recall import count_boxes
from mobilesamv2.metrics.stage_time import StageTimer
from mobilesamv2.models.object_detector import ObjectDetector
from mobilesamv2.prompt_heads import EncodedDetector
from mobilesamv2.ranges import Count, NonNegativeInt, Share
from mobilesamv2.structures import GroundTruth


class EvaluateDetector(EvaluateEachImage):
    """Compares a detector's boxes with the tight boxes of the objects' masks; objects without a pixel do not count.

    Args:
        detector: the network, in eval mode; of a prompt head with its model, the time of the image encoder is counted
            apart.
        ks: numbers of the most confident boxes per image that count; the largest bounds the boxes.
        confidence: boxes of less are dropped.
        nms_iou: of two boxes that overlap by more, the more confident one stays.
        snap: edges nearer than this to the border of the detector's input move onto it, pixels; 0 disables it.
        shards: where results are kept as they come, and those of an interrupted run are found; None keeps nothing.

    Raises:
        ValueError: if there is no K, or one below 1.
    """

    def __init__(
        self,
        detector: ObjectDetector | EncodedDetector,
        ks: Sequence[Count] = (10, 100),
        confidence: Share = 0.001,
        nms_iou: Share = 0.7,
        snap: NonNegativeInt = 0,
        shards: ResultShards | None = None,
    ) -> None:
        super().__init__(shards)
        if not ks or min(ks) < 1:
            raise ValueError(f"task.ks must be one or more numbers of boxes, each at least 1, got {list(ks)}.")
        self.detector = detector
        self.ks = tuple(ks)
        self.confidence = confidence
        self.nms_iou = nms_iou
        self.snap = snap
        encoder = ("image_encoder",) if isinstance(detector, EncodedDetector) else ()
        self._timer = StageTimer(self.device, (*encoder, "detector"))

    @property
    def timer(self) -> StageTimer:
        """Return the timer of the image that was evaluated last."""
        return self._timer

    def evaluate_image(self, image: np.ndarray, truth: GroundTruth) -> ImageOutcome:
        """Return ``matched``, ``reached`` and ``n_gt`` of the image's ``BoxCounts``."""
        self._timer.device = self.device
        self._timer.start_image()
        settings: dict[str, Any] = {
            "confidence": self.confidence,
            "nms_iou": self.nms_iou,
            "max_boxes": max(self.ks),
            "snap": self.snap,
        }
        if isinstance(self.detector, EncodedDetector):
            with self._timer.stage("image_encoder"):
                embedding = self.detector.encode(image)
            with self._timer.stage("detector"):
                boxes, confidence = self.detector.head.detect_in_embedding(embedding, truth.size, **settings)
        else:
            with self._timer.stage("detector"):
                boxes, confidence = self.detector.detect(image, **settings)
        self._timer.num_prompts = len(boxes)
        filled = [i for i, area in enumerate(areas(truth.rles).tolist()) if area]
        truths = tight_boxes([truth.rles[i] for i in filled]).float()
        counts = count_boxes(boxes, confidence, truths, torch.tensor(truth.areas, dtype=torch.float64)[filled], self.ks)
        return ImageOutcome({name: getattr(counts, name) for name in ("matched", "reached", "n_gt")}, [])
