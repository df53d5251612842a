"""What travels between the rooms: prompts, masks and the annotations of an image.

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

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

RLE = dict[str, Any]
"""Compressed run-length encoding as COCO writes it: ``{"size": [H, W], "counts": str}``."""


@dataclass(frozen=True)
class Prompts:
    """N prompts on one image, all of one kind.

    Attributes:
        points: (N, P, 2) xy, pixels of the original image.
        labels: (N, P), 1 foreground, 0 background, -1 padding.
        boxes_xyxy: (N, 4), pixels of the original image.
        scores: (N,) by which the sampler ranks its prompts, higher is better; None where it has no ranking.
        crops_xyxy: (N, 4) int64, pixels of the original image, the last column and row not covered: the part of the
            image that is shown to the model for a prompt; None for all of it.

    Raises:
        ValueError: neither points nor boxes, or lengths that disagree.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes_xyxy: Tensor | None = None
    scores: Tensor | None = None
    crops_xyxy: Tensor | None = None

    def __post_init__(self) -> None:
        if self.points is None and self.boxes_xyxy is None:
            raise ValueError("Prompts need points or boxes_xyxy.")
        if (self.points is None) != (self.labels is None):
            raise ValueError("points and labels come together: one label (1, 0 or -1) for each point.")
        lengths = {f.name: len(v) for f in fields(self) if (v := getattr(self, f.name)) is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Prompts disagree about their number: {lengths}.")

    def __len__(self) -> int:
        first = self.points if self.points is not None else self.boxes_xyxy
        return 0 if first is None else len(first)

    def __getitem__(self, index: slice | Tensor) -> Prompts:
        """The prompts at a slice, a boolean mask or an index tensor."""
        chosen = {f.name: v[index] for f in fields(self) if (v := getattr(self, f.name)) is not None}
        return replace(self, **chosen)

    def moved(self, x: int, y: int) -> Prompts:
        """The same prompts, x pixels further right and y further down."""
        points = None if self.points is None else self.points + torch.tensor([x, y])
        boxes = None if self.boxes_xyxy is None else self.boxes_xyxy + torch.tensor([x, y, x, y])
        return replace(self, points=points, boxes_xyxy=boxes)

    def batches(self, size: int) -> list[Prompts]:
        """These prompts in order, at most ``size`` at a time."""
        return [self[i : i + size] for i in range(0, len(self), size)]

    @staticmethod
    def cat(parts: Sequence[Prompts]) -> Prompts:
        """The prompts of several parts of one kind, in order."""
        first = parts[0]
        names = [f.name for f in fields(first) if getattr(first, f.name) is not None]
        for part in parts:
            if names != [f.name for f in fields(part) if getattr(part, f.name) is not None]:
                raise ValueError("The rounds of a prompt sampler are all of one kind: points or boxes, scored or not.")
        return Prompts(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True)
class Filters:
    """What a mask must pass to be kept; the defaults keep every mask that is not empty.

    Attributes:
        predicted_iou: a mask is kept above it; 0 switches the filter off.
        stability: a mask is kept from it on; 0 switches the filter off.
        nms_iou: of two boxes that overlap by more, the one of higher predicted IoU stays; 1 switches NMS off. Masks of
            different crops do not meet here.
        crop_nms_iou: of two boxes of different crops that overlap by more, the one of the smaller crop stays.
    """

    predicted_iou: float = 0.0
    stability: float = 0.0
    nms_iou: float = 1.0
    crop_nms_iou: float = 1.0


@dataclass(frozen=True)
class Masks:
    """The D masks of one image.

    Attributes:
        size: (H, W) of the original image.
        rles: D masks at (H, W), each covering a pixel at least.
        boxes_xyxy: (D, 4), first and last covered column and row, both inclusive, as SAM gives them: a mask of one
            pixel has width 0.
        predicted_iou: (D,) the model's own estimate of the mask's IoU.
        stability_score: (D,) IoU of the masks cut one logit above and one below the threshold.
        scores: (D,) by which the masks are ranked, higher is better.
        prompts: D prompts, the one that each mask came from.
        prompt_index: (D,) int64, the place of that prompt in the order of the sampler.
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

    def __getitem__(self, index: Tensor) -> Masks:
        """The masks at an index tensor, in its order, or at a boolean one."""
        if index.dtype == torch.bool:
            index = index.nonzero().flatten()
        return Masks(
            size=self.size,
            rles=[self.rles[i] for i in index.tolist()],
            boxes_xyxy=self.boxes_xyxy[index],
            predicted_iou=self.predicted_iou[index],
            stability_score=self.stability_score[index],
            scores=self.scores[index],
            prompts=self.prompts[index],
            prompt_index=self.prompt_index[index],
        )

    @staticmethod
    def cat(parts: Sequence[Masks]) -> Masks:
        """The masks of several parts of one image, in order."""
        tensors = ("boxes_xyxy", "predicted_iou", "stability_score", "scores", "prompt_index")
        return Masks(
            size=parts[0].size,
            rles=[rle for part in parts for rle in part.rles],
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in tensors},
            prompts=Prompts.cat([part.prompts for part in parts]),
        )

    def to_coco(self, image_id: int, category_id: int = 1) -> list[dict[str, Any]]:
        """These masks as COCO results, best score first; ``json.dump`` takes them as they are.

        ``bbox`` is COCO's xywh, width and height counted in covered pixels, hence one larger than
        ``boxes_xyxy`` spans. Beside COCO's keys stand SAM's: ``predicted_iou``, ``stability_score`` and the prompt, as
        ``point_coords`` with ``point_labels`` or as ``prompt_box_xyxy``, with its ``crop_box`` (xywh) if it has one.
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
    """The annotated objects of one image; crowds and ignored objects are left out.

    Attributes:
        image_id: the image's id in its annotation file.
        size: (H, W) pixels.
        rles: masks in the order of the file.
        areas: the annotations' ``area`` field, square pixels; it need not be the mask's own.
        frequencies: LVIS's ``r``, ``c`` or ``f`` of each annotation's category; None where the data set has none.
    """

    image_id: int
    size: tuple[int, int]
    rles: list[RLE]
    areas: list[float]
    frequencies: list[str | None]
