"""Losses of a prompt head's boxes: which points are to predict which object, and how well they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou, generalized_box_iou_loss

from mobilesamv2.models.prompt_head import BoxPredictions

QUALITY_POWER, IOU_POWER = 0.5, 6.0
"""Of the alignment of a point with an object. Source: YOLOv8's setting of TOOD's alpha and beta."""


class Assignment(NamedTuple):
    """What each of A points is to predict.

    Attributes:
        object_index: (A,) int64, the object; -1 for background.
        quality: (A,), the quality to predict, 0 for background.
    """

    object_index: Tensor
    quality: Tensor


@torch.no_grad()
def assign_points(
    quality: Tensor, boxes_xyxy: Tensor, points: Tensor, truths_xyxy: Tensor, points_per_object: int
) -> Assignment:
    """Assign to each object the points in its box that predict it best so far.

    Each object gets the ``points_per_object`` points of highest alignment, quality^.5 * IoU^6, out of those in its box
    and the one nearest to its centre; a point that several objects get goes to the one whose IoU is highest. The best
    point is to predict its own IoU as its quality, the others less in proportion to their alignment.

    Args:
        quality: (A,) logits.
        boxes_xyxy: (A, 4), pixels of the model's input.
        points: (A, 2) xy, in the same frame.
        truths_xyxy: (G, 4), in the same frame.
        points_per_object: at most.

    Source: TOOD, section 3.2, task-aligned sample assignment.
    """
    if not len(truths_xyxy):
        return Assignment(torch.full_like(quality, -1, dtype=torch.int64), torch.zeros_like(quality))
    centres = (truths_xyxy[:, :2] + truths_xyxy[:, 2:]) / 2
    (x, y), (x0, y0, x1, y1) = points.unbind(1), truths_xyxy[..., None].unbind(1)
    is_inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)  # (G, A)
    is_inside.scatter_(1, torch.cdist(centres, points).argmin(1, keepdim=True), True)
    iou = box_iou(truths_xyxy, boxes_xyxy)
    alignment = quality.sigmoid() ** QUALITY_POWER * iou**IOU_POWER
    best, chosen = torch.where(is_inside, alignment, -1.0).topk(min(points_per_object, len(points)), dim=1)  # (G, k)
    is_chosen = torch.zeros_like(is_inside).scatter_(1, chosen, best >= 0)
    overlap, object_index = torch.where(is_chosen, iou, -1.0).max(0)
    object_index = torch.where(overlap >= 0, object_index, -1)
    scale = _highest(iou, is_chosen) / _highest(alignment, is_chosen).clamp(min=1e-12)  # (G,)
    target = (alignment * scale[:, None]).gather(0, object_index.clamp(min=0)[None])[0]
    return Assignment(object_index, torch.where(object_index >= 0, target, 0.0))


def box_losses(
    predictions: BoxPredictions, truths_xyxy: Sequence[Tensor], points_per_object: int
) -> tuple[Tensor, Tensor]:
    """Return the losses of quality and of boxes, both in relation to the quality that the batch is to predict.

    The quality's is the binary cross-entropy, the boxes' one minus the generalized IoU, weighted by the quality to
    predict.

    Args:
        predictions: of B images.
        truths_xyxy: for each image its objects' boxes (G, 4), pixels of the model's input.
        points_per_object: see ``assign_points``.
    """
    qualities, box_terms = [], []
    for quality, boxes, truths in zip(predictions.quality, predictions.boxes_xyxy, truths_xyxy, strict=True):
        target = assign_points(quality, boxes, predictions.points, truths, points_per_object)
        found = target.object_index >= 0
        qualities.append(target.quality)
        giou_loss = generalized_box_iou_loss(boxes[found], truths[target.object_index[found]])
        box_terms.append((giou_loss * target.quality[found]).sum())
    targets = torch.stack(qualities)
    total = targets.sum().clamp(min=1)
    cross_entropy = F.binary_cross_entropy_with_logits(predictions.quality, targets, reduction="sum")
    return cross_entropy / total, torch.stack(box_terms).sum() / total


def _highest(values: Tensor, is_chosen: Tensor) -> Tensor:
    """Return the highest of the chosen values (G, A) of each object, (G,)."""
    return torch.where(is_chosen, values, 0.0).amax(1)
