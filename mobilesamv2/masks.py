"""Operations on masks, as pixels and as RLE: encoding, IoU, boxes, NMS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from mobilesamv2.rle_validation import counts_are_valid
from mobilesamv2.structures import RLE

# Typed as Any: its stubs accept only bytes as counts, its functions read text too.
coco_mask: Any = pycocotools.mask

MIN_OUTLINE = 100_000
"""Pixels; a polygon's outline may always be this long."""

POLYGONS_PER_UNION = 8
"""Masks merged at a time; pycocotools' time for all at once grows with the square of their number."""

MASK_THRESHOLD = 0.0
"""A pixel belongs to a mask if its logit is above this. Source: SAM."""


def encode(masks_wh: Tensor) -> list[RLE]:
    """Encode boolean masks as compressed RLE.

    Args:
        masks_wh: (D, W, H) bool, transposed, since run lengths are counted down the columns; this avoids a copy.

    Returns:
        D run-length encodings of size [H, W].
    """
    column_major = masks_wh.contiguous().cpu().numpy().view(np.uint8).transpose(2, 1, 0)  # (H, W, D)
    return [_with_text_counts(rle) for rle in coco_mask.encode(column_major)]


def from_run_lengths(run_lengths: np.ndarray, size: tuple[int, int]) -> RLE:
    """Convert run lengths to compressed RLE.

    Args:
        run_lengths: integers, alternately pixels outside and inside the mask, counted down the columns.
        size: (H, W), pixels; the run lengths must add up to H * W.
    """
    return _with_text_counts(coco_mask.frPyObjects({"size": list(size), "counts": run_lengths}, *size))


def encode_crop(mask_wh: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> RLE | None:
    """Encode the mask of an image region as a mask of the full image; None if it is empty.

    Args:
        mask_wh: (w, h) bool, transposed.
        corner: x, y of the region's first pixel in the image.
        size: (H, W) of the image, pixels.
    """
    height, width = size
    padded = np.pad(mask_wh, ((0, 0), (1, 1)))  # each column begins and ends outside
    columns, rows = np.nonzero(padded[:, 1:] != padded[:, :-1])
    changes, times = np.unique((corner[0] + columns) * height + corner[1] + rows, return_counts=True)
    # a run that ends at the bottom of a column may continue at the top of the next; the last column has no next
    changes = changes[(times == 1) & (changes < height * width)]
    return from_run_lengths(np.diff(changes, prepend=0, append=height * width), size) if len(changes) else None


def decode(rle: RLE) -> np.ndarray:
    """Decode one RLE to a boolean mask (H, W)."""
    return coco_mask.decode(rle).astype(bool)


def to_rle(segmentation: Any, size: tuple[int, int]) -> RLE:
    """Convert a COCO segmentation in any of its three forms to compressed RLE.

    Args:
        segmentation: polygons, uncompressed or compressed RLE.
        size: (H, W) of its image, pixels.

    Raises:
        ValueError: if it is none of the three, or an RLE whose size or run lengths disagree with the image's size.
    """
    height, width = size
    try:
        if isinstance(segmentation, list):
            _check_polygons(segmentation, size)
            _check_outline(segmentation, size)
            return union(coco_mask.frPyObjects(segmentation, height, width))
        rle_size = list(segmentation["size"])
        rle = dict(segmentation)
        if isinstance(rle["counts"], list):
            runs = np.asarray(rle["counts"], dtype=np.int64)
            valid = (runs >= 0).all() and runs.sum() == rle_size[0] * rle_size[1]
            rle = coco_mask.frPyObjects(rle, *rle_size) if valid else rle
        elif isinstance(rle["counts"], str | bytes):
            valid = counts_are_valid([rle["counts"]], rle_size[0] * rle_size[1])
        else:
            raise TypeError(f"counts of type {type(rle['counts']).__name__}")
        # otherwise pycocotools would never return, or read past the end
        if not valid:
            raise ValueError(f"the run lengths of an RLE must be non-negative and add up to its size, {rle_size}")
    except (KeyError, IndexError, TypeError, OverflowError) as error:
        raise ValueError(f"a segmentation must be polygons or an RLE with size and counts, got {error!r}") from error
    if rle_size != [height, width]:
        raise ValueError(f"an RLE must have its image's size {[height, width]} (height, width), got size {rle_size}")
    return _with_text_counts(rle)


def _check_polygons(polygons: list[Any], size: tuple[int, int]) -> None:
    """Check polygons: pycocotools never returns on values that are not finite, and reads four numbers as a box."""
    if not polygons:
        raise ValueError("a segmentation must have at least one polygon, got an empty list")
    bound = 10 * max(size)
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2:
            raise ValueError(
                f"a polygon must be a flat list x, y, x, y, ... of at least three points, got shape {points.shape}"
            )
        if not (np.abs(points) <= bound).all():
            raise ValueError(
                f"a polygon's coordinates must be finite and within {bound} pixels, "
                f"got {points.min()} to {points.max()}"
            )


def _check_outline(polygons: Sequence[Any], size: tuple[int, int]) -> None:
    """Check the length of the outline, which pycocotools walks in fifths of a pixel, outside the image too.

    So one segmentation takes no longer than a few passes over the pixels of its image.
    """
    outline = 0.0
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        outline += float(np.abs(points - np.roll(points, 1, axis=0)).max(1, initial=0).sum())
    limit = max(MIN_OUTLINE, size[0] * size[1])
    if outline > limit:
        raise ValueError(
            f"a segmentation's outline must have at most as many pixels as its image, {limit:,}, got {outline:,.0f}: "
            "it zigzags, or reaches far out of the image"
        )


def to_rles(segmentations: Sequence[Any], size: tuple[int, int], name: Callable[[int], str]) -> list[RLE]:
    """Convert COCO segmentations of one image to compressed RLE, several times as fast as one ``to_rle`` each.

    Args:
        segmentations: each polygons, uncompressed or compressed RLE.
        size: (H, W) of their image, pixels.
        name: returns the name of the i-th segmentation for an error message.

    Raises:
        ValueError: as ``to_rle``, prefixed with the name.
    """
    expected = list(size)
    if all(
        isinstance(s, dict) and s.get("size") == expected and isinstance(s.get("counts"), str) for s in segmentations
    ):
        counts = [s["counts"] for s in segmentations]
        if counts_are_valid(counts, size[0] * size[1]):
            return [{"size": expected, "counts": text} for text in counts]
    rles = []
    for i, segmentation in enumerate(segmentations):
        try:
            rles.append(to_rle(segmentation, size))
        except ValueError as error:
            raise ValueError(f"{name(i)}: {error}.") from error
    return rles


def _with_text_counts(rle: Any) -> RLE:
    """Convert pycocotools' bytes to text, which JSON requires and pycocotools also reads."""
    counts = rle["counts"]
    return {"size": [int(n) for n in rle["size"]], "counts": counts.decode() if isinstance(counts, bytes) else counts}


def iou(detections: list[RLE], ground_truths: list[RLE]) -> np.ndarray:
    """Compute the mask IoU of every pair, (D, G) float64."""
    if not detections or not ground_truths:
        return np.zeros((len(detections), len(ground_truths)))
    return np.asarray(coco_mask.iou(detections, ground_truths, [0] * len(ground_truths)))


def iou_at_least(detections: list[RLE], ground_truths: list[RLE], min_iou: float) -> np.ndarray:
    """Compute the mask IoU of pairs that reach ``min_iou``, (D, G) float64; lower ones may be reported as 0.

    Most pairs are skipped: the smaller area, and the overlap of the boxes, bound the intersection.
    """
    ious = np.zeros((len(detections), len(ground_truths)))
    if not detections or not ground_truths:
        return ious
    areas_d, areas_g = (areas(rles).double().numpy() for rles in (detections, ground_truths))
    boxes_d, boxes_g = (coco_mask.toBbox(rles) for rles in (detections, ground_truths))  # xywh
    ends_d, ends_g = (boxes[:, :2] + boxes[:, 2:] for boxes in (boxes_d, boxes_g))
    sides = np.minimum(ends_d[:, None], ends_g) - np.maximum(boxes_d[:, None, :2], boxes_g[:, :2])  # (D, G, 2)
    max_intersection = np.minimum(sides.clip(0).prod(-1), np.minimum(areas_d[:, None], areas_g))
    min_union = areas_d[:, None] + areas_g - max_intersection
    may_reach = max_intersection >= (min_iou - 1e-9) * min_union
    for g in np.flatnonzero(may_reach.any(0)):
        candidates = np.flatnonzero(may_reach[:, g])
        ious[candidates, g] = iou([detections[d] for d in candidates], [ground_truths[g]])[:, 0]
    return ious


def boxes_from_rles(rles: list[RLE]) -> Tensor:
    """Return the first and last covered column and row of each mask, both inclusive, (D, 4) xyxy float32, pixels.

    Args:
        rles: D masks, each with at least one pixel.
    """
    if not rles:
        return torch.zeros(0, 4)
    boxes = torch.from_numpy(coco_mask.toBbox(rles)).float()  # xywh, width and height in covered pixels
    boxes[:, 2:] += boxes[:, :2] - 1
    return boxes


def clip(rles: list[RLE], box: tuple[int, int, int, int]) -> list[RLE]:
    """Clear all pixels of masks outside a box; the masks keep their size, and some may become empty.

    Args:
        rles: masks of one size.
        box: x0, y0, x1, y1, pixels, exclusive at the right and the bottom.
    """
    if not rles:
        return []
    height, width = rles[0]["size"]
    x0, y0, x1, y1 = box
    inside = np.zeros((height, width, 1), dtype=np.uint8, order="F")
    inside[y0:y1, x0:x1] = 1
    window = coco_mask.encode(inside)[0]
    covered = coco_mask.toBbox(rles)  # xywh
    is_inside = (covered[:, :2] >= (x0, y0)).all(1) & (covered[:, :2] + covered[:, 2:] <= (x1, y1)).all(1)
    return [
        rle if inside_box else _with_text_counts(coco_mask.merge([rle, window], intersect=True))
        for rle, inside_box in zip(rles, is_inside.tolist(), strict=True)
    ]


def union(rles: list[RLE]) -> RLE:
    """Return the union of masks of one size."""
    while len(rles) > POLYGONS_PER_UNION:
        rles = [coco_mask.merge(rles[i : i + POLYGONS_PER_UNION]) for i in range(0, len(rles), POLYGONS_PER_UNION)]
    return _with_text_counts(coco_mask.merge(rles))


def uncrop(rles: list[RLE], corner: tuple[int, int], size: tuple[int, int]) -> list[RLE]:
    """Convert masks of a crop to masks of the image.

    Args:
        rles: at the size of the crop.
        corner: x, y of the crop's first pixel.
        size: (H, W) of the image, pixels.
    """
    x0, y0 = corner
    image = np.zeros((*size, 1), dtype=np.uint8, order="F")
    uncropped = []
    for rle in rles:
        height, width = rle["size"]
        image[y0 : y0 + height, x0 : x0 + width, 0] = coco_mask.decode(rle)
        uncropped.append(_with_text_counts(coco_mask.encode(image)[0]))
    return uncropped


def areas(rles: list[RLE]) -> Tensor:
    """Count the covered pixels of each mask, (D,) int64."""
    # pycocotools counts its arguments in eight bits
    parts = [np.asarray(coco_mask.area(rles[i : i + 255]), dtype=np.int64) for i in range(0, len(rles), 255)]
    return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64))


def nms(boxes_xyxy: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices that survive greedy box NMS within each group, highest score first.

    Args:
        boxes_xyxy: (D, 4), pixels.
        scores: (D,).
        groups: (D,) int64; only boxes of the same group suppress each other.
        iou_threshold: of two boxes of one group whose IoU is higher, the one of higher score is kept.
    """
    return batched_nms(boxes_xyxy, scores, groups, iou_threshold)
