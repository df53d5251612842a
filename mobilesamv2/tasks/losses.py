"""Losses of masks and embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def embedding_losses(student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean squared error of image embeddings, and one minus their cosine similarity: scalars, means over cells.

    Args:
        student: (B, C, h, w).
        teacher: (B, C, h, w).
        valid: (B, h, w) bool, the cells that count; None counts all.

    Source: MobileSAM, section 3 (decoupled distillation).
    """
    error = (student - teacher).square().mean(1)  # (B, h, w)
    angle = 1 - F.cosine_similarity(student, teacher)
    if valid is None:
        return error.mean(), angle.mean()
    return error[valid].mean(), angle[valid].mean()


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of each mask, averaged over its pixels.

    Args:
        logits: (..., h, w).
        targets: (..., h, w) of 0 and 1.
        alpha: weight of the foreground; the background has 1 - alpha.
        gamma: how much easy pixels are discounted.

    Returns:
        (...) losses.

    Source: Lin et al., Focal Loss for Dense Object Detection; used by SAM, appendix A.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    error = torch.where(targets > 0.5, 1 - logits.sigmoid(), logits.sigmoid())
    weight = torch.where(targets > 0.5, alpha, 1 - alpha)
    return (weight * error**gamma * cross_entropy).mean((-2, -1))


def bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each mask, averaged over its pixels.

    Args:
        logits: (..., h, w).
        targets: (..., h, w) of 0 and 1.

    Returns:
        (...) losses.
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((-2, -1))


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - Dice coefficient of each mask, smoothed by one pixel.

    Args:
        logits: (..., h, w).
        targets: (..., h, w) of 0 and 1.

    Returns:
        (...) losses in [0, 1).

    Source: V-Net; used by SAM, appendix A.
    """
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities * targets).sum((-2, -1))
    return 1 - (overlap + 1) / (probabilities.sum((-2, -1)) + targets.sum((-2, -1)) + 1)


def mask_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU of the thresholded masks, (...); 0 where both are empty."""
    predicted = logits > 0
    wanted = targets > 0.5
    intersection = (predicted & wanted).sum((-2, -1))
    return intersection / (predicted | wanted).sum((-2, -1)).clamp(min=1)
