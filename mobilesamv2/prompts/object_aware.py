"""Object-aware prompts: a detector says where the objects are."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from mobilesamv2.prompts.sampler import Rounds
from mobilesamv2.structures import Filters, Prompts

PromptKind = Literal["boxes", "points"]
RankBy = Literal["detector", "predicted_iou"]


class Detector(Protocol):
    """What the sampler asks of a detector."""

    def detect(
        self, image: np.ndarray, *, confidence: float, nms_iou: float, max_boxes: int, snap: int
    ) -> tuple[Tensor, Tensor]:
        """Boxes (N, 4) xyxy, pixels of the image, and their confidence (N,), best first.

        Args:
            image: RGB uint8 (H, W, 3).
            confidence: boxes of less are dropped.
            nms_iou: of two boxes that overlap by more, the more confident stays.
            max_boxes: at most so many, the most confident.
            snap: an edge within so many pixels of the detector's input border moves onto it.
        """
        ...


@dataclass(frozen=True)
class ObjectAware:
    """Boxes from a detector, or their centres as points; the defaults are those of MobileSAMv2's demo.

    Attributes:
        detector: finds objects of any class.
        prompt: ``boxes``, or ``points`` for their centres.
        multimask: three masks a prompt instead of one.
        max_prompts: at most so many, the detector's most confident.
        confidence: boxes of less are dropped.
        detector_nms_iou: NMS among the detector's boxes.
        snap: an edge within so many pixels of the border of the detector's input moves onto the border; 0 switches
            it off.
        rank_by: ``detector`` ranks masks by the confidence of their box, ``predicted_iou`` by the mask decoder's word.
        predicted_iou: a mask is kept above it; 0 switches the filter off.
        stability: a mask is kept from it on; 0 switches the filter off.
        nms_iou: box NMS among the masks by predicted IoU; 1 switches it off.

    Source: MobileSAMv2, section 4; thresholds from its released demo. The paper caps prompts at 320; the released
    code never reaches that, since its detector stops at 300 boxes.
    """

    detector: Detector
    prompt: PromptKind = "boxes"
    multimask: bool = False
    max_prompts: int = 320
    confidence: float = 0.4
    detector_nms_iou: float = 0.9
    snap: int = 20
    rank_by: RankBy = "detector"
    predicted_iou: float = 0.0
    stability: float = 0.0
    nms_iou: float = 1.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("prompt", self.prompt, get_args(PromptKind)),
            ("rank_by", self.rank_by, get_args(RankBy)),
        ):
            if value not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, and is '{value}'.")

    @property
    def filters(self) -> Filters:
        """What a mask must pass to be kept."""
        return Filters(self.predicted_iou, self.stability, self.nms_iou)

    @property
    def ranks_prompts(self) -> bool:
        """Yes: by the detector's confidence."""
        return True

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting, as plain values."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "detector"}
        return {"sampler": type(self).__name__, **own}

    def rounds(self, image: np.ndarray) -> Rounds:
        """One round: a prompt for each box; none where the detector finds nothing.

        Args:
            image: RGB uint8 (H, W, 3).
        """
        boxes_xyxy, confidence = self.detector.detect(
            image,
            confidence=self.confidence,
            nms_iou=self.detector_nms_iou,
            max_boxes=self.max_prompts,
            snap=self.snap,
        )
        if len(boxes_xyxy) == 0:
            return
        if self.prompt == "boxes":
            yield Prompts(boxes_xyxy=boxes_xyxy, scores=confidence)
        else:
            centres = (boxes_xyxy[:, None, :2] + boxes_xyxy[:, None, 2:]) / 2  # (N, 1, 2)
            yield Prompts(points=centres, labels=torch.ones(centres.shape[:2], dtype=torch.int64), scores=confidence)

    def rank(self, predicted_iou: Tensor, stability_score: Tensor, prompts: Prompts) -> Tensor:
        """The confidence of each mask's box, or its predicted IoU, (D,)."""
        if self.rank_by == "predicted_iou" or prompts.scores is None:
            return predicted_iou
        return prompts.scores
