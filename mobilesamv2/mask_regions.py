"""Small holes and disconnected regions of masks, as SAM's automatic mask generator removes them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from mobilesamv2 import masks as mask_ops
from mobilesamv2.structures import RLE, Masks

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
"""Pixels that touch at a corner are connected."""


def remove_small_regions(masks: Masks, min_area: float, nms_thresh: float) -> Masks:
    """Remove the small regions of each mask, then the duplicates that this leaves: masks without such regions first.

    Args:
        masks: of one image.
        min_area: holes and disconnected regions of fewer pixels are removed; of a mask of nothing else, the largest
            region stays.
        nms_thresh: IoU threshold of box NMS, which prefers masks that had no small region; 1 keeps all masks.

    Source: ``SamAutomaticMaskGenerator.postprocess_small_regions``, whose ``nms_thresh`` is the higher one of
    ``box_nms_thresh`` and ``crop_nms_thresh``.
    """
    if not len(masks):
        return masks
    cleaned, had_small = zip(*(without_small_regions(rle, min_area) for rle in masks.rles), strict=True)
    masks = replace(masks, rles=list(cleaned), boxes_xyxy=mask_ops.boxes_from_rles(list(cleaned)))
    preference = 1 - torch.tensor(had_small, dtype=torch.float32)
    one_group = torch.zeros(len(masks), dtype=torch.int64)
    return masks[mask_ops.nms(masks.boxes_xyxy, preference, one_group, nms_thresh)]


def without_small_regions(rle: RLE, min_area: float) -> tuple[RLE, bool]:
    """Return a mask with small holes filled, then small regions removed, and whether it had any.

    Args:
        rle: a mask with at least one pixel.
        min_area: pixels; holes and regions of fewer are small. A hole is any connected part of the background, at the
            image's edge too. If all regions are small, the largest stays.
    """
    mask = mask_ops.decode(rle)
    part = mask[_window(mask_ops.boxes_from_rles([rle])[0].int().tolist(), mask.shape, min_area)]
    holes = _small(~part, min_area)
    part |= holes
    islands = _small(part, min_area)
    if not holes.any() and not islands.any():
        return rle, False
    if (part == islands).all():
        labels = _regions(part)
        islands &= labels != np.bincount(labels[part]).argmax()
    part &= ~islands
    return mask_ops.encode(torch.from_numpy(mask.T[None]))[0], True


def _small(pixels: np.ndarray, min_area: float) -> np.ndarray:
    """Return the pixels (H, W) bool of connected regions of fewer than ``min_area`` pixels."""
    labels = _regions(pixels)
    is_small = np.bincount(labels.ravel()) < min_area
    is_small[0] = False  # what is not of the pixels
    return is_small[labels]


def _regions(pixels: np.ndarray) -> np.ndarray:
    """Return the number of the connected region of each pixel, (H, W) int32 from 1 on, and 0 of what is not set."""
    labels = np.zeros(pixels.shape, dtype=np.int32)
    ndimage.label(pixels, EIGHT_NEIGHBOURS, output=labels)
    return labels


def _window(box: list[int], size: tuple[int, ...], min_area: float) -> tuple[slice, slice]:
    """Return the part of the image, (rows, columns), that the regions of a mask can be searched in.

    It is the mask's box with a margin, up to the image's edge. Along a side where the image continues, the margin has
    ``min_area`` pixels of background or more, so that no part of the background that it cuts counts as small.
    """
    (x0, y0, x1, y1), (height, width) = box, size
    margin = math.ceil(max(math.sqrt(min_area), min_area / width, min_area / height))
    return slice(max(0, y0 - margin), y1 + 1 + margin), slice(max(0, x0 - margin), x1 + 1 + margin)
