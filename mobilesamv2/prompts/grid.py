"""A regular grid of points over the image, as SAM's mask generator has it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobilesamv2.prompts.sampler import Rounds
from mobilesamv2.structures import Filters, Prompts


@dataclass(frozen=True)
class Grid:
    """A grid of foreground points with the defaults of SAM's automatic mask generator.

    Attributes:
        points_per_side: the grid has its square.
        multimask: three masks a point instead of one.
        predicted_iou: a mask is kept above it; 0 switches the filter off.
        stability: a mask is kept from it on; 0 switches the filter off.
        nms_iou: box NMS by predicted IoU; 1 switches it off.

    Source: SAM, appendix B and its released code.
    """

    points_per_side: int = 32
    multimask: bool = True
    predicted_iou: float = 0.88
    stability: float = 0.95
    nms_iou: float = 0.7

    def __post_init__(self) -> None:
        if self.points_per_side < 1:
            raise ValueError(f"points_per_side is 1 or more, and is {self.points_per_side}.")

    @property
    def filters(self) -> Filters:
        """What a mask must pass to be kept."""
        return Filters(self.predicted_iou, self.stability, self.nms_iou)

    @property
    def ranks_prompts(self) -> bool:
        """No: all points are alike."""
        return False

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting, as plain values."""
        return {"sampler": type(self).__name__, **asdict(self), "rank_by": "mean of predicted IoU and stability score"}

    def rounds(self, image: np.ndarray) -> Rounds:
        """One round: the points at the centres of the grid's cells, row by row.

        Args:
            image: RGB uint8 (H, W, 3).
        """
        height, width = image.shape[:2]
        centres = (torch.arange(self.points_per_side, dtype=torch.float64) + 0.5) / self.points_per_side
        y, x = torch.meshgrid(centres * height, centres * width, indexing="ij")
        points = torch.stack([x, y], dim=-1).reshape(-1, 1, 2)  # (N, 1, 2)
        yield Prompts(points=points, labels=torch.ones(points.shape[:2], dtype=torch.int64))

    def rank(self, predicted_iou: Tensor, stability_score: Tensor, prompts: Prompts) -> Tensor:
        """The mean of predicted IoU and stability score (SAM, appendix D.3), (D,)."""
        return (predicted_iou + stability_score) / 2


@dataclass(frozen=True)
class GridProposals(Grid):
    """SAM's protocol for object proposals: a denser grid, no filters, and NMS at .9.

    Source: SAM, appendix D.3.
    """

    points_per_side: int = 64
    predicted_iou: float = 0.0
    stability: float = 0.0
    nms_iou: float = 0.9
