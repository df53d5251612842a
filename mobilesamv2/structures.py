"""Data that the modules exchange: prompts, masks and the annotations of an image.

Axes are named once, here, and mean the same everywhere:

| letter | axis                                        |
|--------|---------------------------------------------|
| B      | images of a batch                           |
| N      | prompts                                     |
| P      | points of one prompt                        |
| M      | masks per prompt (1, or SAM's 3)            |
| D      | masks of an image, after filtering          |
| C      | channels                                    |
| H, W   | height and width of the original image      |
| S      | side of the model's square input            |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any, overload

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor

# Typed as Any: its stubs accept only bytes as counts, its functions read text too.
coco_mask: Any = pycocotools.mask

EMBEDDING_STRIDE = 16
"""Pixels of the model's input per cell of the image embedding, along an axis."""

RLE = dict[str, Any]
"""Compressed run-length encoding in COCO's format: ``{"size": [H, W], "counts": str}``."""


def decode(rle: RLE) -> np.ndarray:
    """Decode one RLE to a boolean mask (H, W)."""
    return coco_mask.decode(rle).astype(bool)


class PointLabel(IntEnum):
    """Labels of point prompts. Source: SAM."""

    PADDING = -1
    BACKGROUND = 0
    FOREGROUND = 1


@dataclass(frozen=True)
class Prompts:
    """N prompts on one image, all of one kind.

    Attributes:
        points: (N, P, 2) xy, pixels of the original image.
        labels: (N, P), values of ``PointLabel``: 1 foreground, 0 background, -1 padding.
        boxes_xyxy: (N, 4), pixels of the original image.
        scores: (N,) by which the sampler ranks its prompts, higher is better; None if it does not rank them.
        crops_xyxy: (N, 4) int64, pixels of the original image, exclusive at the right and the bottom: the part of
            the image that the model encodes for a prompt; None for the full image.

    Raises:
        ValueError: if there are neither points nor boxes, or the fields differ in length.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes_xyxy: Tensor | None = None
    scores: Tensor | None = None
    crops_xyxy: Tensor | None = None

    def __post_init__(self) -> None:
        if self.points is None and self.boxes_xyxy is None:
            raise ValueError("Prompts must have points or boxes_xyxy, got neither.")
        if (self.points is None) != (self.labels is None):
            raise ValueError("points and labels must come together (one label, 1, 0 or -1, per point), got one alone.")
        lengths = {f.name: len(v) for f in fields(self) if (v := getattr(self, f.name)) is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"All fields of Prompts must have the same length, got {lengths}.")

    def __len__(self) -> int:
        first = self.points if self.points is not None else self.boxes_xyxy
        return 0 if first is None else len(first)

    def __getitem__(self, index: slice | Tensor) -> Prompts:
        """Return the prompts at a slice, a boolean mask or an index tensor."""
        selected = {f.name: v[index] for f in fields(self) if (v := getattr(self, f.name)) is not None}
        return replace(self, **selected)

    def moved(self, x: int, y: int) -> Prompts:
        """Return the same prompts, moved by x pixels to the right and y pixels down."""
        points = None if self.points is None else self.points + torch.tensor([x, y])
        boxes = None if self.boxes_xyxy is None else self.boxes_xyxy + torch.tensor([x, y, x, y])
        return replace(self, points=points, boxes_xyxy=boxes)

    def batches(self, size: int) -> list[Prompts]:
        """Split the prompts, in order, into batches of at most ``size``."""
        return [self[i : i + size] for i in range(0, len(self), size)]

    @staticmethod
    def cat(parts: Sequence[Prompts]) -> Prompts:
        """Concatenate prompts of one kind, in order.

        Raises:
            ValueError: if the parts are of different kinds.
        """
        first = parts[0]
        names = [f.name for f in fields(first) if getattr(first, f.name) is not None]
        for part in parts:
            other_names = [f.name for f in fields(part) if getattr(part, f.name) is not None]
            if names != other_names:
                raise ValueError(
                    "All rounds of a prompt sampler must be of one kind (points or boxes, scored or not), "
                    f"got fields {names} and {other_names}."
                )
        return Prompts(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of a model's own scores that suit its masks; the defaults are SAM's.

    They belong to the weights, since small models predict lower IoUs than SAM does. A prompt sampler may have others.

    Attributes:
        pred_iou_thresh: a mask is kept above it.
        stability_score_thresh: a mask is kept at or above it.

    Raises:
        ValueError: if one is not a number from 0 to 1.

    Source: the defaults of SAM's automatic mask generator.
    """

    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}.")


SAM_THRESHOLDS = Thresholds()
"""Of SAM's automatic mask generator."""

SAM_2_THRESHOLDS = Thresholds(pred_iou_thresh=0.8)
"""Of SAM 2's automatic mask generator."""

EFFICIENT_SAM_THRESHOLDS = Thresholds(pred_iou_thresh=0.7, stability_score_thresh=0.9)
"""Of EfficientSAM's notebook that segments everything."""


@dataclass(frozen=True)
class Filters:
    """Thresholds that a mask must pass to be kept; the defaults keep every mask that is not empty.

    Attributes:
        pred_iou_thresh: a mask is kept above it; 0 switches the filter off.
        stability_score_thresh: a mask is kept at or above it; 0 switches the filter off.
        box_nms_thresh: of two boxes whose IoU is higher, the one of higher predicted IoU is kept; 1 switches NMS off.
            Masks of different crops are not compared here.
        crop_nms_thresh: of two boxes of different crops whose IoU is higher, the one of the smaller crop is kept; 1
            switches NMS off.
        min_mask_region_area: holes and disconnected regions of fewer pixels of the original image are removed, then
            NMS runs again; 0 switches it off.

    Raises:
        ValueError: if ``min_mask_region_area`` is negative.
    """

    pred_iou_thresh: float = 0.0
    stability_score_thresh: float = 0.0
    box_nms_thresh: float = 1.0
    crop_nms_thresh: float = 1.0
    min_mask_region_area: float = 0

    def __post_init__(self) -> None:
        if not self.min_mask_region_area >= 0:
            raise ValueError(f"min_mask_region_area must be at least 0, got {self.min_mask_region_area}.")


@dataclass(frozen=True, eq=False, repr=False)
class Masks:
    """The D masks of one image: a sequence of boolean arrays (H, W), stored as RLE.

    ``masks[0]`` and a loop decode one mask at a time; ``np.asarray(masks)``, which is ``to_numpy()``, decodes all of
    them into D * H * W bytes. A slice, a list or array of integers, and D truth values choose masks, still encoded.

    Example:
        >>> masks = SegEvery.from_pretrained("mini_conv")(image)
        >>> masks[0].shape == image.shape[:2], masks[0].dtype
        (True, dtype('bool'))
        >>> largest_first = sorted(masks, key=np.sum, reverse=True)
        >>> confident = masks[masks.predicted_iou > 0.5]
        >>> np.asarray(confident).shape == (len(confident), *image.shape[:2])
        True

    Attributes:
        size: (H, W) of the original image.
        rles: D masks at (H, W), each covering at least one pixel.
        boxes_xyxy: (D, 4), pixels of the original image, first and last covered column and row, both inclusive, as in
            SAM: a mask of one pixel has width 0.
        predicted_iou: (D,), the model's estimate of the mask's IoU.
        stability_score: (D,), IoU of the masks thresholded one logit above and one below the mask threshold.
        scores: (D,), by which the masks are ranked, higher is better.
        prompts: D prompts, the one that each mask was predicted from.
        prompt_index: (D,) int64, the index of that prompt in the sampler's order.
    """

    size: tuple[int, int]
    rles: list[RLE]
    boxes_xyxy: Tensor
    predicted_iou: Tensor
    stability_score: Tensor
    scores: Tensor
    prompts: Prompts
    prompt_index: Tensor

    def __len__(self) -> int:
        return len(self.rles)

    def __repr__(self) -> str:
        return f"Masks({len(self)} masks of {self.size[0]} x {self.size[1]} pixels)"

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield each mask, bool (H, W)."""
        return map(decode, self.rles)

    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray | Tensor) -> Masks: ...
    @overload
    def __getitem__(self, index: int | np.integer) -> np.ndarray: ...
    def __getitem__(self, index: Any) -> np.ndarray | Masks:
        """Return one mask, bool (H, W), or the masks that several indices, a slice or truth values choose, in order.

        Raises:
            IndexError: if there is no such mask, or ``index`` is of another kind.
        """
        numbers = np.arange(len(self))[index.cpu().numpy() if isinstance(index, Tensor) else index]
        if numbers.ndim == 0:
            return decode(self.rles[int(numbers)])
        if numbers.ndim > 1:
            raise IndexError(f"An index of masks must have one axis, got {index!r}; np.asarray(masks) is (D, H, W).")
        chosen = torch.from_numpy(numbers.copy())  # of positive strides
        return Masks(
            size=self.size,
            rles=[self.rles[i] for i in chosen.tolist()],
            boxes_xyxy=self.boxes_xyxy[chosen],
            predicted_iou=self.predicted_iou[chosen],
            stability_score=self.stability_score[chosen],
            scores=self.scores[chosen],
            prompts=self.prompts[chosen],
            prompt_index=self.prompt_index[chosen],
        )

    def to_numpy(self) -> np.ndarray:
        """Return all masks, bool (D, H, W): D * H * W bytes."""
        pixels = np.empty((len(self), *self.size), dtype=bool)
        for i, mask in enumerate(self):
            pixels[i] = mask
        return pixels

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return what ``to_numpy`` returns, for NumPy's functions."""
        if copy is False:
            raise ValueError("Masks must be decoded to become an array, which is a copy: copy must not be False.")
        pixels = self.to_numpy()
        return pixels if dtype is None else pixels.astype(dtype, copy=False)

    @staticmethod
    def cat(parts: Sequence[Masks]) -> Masks:
        """Concatenate masks of one image, in order."""
        tensors = ("boxes_xyxy", "predicted_iou", "stability_score", "scores", "prompt_index")
        return Masks(
            size=parts[0].size,
            rles=[rle for part in parts for rle in part.rles],
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in tensors},
            prompts=Prompts.cat([part.prompts for part in parts]),
        )

    def to_coco(self, image_id: int, category_id: int = 1) -> list[dict[str, Any]]:
        """Return COCO results, sorted by score, highest first; ``json.dump`` can write them directly.

        ``bbox`` is COCO's xywh in pixels, width and height counted in covered pixels, hence one larger than
        ``boxes_xyxy`` spans. SAM's keys are added to COCO's: ``predicted_iou``, ``stability_score`` and the prompt, as
        ``point_coords`` with ``point_labels`` or as ``prompt_box_xyxy``, with its ``crop_box`` (xywh, pixels) if it
        has one.
        """
        results: list[dict[str, Any]] = []
        for i in torch.argsort(self.scores, descending=True, stable=True).tolist():
            x0, y0, x1, y1 = self.boxes_xyxy[i].tolist()
            result = {
                "image_id": image_id,
                "category_id": category_id,
                "segmentation": dict(self.rles[i]),
                "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1],
                "score": float(self.scores[i]),
                "predicted_iou": float(self.predicted_iou[i]),
                "stability_score": float(self.stability_score[i]),
            }
            if self.prompts.points is not None and self.prompts.labels is not None:
                result["point_coords"] = self.prompts.points[i].tolist()
                result["point_labels"] = self.prompts.labels[i].tolist()
            if self.prompts.boxes_xyxy is not None:
                result["prompt_box_xyxy"] = self.prompts.boxes_xyxy[i].tolist()
            if self.prompts.crops_xyxy is not None:
                x0, y0, x1, y1 = self.prompts.crops_xyxy[i].tolist()
                result["crop_box"] = [x0, y0, x1 - x0, y1 - y0]
            results.append(result)
        return results


@dataclass(frozen=True)
class GroundTruth:
    """The annotated objects of one image, without crowds and ignored objects.

    Attributes:
        image_id: the image's id in its annotation file.
        size: (H, W) pixels.
        rles: masks in the order of the annotation file.
        areas: the annotations' ``area`` field, square pixels; it need not be the mask's own.
        frequencies: LVIS's ``r``, ``c`` or ``f`` of each annotation's category; None if the data set has none.
    """

    image_id: int
    size: tuple[int, int]
    rles: list[RLE]
    areas: list[float]
    frequencies: list[str | None]
