"""A coarse grid first, then the fine grid's points where nothing confident was found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mobilesamv2 import masks as mask_ops
from mobilesamv2.prompts.grid import Grid
from mobilesamv2.prompts.sampler import Rounds
from mobilesamv2.structures import Masks


@dataclass(frozen=True)
class Hierarchical(Grid):
    """SAM's grid in two rounds: objects that are found early are not asked for again.

    Attributes:
        coarse_every: the first round asks every so many points of the grid, along both axes.
        confident_iou: the second round leaves out points that a mask of more predicted IoU covers, beside those that
            were asked already.

    Source: TinySAM, section 3.3. Its code looks at the logits of single pixels, here the whole mask counts, which must
    have passed the filters.
    """

    coarse_every: int = 4
    confident_iou: float = 0.88

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.coarse_every <= self.points_per_side:
            raise ValueError(
                f"coarse_every is between 2 and points_per_side ({self.points_per_side}), and is {self.coarse_every}; "
                "prompt_sampler=grid asks all points at once."
            )

    def _ask(self, grid: Tensor, crop: tuple[int, int, int, int] | None) -> Rounds:
        """Two rounds."""
        every = min(self.coarse_every, len(grid))
        coarse = torch.zeros(grid.shape[:2], dtype=torch.bool)
        coarse[every // 2 :: every, every // 2 :: every] = True
        found = yield self._prompts(grid[coarse], crop)
        left = grid[~coarse]
        left = left[~covered(left, found[found.predicted_iou > self.confident_iou])]
        if len(left):
            yield self._prompts(left, crop)


def covered(points: Tensor, masks: Masks) -> Tensor:
    """Which points lie on one of the masks, (N,) bool.

    Args:
        points: (N, 2) xy, pixels of the image.
        masks: of this image.
    """
    if not len(masks):
        return torch.zeros(len(points), dtype=torch.bool)
    x, y = points.floor().long().unbind(1)
    union = torch.from_numpy(mask_ops.decode(mask_ops.union(masks.rles)))
    return union[y, x]
