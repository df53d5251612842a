"""Operations on masks, as pixels and as RLE: encoding, IoU, boxes, NMS."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobilesamv2.rle_validation import counts_are_valid
from mobilesamv2.structures import RLE, coco_mask, decode

MIN_OUTLINE = 100_000
"""Pixels; a polygon's outline may always be this long."""

POLYGONS_PER_UNION = 8
"""Masks merged at a time; pycocotools' time for all at once grows with the square of their number."""

MASK_THRESHOLD = 0.0
"""A pixel belongs to a mask if its logit is above this. Source: SAM."""

MIN_COORDINATES = 6
"""Numbers of a polygon of three points. pycocotools reads four numbers as a box, where the first polygon has four."""


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
            pieces = polygon_pieces(segmentation)
            _check_coordinates(pieces, size)
            _check_outline(pieces, size)
            return rle_from_polygons(pieces, size)
        rle_size = list(segmentation["size"])
        if rle_size == [height, width]:
            rle_size = [height, width]  # of whole floats, too
        rle = dict(segmentation) | {"size": rle_size}
        if isinstance(rle["counts"], list):
            runs, pixels = _run_lengths(rle["counts"]), rle_size[0] * rle_size[1]
            valid = ((runs >= 0) & (runs <= pixels)).all() and runs.sum() == pixels
            rle = coco_mask.frPyObjects(rle | {"counts": runs}, *rle_size) if valid else rle
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


def _run_lengths(counts: list[Any]) -> np.ndarray:
    """Return the counts of an uncompressed RLE as int64; NumPy would cut fractions, and read text and booleans."""
    kinds = set(map(type, counts))
    other = next((kind for kind in kinds if kind is bool or not issubclass(kind, int | float | np.number)), None)
    if other is not None:
        got = next(count for count in counts if type(count) is other)
        raise ValueError(f"the run lengths of an RLE must be whole numbers, got {repr(got)[:60]}")
    if all(issubclass(kind, int | np.integer) for kind in kinds):
        return np.asarray(counts, dtype=np.int64)
    runs = np.asarray(counts, dtype=np.float64)
    strange = runs[~(runs == np.floor(runs)) | ~(np.abs(runs) < 2**53)]
    if strange.size:
        raise ValueError(f"the run lengths of an RLE must be whole numbers, got {strange[0]}")
    return runs.astype(np.int64)


def polygon_pieces(polygons: Sequence[Any]) -> list[np.ndarray]:
    """Return the polygons of a COCO segmentation as float64 arrays x, y, x, y, ..., without those that cover nothing.

    A polygon of fewer than three points beside good ones is left out: pycocotools finds no pixel in it.

    Raises:
        ValueError: if one is not a flat list of numbers in pairs, or none has three points.
    """
    pieces = []
    for polygon in polygons:
        try:
            if not isinstance(polygon, list | tuple | np.ndarray):
                raise TypeError(f"a polygon must be a list, got {type(polygon).__name__}")
            points = array("d", polygon)  # several times as fast as NumPy, and refuses text and lists
        except (TypeError, OverflowError) as error:
            raise ValueError(f"a polygon must be a flat list of numbers x, y, x, y, ..., got {error}") from error
        if len(points) < MIN_COORDINATES:
            continue
        if len(points) % 2:
            raise ValueError(f"a polygon must be a flat list x, y, x, y, ..., got {len(points)} numbers")
        pieces.append(np.frombuffer(points))
    if not pieces:
        raise ValueError("a segmentation must have at least one polygon of at least three points, got none")
    return pieces


def coordinate_bound(size: tuple[int, int]) -> int:
    """Return how far from the origin a polygon of an image (H, W) may reach, pixels."""
    return 10 * max(size)


def _check_coordinates(pieces: Sequence[np.ndarray], size: tuple[int, int]) -> None:
    """Check polygons' coordinates: pycocotools never returns on values that are not finite."""
    bound = coordinate_bound(size)
    for points in pieces:
        if not (np.abs(points) <= bound).all():
            raise ValueError(
                f"a polygon's coordinates must be finite and within {bound} pixels, "
                f"got {points.min()} to {points.max()}"
            )


def rle_from_polygons(pieces: list[np.ndarray], size: tuple[int, int]) -> RLE:
    """Return the union of polygons as compressed RLE.

    Args:
        pieces: of ``polygon_pieces``, with coordinates within ``coordinate_bound`` and an outline within
            ``outline_bound``.
        size: (H, W) of the image, pixels.
    """
    return union(coco_mask.frPyObjects(pieces, *size))


def outline_bound(size: tuple[int, int]) -> int:
    """Return how long the outline of a segmentation of an image (H, W) may be, pixels.

    Pycocotools walks outlines in fifths of a pixel, outside the image too. Within this bound a segmentation takes no
    longer than a few passes over the pixels of its image.
    """
    return max(MIN_OUTLINE, size[0] * size[1])


def _check_outline(pieces: Sequence[np.ndarray], size: tuple[int, int]) -> None:
    """Check the length of the outline of a segmentation."""
    outline = 0.0
    for piece in pieces:
        points = piece.reshape(-1, 2)
        outline += float(np.abs(points - np.roll(points, 1, axis=0)).max(1, initial=0).sum())
    if outline > outline_bound(size):
        raise ValueError(
            f"a segmentation's outline must have at most as many pixels as its image, {outline_bound(size):,}, "
            f"got {outline:,.0f}: it zigzags, or reaches far out of the image"
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


def tight_boxes(rles: list[RLE]) -> Tensor:
    """Return the box of each mask's pixels, to the far edge of the last, (D, 4) xyxy float64, pixels.

    Args:
        rles: as of ``boxes_from_rles``.
    """
    boxes = boxes_from_rles(rles).double()
    boxes[:, 2:] += 1
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
        image[y0 : y0 + height, x0 : x0 + width, 0] = decode(rle)
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
    from torchvision.ops import batched_nms  # a second to import, which whoever only draws scenes does without

    return batched_nms(boxes_xyxy, scores, groups, iou_threshold)
