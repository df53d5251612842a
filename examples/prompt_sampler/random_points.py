"""Random points."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobilesamv2.prompts.sampler import Rounds, recorded_settings
from mobilesamv2.structures import Filters, PointLabel, Prompts


@dataclass(frozen=True)
class RandomPoints:
    """Uniformly drawn foreground points, the same for images of the same size.

    Attributes:
        num_points: number of points.
        seed: of the draw.
        multimask_output: three masks per point instead of one.
        box_nms_thresh: IoU threshold of box NMS by predicted IoU; 1 switches it off.
    """

    num_points: int = 1024
    seed: int = 0
    multimask_output: bool = True
    box_nms_thresh: float = 0.9

    def __post_init__(self) -> None:
        if self.num_points < 1:
            raise ValueError(f"num_points must be at least 1, got {self.num_points}.")

    @property
    def filters(self) -> Filters:
        """Return the thresholds that a mask must pass to be kept."""
        return Filters(box_nms_thresh=self.box_nms_thresh)

    @property
    def ranks_prompts(self) -> bool:
        """Return False: all points rank equally."""
        return False

    @property
    def one_round(self) -> bool:
        """Return True: no point depends on a mask."""
        return True

    @property
    def settings(self) -> dict[str, Any]:
        """Return every setting as plain values."""
        return recorded_settings(self, **asdict(self), rank_by="predicted IoU")

    def rounds(self, image: np.ndarray, embedding: Tensor) -> Rounds:
        """Yield one round with all points.

        Args:
            image: RGB uint8 (H, W, 3).
            embedding: of the image; not read.
        """
        height, width = image.shape[:2]
        points = np.random.default_rng(self.seed).random((self.num_points, 1, 2)) * (width, height)  # (N, 1, 2)
        labels = torch.full((self.num_points, 1), PointLabel.FOREGROUND, dtype=torch.int64)
        yield Prompts(points=torch.from_numpy(points), labels=labels)

    def rank(self, predicted_iou: Tensor, stability_score: Tensor, prompts: Prompts) -> Tensor:
        """Return the predicted IoU, (D,)."""
        return predicted_iou
