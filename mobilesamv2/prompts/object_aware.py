"""Object-aware prompts: boxes that a detector predicts, from the image or from the image embedding."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mobilesamv2.prompts.sampler import Rounds, recorded_settings
from mobilesamv2.ranges import Count, NonNegativeInt, Range, Share, check_ranges
from mobilesamv2.structures import Filters, PointLabel, Prompts

PromptKind = Literal["boxes", "points"]
RankBy = Literal["detector", "predicted_iou"]


class Detector(Protocol):
    """Interface of a detector that reads the image."""

    def detect(
        self, image: np.ndarray, *, confidence: float, nms_iou: float, max_boxes: int, snap: int
    ) -> tuple[Tensor, Tensor]:
        """Return boxes (N, 4) xyxy, pixels of the image, and their confidence (N,), sorted by it, highest first.

        Args:
            image: RGB uint8 (H, W, 3).
            confidence: boxes of lower confidence are dropped.
            nms_iou: of two boxes whose IoU is higher, the more confident is kept.
            max_boxes: at most this many boxes are returned, the most confident.
            snap: a box edge within this many pixels of the border of the detector's input is moved onto the border.
        """
        ...


@runtime_checkable
class EmbeddingDetector(Protocol):
    """Interface of a detector that reads the embedding that the image encoder has computed, a prompt head."""

    def detect_in_embedding(
        self,
        embedding: Tensor,
        size: tuple[int, int],
        *,
        confidence: float,
        nms_iou: float,
        max_boxes: int,
        snap: int,
    ) -> tuple[Tensor, Tensor]:
        """Return boxes and their confidence as ``Detector.detect`` does, on the CPU.

        Args:
            embedding: (1, C, S/16, S/16) of the image.
            size: (H, W) of the image, pixels.
            confidence: boxes of lower confidence are dropped.
            nms_iou: of two boxes whose IoU is higher, the more confident is kept.
            max_boxes: at most this many boxes are returned, the most confident.
            snap: a box edge within this many pixels of the image's border, in the model's input, is moved onto it.
        """
        ...


@dataclass(frozen=True)
class ObjectAware:
    """Boxes from a detector, or their centres as points; the defaults are those of MobileSAMv2's demo.

    Attributes:
        detector: class-agnostic object detector, of the image or of its embedding.
        prompt: ``boxes``, or ``points`` for their centres.
        multimask_output: three masks per prompt instead of one.
        max_prompts: at most this many prompts, from the detector's most confident boxes.
        confidence: boxes of lower confidence are dropped.
        detector_nms_iou: IoU threshold of NMS among the detector's boxes.
        snap: a box edge within this many pixels of the border of the detector's input is moved onto the border; 0
            switches it off.
        rank_by: ``detector`` ranks masks by the confidence of their box, ``predicted_iou`` by the mask decoder's
            estimate.
        pred_iou_thresh: a mask is kept above it; 0 switches the filter off.
        stability_score_thresh: a mask is kept at or above it; 0 switches the filter off.
        box_nms_thresh: IoU threshold of box NMS among the masks by predicted IoU; 1 switches it off.
        min_mask_region_area: holes and disconnected regions of fewer pixels of the original image are removed, then
            NMS runs again; 0 switches it off.

    Source: MobileSAMv2, section 4; thresholds from its released demo. The paper caps prompts at 320; the released
    code never reaches this cap, since its detector returns at most 300 boxes.
    """

    detector: Detector | EmbeddingDetector
    prompt: PromptKind = "boxes"
    multimask_output: bool = False
    max_prompts: Count = 320
    confidence: Share = 0.4
    detector_nms_iou: Share = 0.9
    snap: NonNegativeInt = 20
    rank_by: RankBy = "detector"
    pred_iou_thresh: Share = 0.0
    stability_score_thresh: Share = 0.0
    box_nms_thresh: Share = 1.0
    min_mask_region_area: Annotated[float, Range(0)] = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, value, choices in (
            ("prompt", self.prompt, get_args(PromptKind)),
            ("rank_by", self.rank_by, get_args(RankBy)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got '{value}'.")

    @property
    def filters(self) -> Filters:
        """Return the thresholds that a mask must pass to be kept."""
        return Filters(
            self.pred_iou_thresh,
            self.stability_score_thresh,
            self.box_nms_thresh,
            min_mask_region_area=self.min_mask_region_area,
        )

    @property
    def ranks_prompts(self) -> bool:
        """Return True: the detector's confidence ranks prompts."""
        return True

    @property
    def one_round(self) -> bool:
        """Return True: the detector runs once."""
        return True

    @property
    def settings(self) -> dict[str, Any]:
        """Return every setting but the detector, as plain values."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "detector"}
        return recorded_settings(self, **settings)

    def rounds(self, image: np.ndarray, embedding: Tensor) -> Rounds:
        """Yield one round with one prompt per box; no round if the detector returns no box.

        Args:
            image: RGB uint8 (H, W, 3).
            embedding: (1, C, S/16, S/16) of the image.
        """
        settings: dict[str, Any] = {
            "confidence": self.confidence,
            "nms_iou": self.detector_nms_iou,
            "max_boxes": self.max_prompts,
            "snap": self.snap,
        }
        if isinstance(self.detector, EmbeddingDetector):
            size = image.shape[0], image.shape[1]
            boxes_xyxy, confidence = self.detector.detect_in_embedding(embedding, size, **settings)
        else:
            boxes_xyxy, confidence = self.detector.detect(image, **settings)
        if len(boxes_xyxy) == 0:
            return
        if self.prompt == "boxes":
            yield Prompts(boxes_xyxy=boxes_xyxy, scores=confidence)
        else:
            centres = (boxes_xyxy[:, None, :2] + boxes_xyxy[:, None, 2:]) / 2  # (N, 1, 2)
            labels = torch.full(centres.shape[:2], PointLabel.FOREGROUND, dtype=torch.int64)
            yield Prompts(points=centres, labels=labels, scores=confidence)

    def rank(self, predicted_iou: Tensor, stability_score: Tensor, prompts: Prompts) -> Tensor:
        """Return the confidence of each mask's box, or its predicted IoU, (D,)."""
        if self.rank_by == "predicted_iou" or prompts.scores is None:
            return predicted_iou
        return prompts.scores
