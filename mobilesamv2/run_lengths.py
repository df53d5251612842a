"""From low-res logits straight to run lengths at the size of the image.

SAM enlarges each mask's logits to the image, twice bilinearly, and cuts them there: megabytes of floats a mask, of
which nearly all are far from the cut. Both steps are linear, separable and convex, so here

- both become one interpolation an axis, three taps a pixel, whose weights come from torch's own interpolation;
- the taps of a few pixels in a column, a *window*, are compared with the cut first. Where all lie on one side, so do
  the pixels; only the other windows are interpolated. A mask with much edge, as noise has, is interpolated everywhere,
  some columns at a time.

The masks, and the stability scores that are counted at full size, are those of SAM up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mobilesamv2.masks import MASK_THRESHOLD, from_run_lengths
from mobilesamv2.structures import RLE
from mobilesamv2.transforms import ModelFrame

TAPS = 3
"""Low-res cells that a pixel depends on along an axis: two bilinear steps reach no further."""

STABILITY_OFFSET = 1.0
"""How far above and below the threshold the stability score cuts, in logits. Source: SAM's mask generator."""

CPU_COLUMNS, DEVICE_COLUMNS = 2**10, 2**16
"""Columns of pixels, of several masks, that are worked on at a time; each has up to S/4 floats."""

WINDOW_COST, EDGE_COST = 3.5, 50.0
"""What a window costs, and what one that has an edge costs more, in pixels that could be interpolated instead.

Measured on two CPU cores; it decides how a mask is encoded, and not what comes out.
"""

CPU_PIXELS, DEVICE_PIXELS = 2**18, 2**26
"""Pixels of masks with much edge that are interpolated at a time; on a CPU they stay in its cache."""


class Axis(NamedTuple):
    """How pixels along one axis of the image are interpolated from low-res cells.

    Attributes:
        start: (length,) int64, the first of a pixel's taps, never decreasing.
        weights: (length, TAPS).
    """

    start: Tensor
    weights: Tensor


class Windows(NamedTuple):
    """Pixels of a column that share their taps, for all columns alike.

    Attributes:
        start: (windows,) int64, their first tap.
        first_row: (windows,) int64, where they begin, pixels.
        num_rows: (windows,) int64, how many pixels they are.
        weights: (windows, rows, TAPS), the last pixel's repeated up to the longest window's number.
    """

    start: Tensor
    first_row: Tensor
    num_rows: Tensor
    weights: Tensor


class Cut(NamedTuple):
    """Which pixels of the columns of D masks are above a level.

    Attributes:
        above: (D, columns, windows) bool, of windows that lie on one side.
        unsure: (n, 3) int64, mask, column and window of those that do not, in this order.
        pixels: (n, rows) bool, the pixels of these.
    """

    above: Tensor
    unsure: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class MaskEncoder:
    """Encodes the masks of one image.

    Attributes:
        frame: how the image lies in the model's input.
        columns: along the image's width.
        windows: along its height.
        rows: (S/4 or less, H), the weights of all windows as one matrix.
    """

    frame: ModelFrame
    columns: Axis
    windows: Windows
    rows: Tensor

    @classmethod
    @lru_cache(maxsize=8)
    def of(cls, frame: ModelFrame, device: torch.device) -> MaskEncoder:
        """For an image whose logits are on a device; images of the same size share it."""
        (height, width), (resized_height, resized_width) = frame.original_size, frame.resized
        columns = _axis(frame.side, resized_width, width)
        rows = _axis(frame.side, resized_height, height)
        windows = Windows(*(x.to(device) for x in _windows(rows)))
        return cls(frame, Axis(*(x.to(device) for x in columns)), windows, _matrix(rows).to(device))

    def __call__(self, logits: Tensor, stability: float = 0.0) -> tuple[list[RLE | None], Tensor]:
        """Masks and their stability scores.

        Args:
            logits: (D, S/4, S/4), low-res.
            stability: masks that score less are not encoded.

        Returns:
            an RLE for each mask, None where it is too unstable or has no pixel, and stability scores (D,) in [0, 1],
            the IoU of the masks cut one logit above and one below the threshold; 0 where no pixel comes within a
            logit of the mask (SAM's own code gives NaN there).
        """
        rles: list[RLE | None] = []
        scores = [torch.zeros(0)]
        columns = CPU_COLUMNS if logits.device.type == "cpu" else DEVICE_COLUMNS
        with torch.autocast(logits.device.type, enabled=False):  # half precision would move the edges
            for chunk in logits.split(max(1, columns // self.frame.original_size[1])) if len(logits) else ():
                encoded, score = self._encode(chunk, stability)
                rles += encoded
                scores.append(score)
        return rles, torch.cat(scores)

    def _encode(self, logits: Tensor, stability: float) -> tuple[list[RLE | None], Tensor]:
        """One chunk of masks."""
        cells, left, right = self._support(logits)
        if self._has_much_edge(cells):
            return self._encode_everywhere(cells, left, right, stability)
        inner, outer = (self._count(self._cut(cells, MASK_THRESHOLD + sign * STABILITY_OFFSET)) for sign in (1, -1))
        scores = (inner.float() / outer.clamp(min=1)).cpu()
        rles: list[RLE | None] = [None] * len(logits)
        stable = (scores >= stability).nonzero().flatten()
        if len(stable) and right > left:
            cut = self._cut(cells[stable.to(cells.device)], MASK_THRESHOLD)
            for i, changes in zip(stable.tolist(), self._changes(cut, left, right), strict=True):
                rles[i] = self._rle(changes)
        return rles, scores

    def _has_much_edge(self, cells: Tensor) -> bool:
        """Whether it is faster to interpolate every pixel than to look for the windows that need it."""
        edges = self._edges(cells > MASK_THRESHOLD)
        pixels = edges.shape[0] * edges.shape[1] * self.rows.shape[1]
        return pixels < WINDOW_COST * edges.numel() + EDGE_COST * int(edges.count_nonzero())

    def _encode_everywhere(
        self, cells: Tensor, left: int, right: int, stability: float
    ) -> tuple[list[RLE | None], Tensor]:
        """One chunk of masks of which every pixel is interpolated."""
        inner, outer = cells.new_zeros(2, len(cells), dtype=torch.int64)
        above = []
        pixels = CPU_PIXELS if cells.device.type == "cpu" else DEVICE_PIXELS
        for part in cells.split(max(1, pixels // (len(cells) * self.rows.shape[1])), dim=1):
            values = (part @ self.rows).flatten(1)  # (D, columns * H)
            inner += (values > MASK_THRESHOLD + STABILITY_OFFSET).sum(1)
            outer += (values > MASK_THRESHOLD - STABILITY_OFFSET).sum(1)
            above.append(values > MASK_THRESHOLD)
        scores = (inner.float() / outer.clamp(min=1)).cpu()
        masks = torch.cat(above, dim=1)
        masks = F.pad(masks, (1, int(right < self.frame.original_size[1])))  # what lies left and right is outside
        rles: list[RLE | None] = [None] * len(cells)
        for i in (scores >= stability).nonzero().flatten().tolist():
            changes = (masks[i, 1:] != masks[i, :-1]).nonzero().flatten() + left * self.rows.shape[1]
            rles[i] = self._rle(changes.cpu().numpy())
        return rles, scores

    def _support(self, logits: Tensor) -> tuple[Tensor, int, int]:
        """Columns where a mask can have a pixel, interpolated from left to right: (D, columns, S/4), first, end."""
        start, weights = self.columns
        reach = int(self.windows.start[-1]) + TAPS
        logits = logits[:, :reach].float()
        reached = (logits > MASK_THRESHOLD - STABILITY_OFFSET).any(1).any(0)  # (S/4,)
        inside = reached.unfold(0, TAPS, 1).any(1)[start].nonzero()
        if len(inside) == 0:
            return logits.new_zeros(len(logits), 0, reach), 0, 0
        left, right = int(inside[0]), int(inside[-1]) + 1
        start, weights = start[left:right], weights[left:right]
        low_res = logits.transpose(1, 2).contiguous()  # (D, S/4 of x, S/4 of y)
        cells = low_res[:, start] * weights[:, :1]
        for tap in range(1, TAPS):
            cells.addcmul_(low_res[:, start + tap], weights[:, tap : tap + 1])
        return cells, left, right

    def _cut(self, cells: Tensor, level: float) -> Cut:
        """Columns (D, columns, S/4) to what is above a level."""
        higher = cells > level
        start = self.windows.start
        unsure = self._edges(higher).nonzero()
        mask, column, window = unsure.unbind(1)
        taps = cells[mask[:, None], column[:, None], start[window][:, None] + torch.arange(TAPS, device=cells.device)]
        values = (self.windows.weights[window] @ taps[:, :, None])[..., 0]  # (n, rows)
        return Cut(higher.index_select(2, start), unsure, values > level)

    def _edges(self, higher: Tensor) -> Tensor:
        """Windows whose taps (D, columns, S/4) bool do not agree, (D, columns, windows) bool."""
        changes = higher[..., 1:] != higher[..., :-1]
        return (changes[..., 1:] | changes[..., :-1]).index_select(2, self.windows.start)

    def _count(self, cut: Cut) -> Tensor:
        """Pixels above the level in each mask, (D,) int64."""
        num_rows = self.windows.num_rows
        mask, column, window = cut.unsure.unbind(1)
        rows = torch.arange(cut.pixels.shape[1], device=num_rows.device)
        unsure = (cut.pixels & (rows < num_rows[window][:, None])).sum(1)  # (n,)
        sure = cut.above.clone()
        sure[mask, column, window] = False
        return (sure.sum(1) * num_rows).sum(1).index_add_(0, mask, unsure)

    def _changes(self, cut: Cut, left: int, right: int) -> list[np.ndarray]:
        """Pixels, counted down the columns of the image, at which each mask begins or ends."""
        height, width = self.frame.original_size
        mask, column, window = cut.unsure.unbind(1)
        first, last = cut.above, cut.above.clone()
        first[mask, column, window] = cut.pixels[:, 0]
        last[mask, column, window] = cut.pixels[:, -1]
        first, last = first.flatten(1), last.flatten(1)  # (D, columns * windows)
        end = last[:, -1:] if right < width else torch.zeros_like(last[:, -1:])
        between = F.pad(last, (1, 0))[:, :-1] != first
        at_windows, place = between.nonzero().unbind(1)
        num_windows = cut.above.shape[2]
        at_pixels, row = (cut.pixels[:, 1:] != cut.pixels[:, :-1]).nonzero().unbind(1)
        begins = self.windows.first_row
        ends = end.nonzero()[:, 0]
        masks = torch.cat([at_windows, mask[at_pixels], ends])
        pixels = torch.cat(
            [
                (left + place // num_windows) * height + begins[place % num_windows],
                (left + column[at_pixels]) * height + begins[window[at_pixels]] + row + 1,
                torch.full_like(ends, right * height),
            ]
        )
        pixels = (masks * (height * width + 1) + pixels).sort().values.cpu()
        counts = masks.bincount(minlength=len(first)).tolist()
        return [part.numpy() % (height * width + 1) for part in pixels.split(counts)]

    def _rle(self, changes: np.ndarray) -> RLE | None:
        """Where a mask begins and ends, in turn, to its RLE; None for a mask without a pixel."""
        if len(changes) == 0:
            return None
        height, width = self.frame.original_size
        return from_run_lengths(np.diff(changes, prepend=0, append=height * width), (height, width))


def _axis(side: int, resized: int, original: int) -> Axis:
    """SAM's two steps along one axis: to the model's side, without the padding, to the image's length."""
    low_res = torch.eye(side // 4)[None]
    full = F.interpolate(low_res, size=side, mode="linear", align_corners=False)[..., :resized]
    weights = F.interpolate(full, size=original, mode="linear", align_corners=False)[0].T  # (original, S/4)
    start = (weights > 0).int().argmax(1).clamp(max=side // 4 - TAPS)
    return Axis(start, weights.gather(1, start[:, None] + torch.arange(TAPS)))


def _matrix(axis: Axis) -> Tensor:
    """An axis as a matrix from cells to pixels, (cells that are used, length)."""
    cells = int(axis.start[-1]) + TAPS
    place = axis.start[:, None] + torch.arange(TAPS)
    return torch.zeros(len(axis.start), cells).scatter_(1, place, axis.weights).T.contiguous()


def _windows(axis: Axis) -> Windows:
    """An axis by the pixels that share their taps."""
    start, num_rows = axis.start.unique_consecutive(return_counts=True)
    first_row = num_rows.cumsum(0) - num_rows
    rows = torch.arange(int(num_rows.max())).minimum(num_rows[:, None] - 1)  # (windows, rows)
    return Windows(start, first_row, num_rows, axis.weights[first_row[:, None] + rows])
