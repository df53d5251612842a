"""Masks as pixels and as run lengths: RLE, boxes, NMS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from mobilesamv2.structures import RLE

# Its types know only bytes as counts; its functions read text too.
coco_mask: Any = pycocotools.mask

MASK_THRESHOLD = 0.0
"""A pixel belongs to a mask where its logit is above this. Source: SAM."""


def encode(masks_wh: Tensor) -> list[RLE]:
    """Boolean masks to compressed RLE.

    Args:
        masks_wh: (D, W, H) bool, transposed: run lengths go down the columns, so that no copy is needed.

    Returns:
        D run-length encodings of size [H, W].
    """
    fortran = masks_wh.contiguous().cpu().numpy().view(np.uint8).transpose(2, 1, 0)  # (H, W, D), column-major
    return [_with_text_counts(rle) for rle in coco_mask.encode(fortran)]


def from_run_lengths(run_lengths: np.ndarray, size: tuple[int, int]) -> RLE:
    """Run lengths to compressed RLE.

    Args:
        run_lengths: integers, pixels outside and inside the mask in turn, counted down the columns.
        size: (H, W), pixels; they add up to its product.
    """
    return _with_text_counts(coco_mask.frPyObjects({"size": list(size), "counts": run_lengths}, *size))


def encode_crop(mask_wh: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> RLE | None:
    """A mask of a part of an image as one of the image, empty elsewhere; None where it has no pixel.

    Args:
        mask_wh: (w, h) bool, transposed.
        corner: x, y of the part's first pixel in the image.
        size: (H, W) of the image, pixels.
    """
    height, width = size
    padded = np.pad(mask_wh, ((0, 0), (1, 1)))  # each column begins and ends outside
    columns, rows = np.nonzero(padded[:, 1:] != padded[:, :-1])
    changes, times = np.unique((corner[0] + columns) * height + corner[1] + rows, return_counts=True)
    # a run that ends at the foot of a column may go on at the head of the next; that of the last column just ends
    changes = changes[(times == 1) & (changes < height * width)]
    return from_run_lengths(np.diff(changes, prepend=0, append=height * width), size) if len(changes) else None


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
            sound = (runs >= 0).all() and runs.sum() == stated[0] * stated[1]
            rle = coco_mask.frPyObjects(rle, *stated) if sound else rle
        elif isinstance(rle["counts"], str | bytes):
            sound = _are_sound([rle["counts"]], stated[0] * stated[1])
        else:
            raise TypeError(f"counts are a {type(rle['counts']).__name__}")
        # pycocotools would run on for ever, or past the end, where they do not
        if not sound:
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
        if points.ndim != 1 or len(points) < 6 or len(points) % 2:
            raise ValueError("a polygon is a list of x, y, x, y and so on, of three points or more")
        if not (np.abs(points) <= bound).all():
            raise ValueError(f"a polygon has coordinates that are not finite, or beyond {bound} pixels")


def to_rles(segmentations: Sequence[Any], size: tuple[int, int], name: Callable[[int], str]) -> list[RLE]:
    """Many COCO segmentations of one image to compressed RLE, several times as fast as ``to_rle`` one by one.

    Args:
        segmentations: each polygons, uncompressed or compressed RLE.
        size: (H, W) of their image, pixels.
        name: what an error calls a segmentation, by its place.

    Raises:
        ValueError: as ``to_rle`` does, after the name.
    """
    stated = list(size)
    if all(isinstance(s, dict) and s.get("size") == stated and isinstance(s.get("counts"), str) for s in segmentations):
        counts = [s["counts"] for s in segmentations]
        if _are_sound(counts, size[0] * size[1]):
            return [{"size": stated, "counts": text} for text in counts]
    rles = []
    for i, segmentation in enumerate(segmentations):
        try:
            rles.append(to_rle(segmentation, size))
        except ValueError as error:
            raise ValueError(f"{name(i)}: {error}.") from error
    return rles


def _are_sound(counts: Sequence[str | bytes], pixels: int) -> bool:
    """Whether the run lengths of compressed RLEs are numbers from 0 that add up to an image's pixels.

    Each run is written in groups of five bits, the lowest first, with a bit that says whether more follow; from the
    fourth on it is the difference to the run before the last. Source: pycocotools' rleFrString.
    """
    texts = [text if isinstance(text, bytes) else text.encode() for text in counts]
    if not all(texts):
        return False
    if not texts:
        return True
    groups = np.frombuffer(b"".join(texts), dtype=np.uint8) - np.uint8(48)  # below 48 wraps to above 63
    text_ends = np.cumsum([len(text) for text in texts])
    is_last = (groups & 0x20) == 0
    if groups.max() > 63 or not is_last[text_ends - 1].all():
        return False
    ends = np.flatnonzero(is_last) + 1
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    if lengths.max() > 7:
        return False
    low = (groups & 0x1F).astype(np.int64)
    values = low[starts]
    for k in range(1, int(lengths.max())):
        longer = np.flatnonzero(lengths > k)
        values[longer] += low[starts[longer] + k] << (5 * k)
    values -= ((groups[ends - 1] & 0x10) > 0) * (np.int64(1) << (5 * lengths))
    first = np.concatenate([[0], np.searchsorted(ends, text_ends[:-1], side="right")])  # each text's first run
    return _add_up(values, first, pixels)


def _add_up(values: np.ndarray, first: np.ndarray, pixels: int) -> bool:
    """Whether run lengths, the later ones given as differences, are not negative and add up for every text."""
    counts = np.diff(np.append(first, len(values)))
    slots = (counts + 1) // 2 * 2  # an even number for each text, so that odd places are odd in all of them
    begin = np.concatenate([[0], np.cumsum(slots)[:-1]])
    padded = np.zeros(int(slots.sum()), dtype=np.int64)
    padded[np.arange(len(values)) + np.repeat(begin - first, counts)] = values
    initial = padded[begin]
    padded[begin] = 0  # the first run stands alone; later even places, and odd ones, each sum up
    last = np.append(begin[1:], len(padded)) // 2 - 1
    sums = initial.copy()
    for parity in (0, 1):
        so_far = np.cumsum(padded[parity::2])
        before = np.concatenate([[0], so_far[last[:-1]]])
        runs = so_far - np.repeat(before, slots // 2)
        odd_end = (counts % 2 == 1) & (parity == 1)  # their last slot is only there to make the number even
        runs[last[odd_end]] = 0
        if (runs < 0).any():
            return False
        sums += np.add.reduceat(runs, begin // 2)
    return bool((initial >= 0).all() and (sums == pixels).all())


def _with_text_counts(rle: Any) -> RLE:
    """JSON wants text where pycocotools gives bytes; it reads both."""
    counts = rle["counts"]
    return {"size": [int(n) for n in rle["size"]], "counts": counts.decode() if isinstance(counts, bytes) else counts}


def iou(detections: list[RLE], ground_truths: list[RLE]) -> np.ndarray:
    """Mask IoU of every pair, (D, G) float64."""
    if not detections or not ground_truths:
        return np.zeros((len(detections), len(ground_truths)))
    return np.asarray(coco_mask.iou(detections, ground_truths, [0] * len(ground_truths)))


def iou_from(detections: list[RLE], ground_truths: list[RLE], least: float) -> np.ndarray:
    """Mask IoU of the pairs that reach ``least``, (D, G) float64; others may be 0, since most need no comparison.

    The smaller area, and the overlap of the boxes, bound the intersection.
    """
    found = np.zeros((len(detections), len(ground_truths)))
    if not detections or not ground_truths:
        return found
    areas_d, areas_g = (areas(rles).double().numpy() for rles in (detections, ground_truths))
    boxes_d, boxes_g = (coco_mask.toBbox(rles) for rles in (detections, ground_truths))  # xywh
    ends_d, ends_g = (boxes[:, :2] + boxes[:, 2:] for boxes in (boxes_d, boxes_g))
    sides = np.minimum(ends_d[:, None], ends_g) - np.maximum(boxes_d[:, None, :2], boxes_g[:, :2])  # (D, G, 2)
    most = np.minimum(sides.clip(0).prod(-1), np.minimum(areas_d[:, None], areas_g))
    union = areas_d[:, None] + areas_g - most
    may = most >= (least - 1e-9) * union
    for g in np.flatnonzero(may.any(0)):
        chosen = np.flatnonzero(may[:, g])
        found[chosen, g] = iou([detections[d] for d in chosen], [ground_truths[g]])[:, 0]
    return found


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


def clip(rles: list[RLE], box: tuple[int, int, int, int]) -> list[RLE]:
    """The masks without what lies outside a box, at their size; some may be left without a pixel.

    Args:
        rles: masks of one size.
        box: x0, y0, x1, y1, pixels; the last column and row are not covered.
    """
    if not rles:
        return []
    height, width = rles[0]["size"]
    x0, y0, x1, y1 = box
    inside = np.zeros((height, width, 1), dtype=np.uint8, order="F")
    inside[y0:y1, x0:x1] = 1
    window = coco_mask.encode(inside)[0]
    covered = coco_mask.toBbox(rles)  # xywh
    within = (covered[:, :2] >= (x0, y0)).all(1) & (covered[:, :2] + covered[:, 2:] <= (x1, y1)).all(1)
    return [
        rle if whole else _with_text_counts(coco_mask.merge([rle, window], intersect=True))
        for rle, whole in zip(rles, within.tolist(), strict=True)
    ]


def union(rles: list[RLE]) -> RLE:
    """One mask of all pixels that one of the masks covers."""
    return _with_text_counts(coco_mask.merge(rles))


def uncrop(rles: list[RLE], corner: tuple[int, int], size: tuple[int, int]) -> list[RLE]:
    """Masks of a crop as masks of the image.

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
    """Covered pixels of each mask, (D,) int64."""
    # pycocotools counts what it is given in eight bits
    parts = [np.asarray(coco_mask.area(rles[i : i + 255]), dtype=np.int64) for i in range(0, len(rles), 255)]
    return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64))


def nms(boxes_xyxy: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Indices that survive greedy box NMS among the boxes of each group, best score first.

    Args:
        boxes_xyxy: (D, 4).
        scores: (D,).
        groups: (D,) int64.
        iou_threshold: of two boxes of one group that overlap by more, the better stays.
    """
    return batched_nms(boxes_xyxy, scores, groups, iou_threshold)
