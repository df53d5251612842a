"""Boundary IoU: the IoU of two masks near their outlines, which says more of large objects than mask IoU does.

Source: Cheng et al. 2021, "Boundary IoU"; where the paper is silent, its released code: distances are counted along
rows, columns and diagonals alike, and the border of the image is an outline.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import find_objects, minimum_filter1d


def boundary_width(size: tuple[int, int], dilation_ratio: float) -> int:
    """Return the width of the boundary in an image (H, W), pixels, at least 1."""
    return max(1, round(dilation_ratio * float(np.hypot(*size))))


def boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of a mask (H, W) bool that lie within ``width`` pixels of its outline, (H, W) bool."""
    found = find_objects(mask.astype(np.uint8))
    if not found:
        return mask.copy()
    # outside of its box there is nothing to erode
    box = found[0]
    edge = mask.copy()
    edge[box] &= ~_eroded(mask[box], width)
    return edge


def boundary_ious(masks: np.ndarray, targets: np.ndarray, dilation_ratio: float) -> np.ndarray:
    """Return the boundary IoU (N,) of masks with others, both (N, H, W) bool; two empty ones agree.

    Args:
        masks: (N, H, W) bool.
        targets: (N, H, W) bool.
        dilation_ratio: width of boundaries as a share of the image's diagonal; the paper and its code have .02.
    """
    width = boundary_width((masks.shape[1], masks.shape[2]), dilation_ratio)
    ious = np.ones(len(masks))
    for i, (mask, other) in enumerate(zip(masks, targets, strict=True)):
        edge, other_edge = boundary(mask, width), boundary(other, width)
        union = np.count_nonzero(edge | other_edge)
        if union:
            ious[i] = np.count_nonzero(edge & other_edge) / union
    return ious


def _eroded(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return where the square of ``2 * pixels + 1`` around a pixel is in the mask; outside the array is nothing."""
    eroded = mask.astype(np.uint8)
    for axis in (0, 1):
        eroded = minimum_filter1d(eroded, 2 * pixels + 1, axis, mode="constant", cval=0)
    return eroded.astype(bool)
