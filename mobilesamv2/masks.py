"""Masks as pixels and as run lengths: RLE, boxes, stability score, NMS."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from mobilesamv2.structures import RLE

# Its types know only bytes as counts; its functions read text too.
coco_mask: Any = pycocotools.mask

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
    return coco_mask.decode(rle).astype(bool)


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
            _check_polygons(segmentation, size)
            polygons = coco_mask.frPyObjects(segmentation, height, width)
            return _with_text_counts(coco_mask.merge(polygons))
        stated = list(segmentation["size"])
        rle = dict(segmentation)
        if isinstance(rle["counts"], list):
            runs = np.asarray(rle["counts"], dtype=np.int64)
            rle = coco_mask.frPyObjects(rle, *stated)
        else:
            runs = _runs(rle["counts"])
        # pycocotools would run on for ever, or past the end, where they do not
        if (runs < 0).any() or runs.sum() != stated[0] * stated[1]:
            raise ValueError(f"the run lengths of an RLE do not add up to its size {stated}")
    except (KeyError, IndexError, TypeError, OverflowError) as error:
        raise ValueError(f"a segmentation is polygons or an RLE with size and counts ({error!r})") from error
    if stated != [height, width]:
        raise ValueError(f"an RLE of size {stated} lies on an image of size {[height, width]} (height, width)")
    return _with_text_counts(rle)


def _check_polygons(polygons: list[Any], size: tuple[int, int]) -> None:
    """Pycocotools runs for ever on what is not finite, and takes four numbers for a box."""
    if not polygons:
        raise ValueError("a segmentation has no polygon")
    bound = 10 * max(size)
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64)
        if points.ndim != 1 or len(points) < 4 or len(points) % 2:
            raise ValueError("a polygon is a list of x, y, x, y and so on, of three points or more")
        if not (np.abs(points) <= bound).all():
            raise ValueError(f"a polygon has coordinates that are not finite, or beyond {bound} pixels")


def _runs(counts: str | bytes) -> np.ndarray:
    """Run lengths of a compressed RLE; -1 where the text is not one.

    Each run is written in groups of five bits, the lowest first, with a bit that says whether more follow; from the
    fourth on it is the difference to the run before the last. Source: pycocotools' rleFrString.
    """
    groups = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, dtype=np.uint8).astype(np.int64) - 48
    is_last = (groups & 0x20) == 0
    if len(groups) == 0 or (groups < 0).any() or (groups > 63).any() or not is_last[-1]:
        return np.array([-1])
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    shift = 5 * (np.arange(len(groups)) - np.repeat(starts, ends - starts + 1))
    if shift.max() > 30:
        return np.array([-1])
    values = np.add.reduceat((groups & 0x1F) << shift, starts)
    runs = values - np.where(groups[ends] & 0x10, 1 << (shift[ends] + 5), 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def _with_text_counts(rle: Any) -> RLE:
    """JSON wants text where pycocotools gives bytes; it reads both."""
    counts = rle["counts"]
    return {"size": [int(n) for n in rle["size"]], "counts": counts.decode() if isinstance(counts, bytes) else counts}


def iou(detections: list[RLE], ground_truths: list[RLE]) -> np.ndarray:
    """Mask IoU of every pair, (D, G) float64."""
    if not detections or not ground_truths:
        return np.zeros((len(detections), len(ground_truths)))
    return np.asarray(coco_mask.iou(detections, ground_truths, [0] * len(ground_truths)))


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


def boxes_from_rles(rles: list[RLE]) -> Tensor:
    """First and last covered column and row of each mask, both inclusive, (D, 4) xyxy float32, pixels.

    Args:
        rles: D masks, each with a pixel at least.
    """
    if not rles:
        return torch.zeros(0, 4)
    boxes = torch.from_numpy(coco_mask.toBbox(rles)).float()  # xywh, width and height in covered pixels
    boxes[:, 2:] += boxes[:, :2] - 1
    return boxes


def areas(rles: list[RLE]) -> Tensor:
    """Covered pixels of each mask, (D,) int64."""
    return torch.tensor([int(coco_mask.area(rle)) for rle in rles], dtype=torch.int64)


def nms(boxes_xyxy: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices that survive greedy box NMS, best score first.

    Args:
        boxes_xyxy: (D, 4).
        scores: (D,).
        iou_threshold: of two boxes that overlap by more, the better stays.
    """
    return torchvision_nms(boxes_xyxy, scores, iou_threshold)
