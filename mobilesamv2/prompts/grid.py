"""A regular grid of points over the image and its crops, as in SAM's mask generator."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from mobilesamv2.prompts.sampler import Rounds, recorded_settings
from mobilesamv2.ranges import Count, NonNegativeInt, Positive, Range, Share, check_ranges
from mobilesamv2.structures import SAM_THRESHOLDS, Filters, PointLabel, Prompts, Thresholds


class Crop(NamedTuple):
    """A part of an image that is encoded on its own, so that small objects appear larger.

    Attributes:
        layer: 0 for the full image; each layer has twice as many crops per side as the previous one.
        box: x0, y0, x1, y1, pixels, exclusive at the right and the bottom.
    """

    layer: int
    box: tuple[int, int, int, int]


def generate_crops(size: tuple[int, int], num_layers: int, overlap_ratio: float) -> list[Crop]:
    """Return the full image, then the crops of each layer, column by column.

    Args:
        size: (H, W), pixels.
        num_layers: layers besides the full image; layer i has 2^i x 2^i crops.
        overlap_ratio: overlap of neighbours in the first layer, as a fraction of the image's shorter side; it halves
            with each layer.

    Source: SAM's mask generator. Deviation: crops that would be empty, on tiny images, are left out.
    """
    height, width = size
    crops = [Crop(0, (0, 0, width, height))]
    for layer in range(1, num_layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(size) * 2 / per_side)
        crop_width, crop_height = (math.ceil((overlap * (per_side - 1) + n) / per_side) for n in (width, height))
        for x0 in ((crop_width - overlap) * i for i in range(per_side)):
            for y0 in ((crop_height - overlap) * i for i in range(per_side)):
                if x0 < width and y0 < height:
                    crops.append(Crop(layer, (x0, y0, min(x0 + crop_width, width), min(y0 + crop_height, height))))
    return crops


@dataclass(frozen=True)
class Grid:
    """A grid of foreground points with the defaults of SAM's automatic mask generator.

    Attributes:
        points_per_side: the grid has points_per_side^2 points.
        multimask_output: three masks per point instead of one.
        pred_iou_thresh: a mask is kept above it; 0 switches the filter off; None is the model's own, SAM's .88 or what
            suits a small model.
        stability_score_thresh: a mask is kept at or above it; 0 switches the filter off; None is the model's own, SAM's
            .95 for example.
        box_nms_thresh: IoU threshold of box NMS by predicted IoU, among the masks of a crop; 1 switches it off.
        crop_n_layers: the grid prompts the full image, and then 2^i x 2^i crops for each layer i; each crop costs one
            pass of the image encoder.
        crop_n_points_downscale_factor: layer i has points_per_side / factor^i points per side.
        crop_overlap_ratio: overlap of crops in the first layer, as a fraction of the image's shorter side.
        crop_nms_thresh: IoU threshold of box NMS between crops, which prefers smaller crops; 1 switches it off.
        min_mask_region_area: holes and disconnected regions of fewer pixels of the original image are removed, then
            NMS runs again; 0 switches it off.

    Source: SAM, appendix B and its released code.
    """

    points_per_side: Count = 32
    multimask_output: bool = True
    pred_iou_thresh: Share | None = None
    stability_score_thresh: Share | None = None
    box_nms_thresh: Share = 0.7
    crop_n_layers: NonNegativeInt = 0
    crop_n_points_downscale_factor: Positive = 1.0
    crop_overlap_ratio: Annotated[float, Range(0, below=1)] = 512 / 1500
    crop_nms_thresh: Share = 0.7
    min_mask_region_area: Annotated[float, Range(0)] = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        if self._layer_points_per_side(self.crop_n_layers) < 1:
            raise ValueError(
                "crop_n_points_downscale_factor must leave at least one point per side in layer "
                f"{self.crop_n_layers}, got {self.crop_n_points_downscale_factor} with points_per_side="
                f"{self.points_per_side}. Lower it, or lower crop_n_layers."
            )

    @property
    def filters(self) -> Filters:
        """Return the thresholds that a mask must pass to be kept."""
        return Filters(
            SAM_THRESHOLDS.pred_iou_thresh if self.pred_iou_thresh is None else self.pred_iou_thresh,
            SAM_THRESHOLDS.stability_score_thresh
            if self.stability_score_thresh is None
            else self.stability_score_thresh,
            self.box_nms_thresh,
            self.crop_nms_thresh,
            self.min_mask_region_area,
        )

    def for_model(self, thresholds: Thresholds) -> Self:
        """Return the grid with a model's thresholds in the place of those that are None."""
        own = {name: value for name, value in asdict(thresholds).items() if getattr(self, name) is None}
        return replace(self, **own)

    @property
    def ranks_prompts(self) -> bool:
        """Return False: all points rank equally."""
        return False

    @property
    def one_round(self) -> bool:
        """Return whether there are no crops."""
        return self.crop_n_layers == 0

    @property
    def settings(self) -> dict[str, Any]:
        """Return every setting as plain values."""
        chosen = asdict(self.for_model(SAM_THRESHOLDS))
        return recorded_settings(self, **chosen, rank_by="mean of predicted IoU and stability score")

    def rounds(self, image: np.ndarray, embedding: Tensor) -> Rounds:
        """Yield one round for the full image and one per crop: points at the grid cells' centres, row by row.

        Args:
            image: RGB uint8 (H, W, 3).
            embedding: of the image; not read.
        """
        for layer, box in generate_crops((image.shape[0], image.shape[1]), self.crop_n_layers, self.crop_overlap_ratio):
            x0, y0, x1, y1 = box
            per_side = self._layer_points_per_side(layer)
            centres = (torch.arange(per_side, dtype=torch.float64) + 0.5) / per_side
            y, x = torch.meshgrid(y0 + centres * (y1 - y0), x0 + centres * (x1 - x0), indexing="ij")
            yield from self._rounds_of_crop(torch.stack([x, y], dim=-1), box if self.crop_n_layers else None)

    def _layer_points_per_side(self, layer: int) -> int:
        """Return the number of points per side of a crop in a layer."""
        return int(self.points_per_side / self.crop_n_points_downscale_factor**layer)

    def _rounds_of_crop(self, grid: Tensor, crop: tuple[int, int, int, int] | None) -> Rounds:
        """Yield the rounds of one crop; ``grid`` is (rows, columns, 2) xy, pixels of the image."""
        yield self._point_prompts(grid.reshape(-1, 2), crop)

    def _point_prompts(self, points: Tensor, crop: tuple[int, int, int, int] | None) -> Prompts:
        """Return N prompts of one foreground point each, from points (N, 2)."""
        labels = torch.full((len(points), 1), PointLabel.FOREGROUND, dtype=torch.int64)
        crops = None if crop is None else torch.tensor(crop).expand(len(points), 4)
        return Prompts(points=points[:, None], labels=labels, crops_xyxy=crops)

    def rank(self, predicted_iou: Tensor, stability_score: Tensor, prompts: Prompts) -> Tensor:
        """Return the mean of predicted IoU and stability score, (D,). Source: SAM, appendix D.3."""
        return (predicted_iou + stability_score) / 2


@dataclass(frozen=True)
class GridProposals(Grid):
    """SAM's protocol for object proposals: a denser grid, no filters, and NMS at 0.9.

    Source: SAM, appendix D.3.
    """

    points_per_side: Count = 64
    pred_iou_thresh: Share | None = 0.0
    stability_score_thresh: Share | None = 0.0
    box_nms_thresh: Share = 0.9
