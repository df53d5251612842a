"""YOLO masks: weighted sums of an image's prototypes, cropped by their boxes and encoded at the size of the image.

YOLO's own code resizes every mask to the full image: megabytes of floats per mask, most of them outside its box. Both
of its steps, bilinear to a multiple of the prototypes and from there to the image, are linear and separable, so here
they are one matrix per axis, and only the pixels of the box are computed.
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
"""Pixels of the network's input per cell of a prototype, along an axis."""

MASKS_PER_CHUNK = 64
"""Masks whose logits are in memory at once, at the size of the prototypes."""


class AxisInterpolation(NamedTuple):
    """Linear interpolation from cells of the prototypes to pixels along one axis of the image.

    Attributes:
        weights: (length, cells).
        first: index of the first cell that each pixel depends on, never decreasing.
        last: index of the last such cell, never decreasing.
    """

    weights: Tensor
    first: list[int]
    last: list[int]

    def crop(self, start: int, end: int) -> tuple[slice, Tensor]:
        """Return the cells that pixels ``start`` to ``end`` depend on, and their weights (end - start, cells)."""
        cells = slice(self.first[start], self.last[end - 1] + 1)
        return cells, self.weights[start:end, cells]


@torch.inference_mode()
def encode_prototype_masks(
    prototypes: Tensor, coefficients: Tensor, boxes_xyxy: Tensor, size: tuple[int, int]
) -> list[RLE | None]:
    """Encode one mask per box; None for a mask without pixels.

    A pixel belongs to a mask if its logit is above 0, the sigmoid above one half, and it lies in the box.

    Args:
        prototypes: (C, h/4, w/4) of the network's input of h x w pixels, into which the image is letterboxed.
        coefficients: (N, C), weights of the prototypes in each mask.
        boxes_xyxy: (N, 4), pixels of the image, inside it.
        size: (H, W) of the image, pixels.

    Source: ultralytics' ``process_mask_native`` (``retina_masks=True``, as FastSAM runs), up to rounding.
    """
    cells = (prototypes.shape[1], prototypes.shape[2])
    rows, columns = _interpolations(cells, size, prototypes.device)
    corners = boxes_xyxy.ceil().long().tolist()
    rles: list[RLE | None] = []
    with torch.autocast(prototypes.device.type, enabled=False):  # half precision would move the edges
        for start in range(0, len(corners), MASKS_PER_CHUNK):
            chunk = slice(start, start + MASKS_PER_CHUNK)
            logits = (coefficients[chunk] @ prototypes.flatten(1)).unflatten(1, cells)  # (n, h/4, w/4)
            for low_res, (x0, y0, x1, y1) in zip(logits, corners[chunk], strict=True):
                if x0 >= x1 or y0 >= y1:
                    rles.append(None)
                    continue
                cell_rows, vertical = rows.crop(y0, y1)
                cell_columns, horizontal = columns.crop(x0, x1)
                low_res_crop = low_res[cell_rows, cell_columns]
                mask = horizontal @ low_res_crop.T @ vertical.T > MASK_THRESHOLD  # (x1 - x0, y1 - y0)
                rles.append(encode_crop(mask.cpu().numpy(), (x0, y0), size))
    return rles


@lru_cache(maxsize=8)
def _interpolations(
    cells: tuple[int, int], size: tuple[int, int], device: torch.device
) -> tuple[AxisInterpolation, AxisInterpolation]:
    """Interpolate rows and columns of an image of ``size`` from ``cells`` of the prototypes.

    The prototypes are first enlarged by 1, 2 or 4, the smallest factor for which the padding ends between two cells.
    """
    gain = min(PROTOTYPE_STRIDE * cell / length for cell, length in zip(cells, size, strict=True))
    paddings = [
        PROTOTYPE_STRIDE * cell - max(round(length * gain), 1) for cell, length in zip(cells, size, strict=True)
    ]
    factors = (f for f in (1, 2) if all(f * padding % (2 * PROTOTYPE_STRIDE) == 0 for padding in paddings))
    factor = next(factors, PROTOTYPE_STRIDE)
    gain = min(factor * cell / length for cell, length in zip(cells, size, strict=True))
    rows, columns = (
        _interpolation(cell, factor, gain, length, device) for cell, length in zip(cells, size, strict=True)
    )
    return rows, columns


def _interpolation(cells: int, factor: int, gain: float, length: int, device: torch.device) -> AxisInterpolation:
    """Interpolate one axis: enlarge by a factor, remove the padding, resize to the length of the image in pixels."""
    inside = max(round(length * gain), 1)
    start = round((factor * cells - inside) / 2 - 0.1)
    identity = torch.eye(cells)[None]
    enlarged = F.interpolate(identity, size=factor * cells, mode="linear")[..., start : start + inside]
    weights = F.interpolate(enlarged, size=length, mode="linear")[0].T.contiguous()  # (length, cells)
    is_used = (weights > 0).int()
    last = cells - 1 - is_used.flip(1).argmax(1)
    return AxisInterpolation(weights.to(device), is_used.argmax(1).tolist(), last.tolist())
