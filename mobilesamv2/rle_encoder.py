"""RLE encoding of low-res logits at the size of the image, without the full-size logits.

SAM upscales each mask's logits to the image in two bilinear steps, SAM 2 in one, and thresholds them there: megabytes
of floats per mask, nearly all of them far from the threshold. The steps are linear, separable and convex, so here

- they become one interpolation per axis, three taps per pixel, whose weights come from torch's own interpolation;
- the taps of a few pixels in a column, a *window*, are compared with the threshold first. If all lie on one side, so do
  the pixels; only the other, ambiguous windows are interpolated. Masks with many edges, such as noise, are interpolated
  densely, some columns at a time.

EfficientSAM's bicubic step is not convex: a pixel may exceed all its taps. Its masks, of four taps per pixel, are
interpolated densely, all of their columns, and their boxes are those of the encoded masks.

The masks, and the stability scores, which are counted at full size, match SAM's up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mobilesamv2.masks import MASK_THRESHOLD, boxes_from_rles, from_run_lengths
from mobilesamv2.structures import RLE
from mobilesamv2.transforms import ModelFrame

TAPS, BICUBIC_TAPS = 3, 4
"""Low-res cells that a pixel depends on along an axis: two bilinear steps reach no further, or one bicubic one."""

STABILITY_OFFSET = 1.0
"""Offset of the stability score's two thresholds from the mask threshold, in logits. Source: SAM's mask generator."""

CPU_COLUMNS, DEVICE_COLUMNS = 2**10, 2**16
"""Columns of pixels, over several masks, that are processed at a time; each has up to S/4 floats."""

WINDOW_COST, EDGE_COST = 3.5, 50.0
"""Cost of a window, and extra cost of an ambiguous one, in units of one interpolated pixel.

Measured on two CPU cores. They decide how a mask is encoded and do not change the result.
"""

CPU_PIXELS, DEVICE_PIXELS = 2**18, 2**26
"""Pixels of densely encoded masks that are interpolated at a time; on a CPU they fit into its cache."""

BOXES_PER_CHUNK, BOXES_PER_DEVICE_CHUNK = 64, 1024
"""Masks whose boxes are computed at a time; on a CPU they fit into its cache."""


class AxisTaps(NamedTuple):
    """How pixels along one axis of the image are interpolated from low-res cells.

    Attributes:
        start: (length,) int64, the first of a pixel's taps; non-decreasing, but for bicubic taps of weight 0.
        weights: (length, taps), ``TAPS`` or ``BICUBIC_TAPS``.
    """

    start: Tensor
    weights: Tensor


class Windows(NamedTuple):
    """Runs of pixels in a column that share their taps; the same for all columns.

    Attributes:
        start: (windows,) int64, first tap.
        first_row: (windows,) int64, first pixel.
        num_rows: (windows,) int64, number of pixels.
        weights: (windows, rows, taps), padded to the longest window by repeating the last pixel's weights.
    """

    start: Tensor
    first_row: Tensor
    num_rows: Tensor
    weights: Tensor


class Thresholded(NamedTuple):
    """Which pixels in the columns of D masks are above a threshold.

    Attributes:
        above: (D, columns, windows) bool, valid for windows that lie on one side of the threshold.
        ambiguous: (n, 3) int64, mask, column and window of the other windows, sorted in this order.
        pixels: (n, rows) bool, the pixels of the ambiguous windows.
    """

    above: Tensor
    ambiguous: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class RleEncoder:
    """Encoder of the masks of one image.

    Attributes:
        frame: how the image lies in the model's input.
        column_taps: taps along the image's width.
        row_taps: taps along its height.
        windows: ``row_taps``, grouped into pixels that share their taps.
        row_matrix: ``row_taps`` as a matrix (S/4 or less, H).
    """

    frame: ModelFrame
    column_taps: AxisTaps
    row_taps: AxisTaps
    windows: Windows
    row_matrix: Tensor

    @classmethod
    @lru_cache(maxsize=8)
    def for_frame(cls, frame: ModelFrame, device: torch.device) -> RleEncoder:
        """Return the encoder for an image's frame and the device of its logits; images of one size share it."""
        height, width = frame.original_size
        resized_height, resized_width = frame.resized if frame.resizing.keep_aspect_ratio else (None, None)
        bicubic = frame.resizing.bicubic_masks
        columns = _axis_taps(frame.side, resized_width, width, bicubic)
        rows = _axis_taps(frame.side, resized_height, height, bicubic)
        windows = Windows(*(x.to(device) for x in _windows(rows)))
        columns, rows = (AxisTaps(*(x.to(device) for x in taps)) for taps in (columns, rows))
        return cls(frame, columns, rows, windows, _interpolation_matrix(rows))

    def __call__(self, logits: Tensor, stability_score_thresh: float = 0.0) -> tuple[list[RLE | None], Tensor]:
        """Return masks as RLE, with their stability scores.

        Args:
            logits: (D, S/4, S/4), low-res.
            stability_score_thresh: masks of a lower score are not encoded.

        Returns:
            one RLE per mask, None if it is too unstable or empty; and stability scores (D,) in [0, 1], the IoU of the
            masks thresholded one logit above and one below the mask threshold. The score is 0 where no pixel exceeds
            the lower threshold (SAM's code returns NaN there).
        """
        rles: list[RLE | None] = []
        scores = [torch.zeros(0)]
        columns = CPU_COLUMNS if logits.device.type == "cpu" else DEVICE_COLUMNS
        with torch.autocast(logits.device.type, enabled=False):  # half precision would shift the edges
            for chunk in logits.split(max(1, columns // self.frame.original_size[1])) if len(logits) else ():
                encoded, score = self._encode(chunk, stability_score_thresh)
                rles += encoded
                scores.append(score)
        return rles, torch.cat(scores)

    def boxes(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the boxes of masks without encoding them, which takes about a tenth of the time.

        Args:
            logits: (D, S/4, S/4), low-res.

        Returns:
            boxes (D, 4) xyxy float32, first and last covered column and row, pixels of the original image, equal to
            those of ``boxes_from_rles`` and undefined for a mask without a pixel; and (D,) bool, whether a mask has
            one. Both are on the CPU.
        """
        boxes, non_empty = torch.zeros(len(logits), 4), torch.zeros(len(logits), dtype=torch.bool)
        on_cpu = logits.device.type == "cpu"
        with torch.autocast(logits.device.type, enabled=False):
            begin = 0
            for chunk in logits.split(BOXES_PER_CHUNK if on_cpu else BOXES_PER_DEVICE_CHUNK):
                part = slice(begin, begin + len(chunk))
                boxes[part], non_empty[part] = self._boxes(chunk.float())
                begin += len(chunk)
        return boxes, non_empty

    def _boxes(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the boxes of one chunk of masks, and whether each has a pixel."""
        if self.frame.resizing.bicubic_masks:
            rles = self(logits)[0]
            boxes, found = torch.zeros(len(rles), 4), torch.tensor([rle is not None for rle in rles])
            boxes[found] = boxes_from_rles([rle for rle in rles if rle is not None])
            return boxes, found
        transposed = logits.transpose(1, 2).contiguous()  # (D, S/4 of x, S/4 of y)
        x0, x1 = _extent(transposed, self.column_taps, self.row_taps)
        y0, y1 = _extent(logits, self.row_taps, self.column_taps)
        edges = torch.stack([x0, y0, x1, y1], dim=1).cpu()
        boxes, found = edges.float(), (edges >= 0).all(1)
        undecided = ~found & (edges >= 0).any(1)  # a pixel that rounding puts on either side of the threshold
        for i in undecided.nonzero().flatten().tolist():
            rle = self(logits[i : i + 1])[0][0]
            found[i] = rle is not None
            if rle is not None:
                boxes[i] = boxes_from_rles([rle])[0]
        return boxes, found

    def _encode(self, logits: Tensor, stability_score_thresh: float) -> tuple[list[RLE | None], Tensor]:
        """Encode one chunk of masks."""
        cells, left, right = self._support(logits)
        if self._is_dense(cells):
            return self._encode_dense(cells, left, right, stability_score_thresh)
        inner, outer = (
            self._count(self._threshold(cells, MASK_THRESHOLD + sign * STABILITY_OFFSET)) for sign in (1, -1)
        )
        scores = (inner.float() / outer.clamp(min=1)).cpu()
        rles: list[RLE | None] = [None] * len(logits)
        stable = (scores >= stability_score_thresh).nonzero().flatten()
        if len(stable) and right > left:
            thresholded = self._threshold(cells[stable.to(cells.device)], MASK_THRESHOLD)
            for i, changes in zip(stable.tolist(), self._changes(thresholded, left, right), strict=True):
                rles[i] = self._rle(changes)
        return rles, scores

    def _is_dense(self, cells: Tensor) -> bool:
        """Check whether interpolating every pixel is faster than searching for the ambiguous windows."""
        if self.frame.resizing.bicubic_masks:
            return True
        edges = self._edges(cells > MASK_THRESHOLD)
        pixels = edges.shape[0] * edges.shape[1] * self.row_matrix.shape[1]
        return pixels < WINDOW_COST * edges.numel() + EDGE_COST * int(edges.count_nonzero())

    def _encode_dense(
        self, cells: Tensor, left: int, right: int, stability_score_thresh: float
    ) -> tuple[list[RLE | None], Tensor]:
        """Encode one chunk of masks by interpolating every pixel."""
        inner, outer = cells.new_zeros(2, len(cells), dtype=torch.int64)
        above = []
        pixels = CPU_PIXELS if cells.device.type == "cpu" else DEVICE_PIXELS
        for part in cells.split(max(1, pixels // (len(cells) * self.row_matrix.shape[1])), dim=1):
            values = (part @ self.row_matrix).flatten(1)  # (D, columns * H)
            inner += (values > MASK_THRESHOLD + STABILITY_OFFSET).sum(1)
            outer += (values > MASK_THRESHOLD - STABILITY_OFFSET).sum(1)
            above.append(values > MASK_THRESHOLD)
        scores = (inner.float() / outer.clamp(min=1)).cpu()
        masks = torch.cat(above, dim=1)
        masks = F.pad(masks, (1, int(right < self.frame.original_size[1])))  # other columns are background
        rles: list[RLE | None] = [None] * len(cells)
        for i in (scores >= stability_score_thresh).nonzero().flatten().tolist():
            changes = (masks[i, 1:] != masks[i, :-1]).nonzero().flatten() + left * self.row_matrix.shape[1]
            rles[i] = self._rle(changes.cpu().numpy())
        return rles, scores

    def _support(self, logits: Tensor) -> tuple[Tensor, int, int]:
        """Interpolate the columns where a mask can have a pixel: (D, columns, S/4), first column, end column."""
        start, weights = self.column_taps
        taps = weights.shape[1]
        reach = int(self.windows.start[-1]) + taps
        logits = logits[:, :reach].float()
        near_mask = (logits > MASK_THRESHOLD - STABILITY_OFFSET).any(1).any(0)  # (S/4,)
        inside = (near_mask.unfold(0, taps, 1).any(1) | self.frame.resizing.bicubic_masks)[start].nonzero()
        if len(inside) == 0:
            return logits.new_zeros(len(logits), 0, reach), 0, 0
        left, right = int(inside[0]), int(inside[-1]) + 1
        start, weights = start[left:right], weights[left:right]
        low_res = logits.transpose(1, 2).contiguous()  # (D, S/4 of x, S/4 of y)
        cells = low_res[:, start] * weights[:, :1]
        for tap in range(1, taps):
            cells.addcmul_(low_res[:, start + tap], weights[:, tap : tap + 1])
        return cells, left, right

    def _threshold(self, cells: Tensor, threshold: float) -> Thresholded:
        """Threshold columns (D, columns, S/4), and interpolate their ambiguous windows."""
        above = cells > threshold
        start = self.windows.start
        ambiguous = self._edges(above).nonzero()
        mask, column, window = ambiguous.unbind(1)
        taps = cells[mask[:, None], column[:, None], start[window][:, None] + torch.arange(TAPS, device=cells.device)]
        values = (self.windows.weights[window] @ taps[:, :, None])[..., 0]  # (n, rows)
        return Thresholded(above.index_select(2, start), ambiguous, values > threshold)

    def _edges(self, above: Tensor) -> Tensor:
        """Find windows (D, columns, windows) bool whose taps, of (D, columns, S/4) bool, differ."""
        changes = above[..., 1:] != above[..., :-1]
        return (changes[..., 1:] | changes[..., :-1]).index_select(2, self.windows.start)

    def _count(self, thresholded: Thresholded) -> Tensor:
        """Count the pixels above the threshold in each mask, (D,) int64."""
        num_rows = self.windows.num_rows
        mask, column, window = thresholded.ambiguous.unbind(1)
        rows = torch.arange(thresholded.pixels.shape[1], device=num_rows.device)
        ambiguous_count = (thresholded.pixels & (rows < num_rows[window][:, None])).sum(1)  # (n,)
        uniform = thresholded.above.clone()
        uniform[mask, column, window] = False
        return (uniform.sum(1) * num_rows).sum(1).index_add_(0, mask, ambiguous_count)

    def _changes(self, thresholded: Thresholded, left: int, right: int) -> list[np.ndarray]:
        """Return the pixels, counted down the columns of the image, at which each mask begins or ends."""
        height, width = self.frame.original_size
        mask, column, window = thresholded.ambiguous.unbind(1)
        first, last = thresholded.above, thresholded.above.clone()
        first[mask, column, window] = thresholded.pixels[:, 0]
        last[mask, column, window] = thresholded.pixels[:, -1]
        first, last = first.flatten(1), last.flatten(1)  # (D, columns * windows)
        end = last[:, -1:] if right < width else torch.zeros_like(last[:, -1:])
        between = F.pad(last, (1, 0))[:, :-1] != first
        at_windows, position = between.nonzero().unbind(1)
        num_windows = thresholded.above.shape[2]
        at_pixels, row = (thresholded.pixels[:, 1:] != thresholded.pixels[:, :-1]).nonzero().unbind(1)
        first_row = self.windows.first_row
        ends = end.nonzero()[:, 0]
        masks = torch.cat([at_windows, mask[at_pixels], ends])
        pixels = torch.cat(
            [
                (left + position // num_windows) * height + first_row[position % num_windows],
                (left + column[at_pixels]) * height + first_row[window[at_pixels]] + row + 1,
                torch.full_like(ends, right * height),
            ]
        )
        pixels = (masks * (height * width + 1) + pixels).sort().values.cpu()
        counts = masks.bincount(minlength=len(first)).tolist()
        return [part.numpy() % (height * width + 1) for part in pixels.split(counts)]

    def _rle(self, changes: np.ndarray) -> RLE | None:
        """Convert the pixels where a mask begins and ends, in turn, to RLE; None if the mask is empty."""
        if len(changes) == 0:
            return None
        height, width = self.frame.original_size
        return from_run_lengths(np.diff(changes, prepend=0, append=height * width), (height, width))


def _extent(logits: Tensor, axis: AxisTaps, other: AxisTaps) -> tuple[Tensor, Tensor]:
    """Find the first and last covered pixel of masks along an axis.

    Lines of pixels across the axis are interpolated from the outermost ones that a mask can cover inwards, a few at a
    time, until one is covered; for most masks that is within the first cell.

    Args:
        logits: (D, cells along the axis, cells along the other).
        axis: along which the extent is measured.
        other: the other axis.

    Returns:
        first and last pixel, (D,) each; -1 for a mask without a pixel.
    """
    length, matrix, windows = len(axis.start), _interpolation_matrix(other), other.start.unique()
    logits = logits[..., : len(matrix)]  # the cells that pixels depend on
    has_positive = logits.amax(2) > MASK_THRESHOLD  # (D, cells along the axis)
    possible = (has_positive[:, :-2] | has_positive[:, 1:-1] | has_positive[:, 2:])[:, axis.start].int()  # (D, length)
    first, last = possible.argmax(1), length - 1 - possible.flip(1).argmax(1)
    reach = torch.arange(min(length, 2 * length // (int(axis.start[-1]) + TAPS) + 2), device=logits.device)

    def covered(masks: Tensor, pixels: Tensor) -> Tensor:
        """Check which lines (D, R) across the axis, ordered from outside inwards, have a covered pixel: (D, R) bool.

        Correct up to the first line on which all taps of a window, and thus its pixels, are above the threshold.
        """
        start, weights = axis.start[pixels], axis.weights[pixels]
        cells = weights[..., :1] * logits[masks[:, None], start]  # (D, R, cells)
        for tap in range(1, TAPS):
            cells.addcmul_(weights[..., tap : tap + 1], logits[masks[:, None], start + tap])
        lowest_tap = torch.minimum(torch.minimum(cells[..., :-2], cells[..., 1:-1]), cells[..., 2:])
        is_covered = lowest_tap.index_select(2, windows).amax(2) > MASK_THRESHOLD  # (D, R)
        ambiguous = ((cells.amax(2) > MASK_THRESHOLD) & (is_covered.cumsum(1) == 0)).nonzero().unbind(1)
        is_covered[ambiguous] = (cells[ambiguous] @ matrix > MASK_THRESHOLD).any(1)
        return is_covered

    def outermost(start: Tensor, end: Tensor, step: int) -> Tensor:
        """Return the first covered line from ``start`` to ``end`` in steps of 1 or -1, (D,); -1 if there is none."""
        edge = torch.full_like(start, -1)
        masks, moved = possible.any(1).nonzero().flatten(), 0
        while len(masks):
            lines = (start[masks, None] + step * (moved + reach)).clamp(0, length - 1)
            is_covered = covered(masks, lines)
            found = is_covered.any(1)
            at = is_covered[found].int().argmax(1, keepdim=True)
            edge[masks[found]] = lines[found].gather(1, at)[:, 0]
            masks = masks[~found & (step * (end[masks] - lines[:, -1]) > 0)]
            moved += len(reach)
        return edge

    return outermost(first, last, 1), outermost(last, first, -1)


def _axis_taps(side: int, resized: int | None, original: int, bicubic: bool) -> AxisTaps:
    """Merge SAM's two steps along one axis: to the model's side, without the padding, to the image's length.

    SAM 2 and EfficientSAM have one step, from low-res to the image; ``resized`` is None then.
    """
    cells, taps = side // 4, BICUBIC_TAPS if bicubic else TAPS
    full = torch.eye(cells)[None]
    if resized is not None:
        full = F.interpolate(full, size=side, mode="linear", align_corners=False)[..., :resized]
    if bicubic:  # which torch has in two dimensions alone
        weights = F.interpolate(full[None], size=(cells, original), mode="bicubic", align_corners=False)[0, 0].T
    else:
        weights = F.interpolate(full, size=original, mode="linear", align_corners=False)[0].T  # (original, S/4)
    start = (weights != 0).int().argmax(1).clamp(max=cells - taps)
    return AxisTaps(start, weights.gather(1, start[:, None] + torch.arange(taps)))


def _interpolation_matrix(axis: AxisTaps) -> Tensor:
    """Return an axis as a matrix from cells to pixels, (cells in use, length)."""
    taps = axis.weights.shape[1]
    cells = int(axis.start[-1]) + taps
    index = axis.start[:, None] + torch.arange(taps, device=axis.start.device)
    return torch.zeros(len(axis.start), cells, device=axis.start.device).scatter_(1, index, axis.weights).T.contiguous()


def _windows(axis: AxisTaps) -> Windows:
    """Group the pixels of an axis that share their taps."""
    start, num_rows = axis.start.unique_consecutive(return_counts=True)
    first_row = num_rows.cumsum(0) - num_rows
    rows = torch.arange(int(num_rows.max())).minimum(num_rows[:, None] - 1)  # (windows, rows)
    return Windows(start, first_row, num_rows, axis.weights[first_row[:, None] + rows])
