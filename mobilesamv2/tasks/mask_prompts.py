"""Prompts for training on masks: the initial box and point of each object, and points where a mask is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from mobilesamv2.structures import PointLabel

Prompt = dict[str, Any]
"""Keyword arguments of ``Sam.decode``."""


def initial_prompts(batch: Mapping[str, Tensor]) -> dict[str, Prompt]:
    """Return each object's box, which prompts for one mask, and its first point, which prompts for three.

    Args:
        batch: of ``PromptSamples``.

    Returns:
        The prompts of the N objects of all images, by kind: ``box`` and ``point``.
    """
    boxes, points = batch["boxes_xyxy"].flatten(0, 1), batch["points"].flatten(0, 1)[:, :1]
    labels = torch.full(points.shape[:2], PointLabel.FOREGROUND, dtype=torch.int64, device=points.device)
    return {
        "box": {"boxes_xyxy": boxes, "multimask_output": False},
        "point": {"points": points, "labels": labels, "multimask_output": True},
    }


def points_generator(task: pl.LightningModule) -> torch.Generator:
    """Return the generator of a step's points, seeded by the step alone: a resumed run draws the same points."""
    return torch.Generator(task.device).manual_seed(task.global_step if task.training else 0)


def draw_one(kinds: Sequence[str], generator: torch.Generator) -> str:
    """Draw one of several kinds of prompts, with equal probability."""
    return kinds[int(torch.randint(len(kinds), (), generator=generator, device=generator.device))]


def sample_error_points(
    masks: Tensor, targets: Tensor, generator: torch.Generator, image_size: int, count: int = 1
) -> tuple[Tensor, Tensor]:
    """Draw points for each pair of masks, uniformly among the cells where they differ.

    Args:
        masks: (N, h, w) bool.
        targets: (N, h, w) bool, the teacher's masks or the objects'.
        generator: draws the cells.
        image_size: S, pixels that the h cells span.
        count: points per pair.

    Returns:
        points (N, count, 2) xy in pixels of the model's input, at the centres of cells; and labels (N, count):
        foreground where only the target has the cell, background where only the mask has it, padding where the two are
        equal.
    """
    errors = (masks ^ targets).flatten(1)
    is_equal = ~errors.any(1, keepdim=True)
    cells = torch.multinomial(errors.float() + is_equal, count, replacement=True, generator=generator)  # (N, count)
    width = masks.shape[-1]
    stride = image_size / width
    points = torch.stack([cells % width, cells // width], dim=2) * stride + (stride - 1) / 2
    labels = targets.flatten(1).gather(1, cells).long()  # 1 foreground, 0 background
    return points, labels.masked_fill(is_equal, PointLabel.PADDING)


def append_point(prompt: Prompt, points: Tensor, labels: Tensor) -> Prompt:
    """Return a prompt with further points, for one mask: with them it is no longer ambiguous.

    Args:
        prompt: of N objects.
        points: (N, count, 2) xy, pixels of the model's input.
        labels: (N, count).
    """
    if "points" in prompt:
        points, labels = torch.cat([prompt["points"], points], 1), torch.cat([prompt["labels"], labels], 1)
    return prompt | {"points": points, "labels": labels, "multimask_output": False}
