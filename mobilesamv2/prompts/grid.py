"""A regular grid of points over the image, as SAM's mask generator has it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobilesamv2.prompts.crops import crops_of
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
        nms_iou: box NMS by predicted IoU, among the masks of a crop; 1 switches it off.
        crop_n_layers: the grid is asked of the whole image, and again of 2^i x 2^i crops for each layer i; each crop
            costs a pass of the image encoder.
        crop_n_points_downscale_factor: layer i has points_per_side divided by this to the i-th.
        crop_overlap_ratio: how much crops of the first layer share, as a share of the image's shorter side.
        crop_nms_iou: box NMS between crops, where those of smaller crops stay.

    Source: SAM, appendix B and its released code.
    """

    points_per_side: int = 32
    multimask: bool = True
    predicted_iou: float = 0.88
    stability: float = 0.95
    nms_iou: float = 0.7
    crop_n_layers: int = 0
    crop_n_points_downscale_factor: float = 1.0
    crop_overlap_ratio: float = 512 / 1500
    crop_nms_iou: float = 0.7

    def __post_init__(self) -> None:
        if self.points_per_side < 1:
            raise ValueError(f"points_per_side is 1 or more, and is {self.points_per_side}.")
        if self.crop_n_layers < 0:
            raise ValueError(f"crop_n_layers is 0 or more, and is {self.crop_n_layers}.")
        if not 0 <= self.crop_overlap_ratio < 1:
            raise ValueError(f"crop_overlap_ratio is from 0 to below 1, and is {self.crop_overlap_ratio}.")
        if self.crop_n_points_downscale_factor <= 0 or self._per_side(self.crop_n_layers) < 1:
            raise ValueError(
                f"crop_n_points_downscale_factor={self.crop_n_points_downscale_factor} leaves layer "
                f"{self.crop_n_layers} none of {self.points_per_side} points a side: lower it, or crop_n_layers."
            )

    @property
    def filters(self) -> Filters:
        """What a mask must pass to be kept."""
        return Filters(self.predicted_iou, self.stability, self.nms_iou, self.crop_nms_iou)

    @property
    def ranks_prompts(self) -> bool:
        """No: all points are alike."""
        return False

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting, as plain values."""
        return {"sampler": type(self).__name__, **asdict(self), "rank_by": "mean of predicted IoU and stability score"}

    def rounds(self, image: np.ndarray) -> Rounds:
        """A round for the image, and one for each crop: the points at the centres of the grid's cells, row by row.

        Args:
            image: RGB uint8 (H, W, 3).
        """
        for layer, box in crops_of((image.shape[0], image.shape[1]), self.crop_n_layers, self.crop_overlap_ratio):
            x0, y0, x1, y1 = box
            per_side = self._per_side(layer)
            centres = (torch.arange(per_side, dtype=torch.float64) + 0.5) / per_side
            y, x = torch.meshgrid(y0 + centres * (y1 - y0), x0 + centres * (x1 - x0), indexing="ij")
            yield from self._ask(torch.stack([x, y], dim=-1), box if self.crop_n_layers else None)

    def _per_side(self, layer: int) -> int:
        """Points a side of a crop in a layer."""
        return int(self.points_per_side / self.crop_n_points_downscale_factor**layer)

    def _ask(self, grid: Tensor, crop: tuple[int, int, int, int] | None) -> Rounds:
        """Rounds for a crop's grid (rows, columns, 2)."""
        yield self._prompts(grid.reshape(-1, 2), crop)

    def _prompts(self, points: Tensor, crop: tuple[int, int, int, int] | None) -> Prompts:
        """Foreground points (N, 2) as N prompts."""
        labels = torch.ones(len(points), 1, dtype=torch.int64)
        crops = None if crop is None else torch.tensor(crop).expand(len(points), 4)
        return Prompts(points=points[:, None], labels=labels, crops_xyxy=crops)

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
