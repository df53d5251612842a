"""The prompts of training on masks: those it begins with, and the points that correct a mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

FOREGROUND, PADDING = 1, -1
"""Labels of points; the background has 0."""

Prompt = dict[str, Any]


def first_prompts(batch: Mapping[str, Tensor]) -> dict[str, Prompt]:
    """The box of each object, for one mask, and its point, for three, as ``Sam.decode`` takes them."""
    boxes, points = batch["boxes_xyxy"].flatten(0, 1), batch["points"].flatten(0, 1)
    labels = torch.full(points.shape[:2], FOREGROUND, dtype=torch.int64, device=points.device)
    return {
        "box": {"boxes_xyxy": boxes, "multimask": False},
        "point": {"points": points, "labels": labels, "multimask": True},
    }


def points_generator(task: pl.LightningModule) -> torch.Generator:
    """What draws the points of a step: of the step's number alone, so that a resumed run draws the same ones."""
    return torch.Generator(task.device).manual_seed(task.global_step if task.training else 0)


def disagreement(masks: Tensor, wanted: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A point for each pair of masks, drawn uniformly among the cells where they differ.

    Args:
        masks: (N, S/4, S/4) bool.
        wanted: (N, S/4, S/4) bool, the teacher's or the object's.
        generator: draws the cells.

    Returns:
        points (N, 1, 2) xy in pixels of the model's input, at the centres of cells; and labels (N, 1): foreground where
        the wanted mask alone has the cell, background where the other has it, padding where the masks are equal.
    """
    differs = (masks ^ wanted).flatten(1)
    none = ~differs.any(1)
    cell = torch.multinomial(differs.float() + none[:, None], 1, generator=generator)[:, 0]
    width = masks.shape[-1]
    points = torch.stack([cell % width, cell // width], dim=1) * 4.0 + 1.5
    labels = wanted.flatten(1).gather(1, cell[:, None])[:, 0].long()  # 1 foreground, 0 background
    return points[:, None], labels.masked_fill(none, PADDING)[:, None]


def with_point(prompt: Prompt, points: Tensor, labels: Tensor) -> Prompt:
    """A prompt with one more point, asked for one mask: it is no longer ambiguous."""
    if "points" in prompt:
        points, labels = torch.cat([prompt["points"], points], 1), torch.cat([prompt["labels"], labels], 1)
    return prompt | {"points": points, "labels": labels, "multimask": False}
