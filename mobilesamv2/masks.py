"""Masks as pixels and as run lengths: RLE, boxes, stability score, NMS."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from mobilesamv2.structures import RLE

MASK_THRESHOLD = 0.0
"""A pixel belongs to a mask where its logit is above this. Source: SAM."""

STABILITY_OFFSET = 1.0
"""How far above and below the threshold the stability score cuts, in logits. Source: SAM's mask generator."""


def encode(masks_wh: Tensor) -> list[RLE]:
    """Boolean masks to compressed RLE.

    Args:
        masks_wh: (D, W, H) bool, transposed: run lengths go down the columns, so that no copy is needed.

    Returns:
        D run-length encodings of size [H, W].
    """
    fortran = masks_wh.contiguous().cpu().numpy().view(np.uint8).transpose(2, 1, 0)  # (H, W, D), column-major
    return [_with_text_counts(rle) for rle in coco_mask.encode(fortran)]


def decode(rle: RLE) -> np.ndarray:
    """One RLE to a boolean mask (H, W)."""
    return coco_mask.decode(rle).astype(bool)  # pyright: ignore[reportArgumentType]


def to_rle(segmentation: Any, size: tuple[int, int]) -> RLE:
    """A COCO segmentation in any of its three forms to compressed RLE.

    Args:
        segmentation: polygons, uncompressed or compressed RLE.
        size: (H, W) of its image, pixels.

    Raises:
        ValueError: it is none of the three, or an RLE whose size or run lengths disagree with the image's size.
    """
    height, width = size
    try:
        if isinstance(segmentation, list):
            polygons: Any = coco_mask.frPyObjects(segmentation, height, width)  # pyright: ignore[reportArgumentType]
            return _with_text_counts(coco_mask.merge(polygons))
        stated = list(segmentation["size"])
        rle = dict(segmentation)
        if isinstance(rle["counts"], list):
            if sum(rle["counts"]) != stated[0] * stated[1] or min(rle["counts"], default=0) < 0:
                raise ValueError(f"the run lengths of an RLE do not add up to its size {stated}")
            rle = coco_mask.frPyObjects(rle, *stated)  # pyright: ignore[reportArgumentType]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"a segmentation is polygons or an RLE with size and counts ({error!r})") from error
    if stated != [height, width]:
        raise ValueError(f"an RLE of size {stated} lies on an image of size {[height, width]} (height, width)")
    return _with_text_counts(rle)


def _with_text_counts(rle: Any) -> RLE:
    """pycocotools gives bytes; JSON wants text, and pycocotools reads both."""
    counts = rle["counts"]
    return {"size": [int(n) for n in rle["size"]], "counts": counts.decode() if isinstance(counts, bytes) else counts}


def iou(detections: list[RLE], ground_truths: list[RLE]) -> np.ndarray:
    """Mask IoU of every pair, (D, G) float64."""
    if not detections or not ground_truths:
        return np.zeros((len(detections), len(ground_truths)))
    return np.asarray(coco_mask.iou(detections, ground_truths, [0] * len(ground_truths)))  # pyright: ignore


def stability_score(logits: Tensor) -> Tensor:
    """IoU of the masks cut one logit above and one logit below the threshold.

    Args:
        logits: (D, ., .) at the size of the original image.

    Returns:
        (D,) in [0, 1]; 0 where no pixel comes within a logit of the mask (SAM's own code gives NaN there).
    """
    inner = _count(logits > MASK_THRESHOLD + STABILITY_OFFSET)
    outer = _count(logits > MASK_THRESHOLD - STABILITY_OFFSET)
    return inner / outer.clamp(min=1)


def _count(masks: Tensor) -> Tensor:
    """Pixels of each mask; summing bytes is several times as fast as summing booleans."""
    return masks.flatten(1).view(torch.uint8).sum(1, dtype=torch.int32)


def boxes_from_masks(masks_wh: Tensor) -> Tensor:
    """First and last covered column and row, both inclusive.

    Args:
        masks_wh: (D, W, H) bool, transposed, each with a pixel at least.

    Returns:
        (D, 4) xyxy float32, pixels.
    """
    edges = []
    for covered in (masks_wh.any(2), masks_wh.any(1)):  # columns (D, W), then rows (D, H)
        first = covered.int().argmax(1)
        last = covered.shape[1] - 1 - covered.flip(1).int().argmax(1)
        edges.append((first, last))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], dim=1).float()


def nms(boxes_xyxy: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices that survive greedy box NMS, best score first.

    Args:
        boxes_xyxy: (D, 4).
        scores: (D,).
        iou_threshold: 1 or more keeps every box and only sorts.
    """
    if iou_threshold >= 1:
        return torch.argsort(scores, descending=True, stable=True)
    return torchvision_nms(boxes_xyxy, scores, iou_threshold)
