"""Crops of an image: an image's parts, enlarged, show what is small in the whole."""

from __future__ import annotations

import math
from typing import NamedTuple


class Crop(NamedTuple):
    """A part of an image.

    Attributes:
        layer: 0 for the whole image; each layer has twice as many crops a side as the one before.
        box: x0, y0, x1, y1, pixels; the last column and row are not covered.
    """

    layer: int
    box: tuple[int, int, int, int]


def crops_of(size: tuple[int, int], num_layers: int, overlap_ratio: float) -> list[Crop]:
    """The whole image, then the crops of each layer, column by column.

    Args:
        size: (H, W), pixels.
        num_layers: layers beside the whole image; layer i has 2^i x 2^i crops.
        overlap_ratio: how much neighbours of the first layer share, as a share of the shorter side; later layers
            share half of what the one before does.

    Source: SAM's mask generator. An image too small for a crop goes without it here.
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
