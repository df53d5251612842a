"""Masks as sums of an image's prototypes, each cut out by its box and encoded at the size of the image.

YOLO's own code enlarges every mask to the whole image: megabytes of floats a mask, of which the box keeps a few. Both
of its steps, bilinear to a multiple of the prototypes and from there to the image, are linear and separable, so here
they are one matrix an axis, and only the pixels of the box are computed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mobilesamv2.masks import MASK_THRESHOLD, encode_crop
from mobilesamv2.structures import RLE

PROTOTYPE_STRIDE = 4
"""Pixels of the network's input that a cell of a prototype spans."""

MASKS_AT_A_TIME = 64
"""Whose logits are held at the size of the prototypes."""


class Axis(NamedTuple):
    """How pixels along one axis of the image are interpolated from cells of the prototypes.

    Attributes:
        weights: (length, cells).
        first: of each pixel, the first cell that it depends on, never decreasing.
        last: of each pixel, the last such cell, never decreasing.
    """

    weights: Tensor
    first: list[int]
    last: list[int]

    def part(self, start: int, end: int) -> tuple[slice, Tensor]:
        """The cells that pixels from ``start`` up to ``end`` depend on, and (end - start, cells) their weights."""
        cells = slice(self.first[start], self.last[end - 1] + 1)
        return cells, self.weights[start:end, cells]


@torch.inference_mode()
def encode_prototype_masks(
    prototypes: Tensor, coefficients: Tensor, boxes_xyxy: Tensor, size: tuple[int, int]
) -> list[RLE | None]:
    """One mask for each box; None where it has no pixel.

    A pixel belongs to a mask where its logit is above 0, the sigmoid above one half, and its place in the box.

    Args:
        prototypes: (C, h/4, w/4) of the network's input of h x w pixels, into which the image is letterboxed.
        coefficients: (N, C), of each mask.
        boxes_xyxy: (N, 4), pixels of the image, inside it.
        size: (H, W) of the image, pixels.

    Source: ultralytics' ``process_mask_native`` (``retina_masks=True``, as FastSAM runs), up to rounding.
    """
    cells = (prototypes.shape[1], prototypes.shape[2])
    rows, columns = _axes(cells, size, prototypes.device)
    corners = boxes_xyxy.ceil().long().tolist()
    rles: list[RLE | None] = []
    with torch.autocast(prototypes.device.type, enabled=False):  # half precision would move the edges
        for start in range(0, len(corners), MASKS_AT_A_TIME):
            some = slice(start, start + MASKS_AT_A_TIME)
            logits = (coefficients[some] @ prototypes.flatten(1)).unflatten(1, cells)  # (n, h/4, w/4)
            for low_res, (x0, y0, x1, y1) in zip(logits, corners[some], strict=True):
                if x0 >= x1 or y0 >= y1:
                    rles.append(None)
                    continue
                down, vertical = rows.part(y0, y1)
                along, horizontal = columns.part(x0, x1)
                mask = horizontal @ low_res[down, along].T @ vertical.T > MASK_THRESHOLD  # (x1 - x0, y1 - y0)
                rles.append(encode_crop(mask.cpu().numpy(), (x0, y0), size))
    return rles


@lru_cache(maxsize=8)
def _axes(cells: tuple[int, int], size: tuple[int, int], device: torch.device) -> tuple[Axis, Axis]:
    """Rows and columns of an image of ``size`` in prototypes of so many cells.

    The prototypes are first enlarged by 1, 2 or 4, the least for which the padding ends between two cells.
    """
    gain = min(PROTOTYPE_STRIDE * cell / length for cell, length in zip(cells, size, strict=True))
    paddings = [
        PROTOTYPE_STRIDE * cell - max(round(length * gain), 1) for cell, length in zip(cells, size, strict=True)
    ]
    even = (f for f in (1, 2) if all(f * padding % (2 * PROTOTYPE_STRIDE) == 0 for padding in paddings))
    factor = next(even, PROTOTYPE_STRIDE)
    gain = min(factor * cell / length for cell, length in zip(cells, size, strict=True))
    rows, columns = (_axis(cell, factor, gain, length, device) for cell, length in zip(cells, size, strict=True))
    return rows, columns


def _axis(cells: int, factor: int, gain: float, length: int, device: torch.device) -> Axis:
    """One axis: enlarged by a factor, without the padding, to the length of the image in pixels."""
    inside = max(round(length * gain), 1)
    begin = round((factor * cells - inside) / 2 - 0.1)
    one_each = torch.eye(cells)[None]
    enlarged = F.interpolate(one_each, size=factor * cells, mode="linear")[..., begin : begin + inside]
    weights = F.interpolate(enlarged, size=length, mode="linear")[0].T.contiguous()  # (length, cells)
    seen = (weights > 0).int()
    last = cells - 1 - seen.flip(1).argmax(1)
    return Axis(weights.to(device), seen.argmax(1).tolist(), last.tolist())
