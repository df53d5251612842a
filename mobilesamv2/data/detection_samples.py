"""Training samples of the detector: an image or a mosaic, with the boxes and masks of its objects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from mobilesamv2.data.augment import Augmentation, Placement, letterbox_placement, paint
from mobilesamv2.data.base import ImageDataset
from mobilesamv2.data.samples import EncoderSamples, Sample
from mobilesamv2.masks import areas, boxes_from_rles, clip, decode, tight_boxes
from mobilesamv2.structures import RLE, GroundTruth

PADDING_VALUE = 114
"""Grey value of the padding, as in ultralytics."""

MASK_STRIDE = 4
"""Pixels of the input per pixel of a mask, in each direction, as in ultralytics."""


class VisibleObjects(NamedTuple):
    """Objects of an image that are visible in the model's input.

    Attributes:
        boxes_xyxy: (G, 4) float64, pixels of the model's input; each encloses the visible part of its mask.
        rles: their masks, at the size of the image, including invisible parts.
        areas: (G,) float64, the annotations' areas, square pixels of the image.
        dropped: boxes of less than a pixel of the input that were skipped.
        merged: objects that were skipped because another one has the same box.
    """

    boxes_xyxy: Tensor
    rles: list[RLE]
    areas: Tensor
    dropped: int
    merged: int


class DetectionSamples(EncoderSamples):
    """Images and the boxes of their objects, all of one class, in the format of ultralytics' losses.

    Args:
        images: any data set of RGB images with their objects.
        image_size: S, pixels; the longest side is resized to it, and the rest padded with grey.
        augmentation: random augmentation in training; None for none.
        masks: include the objects' masks, for a detector with a segmentation head.
    """

    reads_objects = True

    def __init__(
        self,
        images: ImageDataset,
        image_size: int,
        augmentation: Augmentation | None = None,
        masks: bool = False,
    ) -> None:
        super().__init__(images, image_size)
        self.augmentation = augmentation
        self.masks = masks

    def __getitem__(self, index: int) -> Sample:
        """Return the single, letterboxed image without augmentation; see ``draw`` for the keys."""
        image, truth = self.images[index]
        return self._sample([(image, truth, letterbox_placement(truth.size, self.image_size))], truth.image_id)

    @override
    def draw(self, index: int, rng: np.random.Generator) -> Sample:
        """Draw an augmented sample; the other images of a mosaic are drawn from ``choose_from``.

        Returns:
            ``img`` (3, S, S) uint8 RGB; ``bboxes`` (G, 4) cxcywh in [0, 1]; ``areas`` (G,), the annotations' in square
            pixels of their image; ``image_id`` of the image at ``index``; ``boxes_dropped`` and ``boxes_merged``, the
            numbers of skipped ones. With masks also ``masks`` (S/4, S/4) int16: i + 1 where object i is, 0 where none
            is; objects are sorted by the area of their box, largest first, and where masks overlap the smaller box's
            wins.
        """
        augmentation, side = self.augmentation, self.image_size
        if augmentation is None:
            return self[index]
        in_mosaic = rng.random() < augmentation.mosaic
        others = rng.integers(self.choose_from.start, self.choose_from.stop, 3).tolist() if in_mosaic else []
        pairs = [self.images[i] for i in (index, *others)]
        placements = augmentation.placements([truth.size for _, truth in pairs], side, rng)
        parts = [(*pair, placement) for pair, placement in zip(pairs, placements, strict=True)]
        sample = self._sample(parts, pairs[0][1].image_id)
        pixels = augmentation.recolour(sample["img"].permute(1, 2, 0).numpy(), rng)
        sample["img"] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        return _flip_horizontally(sample) if rng.random() < augmentation.flip else sample

    def _sample(self, parts: list[tuple[np.ndarray, GroundTruth, Placement]], image_id: int) -> Sample:
        """Compose a sample from images at their placements, with their objects."""
        side = self.image_size
        canvas = np.full((side, side, 3), PADDING_VALUE, dtype=np.uint8)
        visible = []
        for image, truth, placement in parts:
            paint(canvas, image, placement)
            visible.append(visible_objects(truth, placement))
        boxes_xyxy, area = (torch.cat([getattr(o, name) for o in visible]) for name in ("boxes_xyxy", "areas"))
        placed_rles = [(rle, placement) for o, (*_, placement) in zip(visible, parts, strict=True) for rle in o.rles]
        sizes = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        order = torch.argsort(sizes.prod(1), descending=True, stable=True)
        centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
        sample: Sample = {
            "img": torch.from_numpy(canvas).permute(2, 0, 1),  # (3, S, S)
            "bboxes": (torch.cat([centres, sizes], dim=1)[order] / side).float(),
            "areas": area[order],
            "image_id": image_id,
            "boxes_dropped": sum(o.dropped for o in visible),
            "boxes_merged": sum(o.merged for o in visible),
        }
        if self.masks:
            sample["masks"] = instance_map([placed_rles[i] for i in order.tolist()], side)
        return sample

    @override
    def collate(self, samples: list[Sample]) -> Sample:
        """Collate samples to a batch.

        Returns:
            ``img`` (B, 3, S, S) uint8, ``bboxes`` and ``areas`` of all images, and for each box ``batch_idx`` and its
            class 0, ``cls``; ``image_id`` (B,), the numbers of skipped boxes, and with masks ``masks`` (B, S/4, S/4).
        """
        counts = torch.tensor([len(sample["bboxes"]) for sample in samples])
        batch: Sample = {
            "img": torch.stack([sample["img"] for sample in samples]),
            "bboxes": torch.cat([sample["bboxes"] for sample in samples]),
            "areas": torch.cat([sample["areas"] for sample in samples]),
            "batch_idx": torch.arange(len(samples)).repeat_interleave(counts).float(),
            "cls": torch.zeros(int(counts.sum()), 1),
            "image_id": torch.tensor([sample["image_id"] for sample in samples]),
            "boxes_dropped": sum(sample["boxes_dropped"] for sample in samples),
            "boxes_merged": sum(sample["boxes_merged"] for sample in samples),
            "broken": [sample.get("broken", "") for sample in samples],
        }
        if self.masks:
            batch["masks"] = torch.stack([sample["masks"] for sample in samples])
        return batch


def visible_objects(truth: GroundTruth, placement: Placement) -> VisibleObjects:
    """Return the objects visible in a placement's window, without duplicates and those of less than a pixel."""
    filled = [i for i, area in enumerate(areas(truth.rles).tolist()) if area]
    rles, annotated_areas = [truth.rles[i] for i in filled], torch.tensor(truth.areas, dtype=torch.float64)[filled]
    first = first_of_duplicates(boxes_from_rles(rles))
    rles, annotated_areas, merged = [rles[i] for i in first], annotated_areas[first], len(filled) - len(first)
    x0, y0, x1, y1 = placement.source(truth.size)
    window_in_image = (int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1)))  # includes partly visible pixels
    clipped = clip(rles, window_in_image)
    chosen = torch.nonzero(areas(clipped))[:, 0]
    corners = tight_boxes([clipped[i] for i in chosen.tolist()])
    window = torch.tensor(placement.window, dtype=torch.float64)
    boxes_xyxy = corners * placement.scale + torch.tensor(placement.offset * 2, dtype=torch.float64)
    boxes_xyxy = torch.minimum(torch.maximum(boxes_xyxy, window[[0, 1, 0, 1]]), window[[2, 3, 2, 3]])
    large = ((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) >= 1).all(1)
    chosen = chosen[large]
    return VisibleObjects(
        boxes_xyxy[large],
        [rles[i] for i in chosen.tolist()],
        annotated_areas[chosen],
        dropped=len(large) - len(chosen),
        merged=merged,
    )


def instance_map(objects: list[tuple[RLE, Placement]], side: int) -> Tensor:
    """Return (S/4, S/4) int16: i + 1 where the centre of a cell lies on object i, later objects above earlier ones."""
    cells = side // MASK_STRIDE
    instances = np.zeros((cells, cells), dtype=np.int16)
    centres = (np.arange(cells) + 0.5) * MASK_STRIDE
    for i, (rle, placement) in enumerate(objects):
        mask = decode(rle)
        ranges = []
        for axis, length in ((1, mask.shape[0]), (0, mask.shape[1])):  # rows, then columns
            inside = (centres >= placement.window[axis]) & (centres < placement.window[axis + 2])
            positions = ((centres - placement.offset[axis]) / placement.scale).astype(np.int64)
            ranges.append((np.flatnonzero(inside), positions[inside].clip(0, length - 1)))
        (rows, from_rows), (columns, from_columns) = ranges
        if len(rows) == 0 or len(columns) == 0:
            continue
        part = instances[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        part[mask[np.ix_(from_rows, from_columns)]] = i + 1
    return torch.from_numpy(instances)


def first_of_duplicates(boxes: Tensor) -> list[int]:
    """Return the indices of the boxes (G, 4) that equal no earlier one."""
    first: dict[tuple[float, ...], int] = {}
    for i, box in enumerate(boxes.tolist()):
        first.setdefault(tuple(box), i)
    return list(first.values())


def _flip_horizontally(sample: Sample) -> Sample:
    """Mirror a sample left to right."""
    boxes = sample["bboxes"].clone()
    boxes[:, 0] = 1 - boxes[:, 0]
    masks = {"masks": sample["masks"].flip(1)} if "masks" in sample else {}
    return sample | masks | {"img": sample["img"].flip(2), "bboxes": boxes}
