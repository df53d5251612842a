"""A coarse grid of points, then the fine grid's points that no confident mask covers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from torch import Tensor
from typing_extensions import override

from mobilesamv2 import masks as mask_ops
from mobilesamv2.prompts.grid import Grid
from mobilesamv2.prompts.sampler import Rounds
from mobilesamv2.ranges import Range, Share
from mobilesamv2.structures import SAM_THRESHOLDS, Masks, Thresholds


@dataclass(frozen=True)
class Hierarchical(Grid):
    """SAM's grid in two rounds: objects found in the first are not prompted again.

    Attributes:
        coarse_stride: the first round uses every ``coarse_stride``-th point of the grid, along both axes.
        high_confidence_iou: the second round skips points that a mask of higher predicted IoU covers, and those of
            the first round; None is ``pred_iou_thresh``.

    Source: TinySAM, section 3.3. Deviation: its code checks the logits of single pixels; here a mask must have passed
    the filters, and all of its pixels count.
    """

    coarse_stride: Annotated[int, Range(2)] = 4
    high_confidence_iou: Share | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coarse_stride > self.points_per_side:
            raise ValueError(
                f"coarse_stride must be between 2 and points_per_side ({self.points_per_side}), "
                f"got {self.coarse_stride}. prompt_sampler=grid uses all points in one round."
            )

    @override
    def for_model(self, thresholds: Thresholds) -> Self:
        chosen = super().for_model(thresholds)
        if chosen.high_confidence_iou is not None:
            return chosen
        return replace(chosen, high_confidence_iou=chosen.pred_iou_thresh)

    @property
    @override
    def one_round(self) -> bool:
        return False

    @override
    def _rounds_of_crop(self, grid: Tensor, crop: tuple[int, int, int, int] | None) -> Rounds:
        stride = min(self.coarse_stride, len(grid))
        is_coarse = torch.zeros(grid.shape[:2], dtype=torch.bool)
        is_coarse[stride // 2 :: stride, stride // 2 :: stride] = True
        masks = yield self._point_prompts(grid[is_coarse], crop)
        remaining = grid[~is_coarse]
        high = SAM_THRESHOLDS.pred_iou_thresh if self.high_confidence_iou is None else self.high_confidence_iou
        remaining = remaining[~is_covered(remaining, masks[masks.predicted_iou > high])]
        if len(remaining):
            yield self._point_prompts(remaining, crop)


def is_covered(points: Tensor, masks: Masks) -> Tensor:
    """Check which points lie on at least one of the masks, (N,) bool.

    Args:
        points: (N, 2) xy, pixels of the image.
        masks: masks of this image.
    """
    if not len(masks):
        return torch.zeros(len(points), dtype=torch.bool)
    x, y = points.floor().long().unbind(1)
    union = torch.from_numpy(mask_ops.decode(mask_ops.union(masks.rles)))
    return union[y, x]
