"""Training samples of the detector: an image or a mosaic, and the boxes and masks of its objects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mobilesamv2.data.annotated_images import AnnotatedImages
from mobilesamv2.data.augment import Augmentation, Placement, paint, upright
from mobilesamv2.data.samples import EncoderSamples, Sample
from mobilesamv2.masks import areas, boxes_from_rles, clip, decode
from mobilesamv2.structures import RLE, GroundTruth

GREY = 114
"""Of the padding, as ultralytics has it."""

MASK_STRIDE = 4
"""Pixels of the input for one of the masks, each way, as ultralytics has it."""


class Objects(NamedTuple):
    """What of an image's objects lies in the model's input.

    Attributes:
        boxes_xyxy: (G, 4) float64, pixels of the model's input; each encloses what is in sight of its mask.
        rles: their masks, at the size of the image, whole.
        areas: (G,) float64, the annotations' areas, square pixels of the image.
        dropped: boxes of less than a pixel of the input that were left out.
        merged: objects that were left out because another one has the same box.
    """

    boxes_xyxy: Tensor
    rles: list[RLE]
    areas: Tensor
    dropped: int
    merged: int


class DetectionSamples(EncoderSamples):
    """Images and the boxes of their objects, all of one class, as ultralytics' losses read them.

    Args:
        images: any data set of RGB images with their objects.
        image_size: S, pixels; the longest side becomes that, and the rest is padded with grey.
        augmentation: what is left to chance; None leaves nothing.
        masks: give the objects' masks too, for a detector with a segmentation head.
    """

    def __init__(
        self,
        images: AnnotatedImages,
        image_size: int,
        augmentation: Augmentation | None = None,
        masks: bool = False,
    ) -> None:
        super().__init__(images, image_size)
        self.augmentation = augmentation
        self.masks = masks

    def __getitem__(self, index: int) -> Sample:
        """The image upright and alone; see ``draw`` for the keys."""
        image, truth = self.images[index]
        return self._sample([(image, truth, upright(truth.size, self.image_size))], truth.image_id)

    def draw(self, index: int, rng: np.random.Generator) -> Sample:
        """An augmented sample; the other images of a mosaic are drawn from ``choose_from``.

        Returns:
            ``img`` (3, S, S) uint8 RGB; ``bboxes`` (G, 4) xywh of centres in [0, 1]; ``areas`` (G,), the annotations'
            in square pixels of their image; ``image_id`` of the image asked for; ``boxes_dropped`` and
            ``boxes_merged``, how many were left out. With masks also ``masks`` (S/4, S/4) int16: i + 1 where box i is,
            0 where none is; the largest box comes first, and of masks that overlap the smaller box's counts.
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
        return _mirrored(sample) if rng.random() < augmentation.flip else sample

    def _sample(self, parts: list[tuple[np.ndarray, GroundTruth, Placement]], image_id: int) -> Sample:
        """Images at their places, and their objects."""
        side = self.image_size
        canvas = np.full((side, side, 3), GREY, dtype=np.uint8)
        found = []
        for image, truth, placement in parts:
            paint(canvas, image, placement)
            found.append(objects_in_sight(truth, placement))
        boxes_xyxy, area = (torch.cat([getattr(o, name) for o in found]) for name in ("boxes_xyxy", "areas"))
        of_part = [(rle, placement) for o, (*_, placement) in zip(found, parts, strict=True) for rle in o.rles]
        sizes = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        order = torch.argsort(sizes.prod(1), descending=True, stable=True)
        centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
        sample: Sample = {
            "img": torch.from_numpy(canvas).permute(2, 0, 1),  # (3, S, S)
            "bboxes": (torch.cat([centres, sizes], dim=1)[order] / side).float(),
            "areas": area[order],
            "image_id": image_id,
            "boxes_dropped": sum(o.dropped for o in found),
            "boxes_merged": sum(o.merged for o in found),
        }
        if self.masks:
            sample["masks"] = overlap_map([of_part[i] for i in order.tolist()], side)
        return sample

    def collate(self, samples: list[Sample]) -> Sample:
        """A batch.

        Returns:
            ``img`` (B, 3, S, S) uint8, ``bboxes`` and ``areas`` of all images, and for each box ``batch_idx`` and its
            class 0, ``cls``; ``image_id`` (B,), the numbers of boxes left out, and with masks ``masks`` (B, S/4, S/4).
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


def objects_in_sight(truth: GroundTruth, placement: Placement) -> Objects:
    """The objects of an image that its window shows, without duplicates and without those of less than a pixel."""
    filled = [i for i, area in enumerate(areas(truth.rles).tolist()) if area]
    rles, stated = [truth.rles[i] for i in filled], torch.tensor(truth.areas, dtype=torch.float64)[filled]
    first = _first_of_each(boxes_from_rles(rles))
    rles, stated, merged = [rles[i] for i in first], stated[first], len(filled) - len(first)
    x0, y0, x1, y1 = placement.source(truth.size)
    visible = (int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1)))  # every pixel of which something is seen
    seen = clip(rles, visible)
    chosen = torch.nonzero(areas(seen))[:, 0]
    corners = boxes_from_rles([seen[i] for i in chosen.tolist()]).double()
    corners[:, 2:] += 1  # whole pixels
    window = torch.tensor(placement.window, dtype=torch.float64)
    boxes_xyxy = corners * placement.scale + torch.tensor(placement.offset * 2, dtype=torch.float64)
    boxes_xyxy = torch.minimum(torch.maximum(boxes_xyxy, window[[0, 1, 0, 1]]), window[[2, 3, 2, 3]])
    large = ((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) >= 1).all(1)
    chosen = chosen[large]
    return Objects(
        boxes_xyxy[large],
        [rles[i] for i in chosen.tolist()],
        stated[chosen],
        dropped=len(large) - len(chosen),
        merged=merged,
    )


def overlap_map(objects: list[tuple[RLE, Placement]], side: int) -> Tensor:
    """(S/4, S/4) int16: i + 1 where the centre of a cell lies on object i, later objects above earlier ones."""
    cells = side // MASK_STRIDE
    found = np.zeros((cells, cells), dtype=np.int16)
    centres = (np.arange(cells) + 0.5) * MASK_STRIDE
    for i, (rle, placement) in enumerate(objects):
        mask = decode(rle)
        ranges = []
        for axis, length in ((1, mask.shape[0]), (0, mask.shape[1])):  # rows, then columns
            inside = (centres >= placement.window[axis]) & (centres < placement.window[axis + 2])
            places = ((centres - placement.offset[axis]) / placement.scale).astype(np.int64)
            ranges.append((np.flatnonzero(inside), places[inside].clip(0, length - 1)))
        (rows, from_rows), (columns, from_columns) = ranges
        if len(rows) == 0 or len(columns) == 0:
            continue
        part = found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        part[mask[np.ix_(from_rows, from_columns)]] = i + 1
    return torch.from_numpy(found)


def _first_of_each(boxes: Tensor) -> list[int]:
    """Places of the boxes (G, 4) that equal no earlier one."""
    seen: dict[tuple[float, ...], int] = {}
    for i, box in enumerate(boxes.tolist()):
        seen.setdefault(tuple(box), i)
    return list(seen.values())


def _mirrored(sample: Sample) -> Sample:
    """The mirror image of a sample, left to right."""
    boxes = sample["bboxes"].clone()
    boxes[:, 0] = 1 - boxes[:, 0]
    masks = {"masks": sample["masks"].flip(1)} if "masks" in sample else {}
    return sample | masks | {"img": sample["img"].flip(2), "bboxes": boxes}
