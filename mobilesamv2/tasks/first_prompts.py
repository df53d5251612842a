"""The prompts that training on masks begins with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
