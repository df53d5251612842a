"""Losses of masks and embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss


@dataclass(frozen=True)
class MaskLoss:
    """Weighted losses of masks and of their predicted IoUs.

    Attributes:
        focal_weight: weight of the focal loss, whose alpha is .25 and gamma 2; at 0 it is not computed.
        dice_weight: weight of the dice loss.
        iou_weight: weight of the squared error of the predicted IoU.
        bce_weight: weight of the binary cross-entropy; at 0 it is not computed.

    Source: SAM, appendix A, with weights 20, 1 and 1 and no cross-entropy; the focal loss is Lin et al., Focal Loss for
    Dense Object Detection, by torchvision.
    """

    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    bce_weight: float = 0.0

    def mask_terms(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the weighted sum of each mask's dice, focal and cross-entropy losses, means over its cells.

        Args:
            logits: (..., h, w).
            targets: (..., h, w), 0 to 1: the shares of the cells that the objects cover.
            valid: bool, broadcast to (..., h, w), the cells that count; None counts all.

        Returns:
            (...) losses.
        """
        loss = self.dice_weight * dice_loss(logits, targets, valid)
        if self.focal_weight:
            focal = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0)
            loss = loss + self.focal_weight * _mean_over_cells(focal, valid)
        if self.bce_weight:
            cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
            loss = loss + self.bce_weight * _mean_over_cells(cross_entropy, valid)
        return loss

    def iou_term(self, predicted_iou: Tensor, target_iou: Tensor) -> Tensor:
        """Return the weighted squared error of each predicted IoU, in the shape of the arguments."""
        return self.iou_weight * (predicted_iou - target_iou).square()


def embedding_losses(student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the mean squared error of image embeddings, and one minus their cosine similarity.

    Args:
        student: (B, C, h, w).
        teacher: (B, C, h, w).
        valid: (B, h, w) bool, the cells that count; None counts all.

    Returns:
        Two scalars, means over cells.

    Source: MobileSAM, section 3 (decoupled distillation).
    """
    squared_error = (student - teacher).square().mean(1)  # (B, h, w)
    cosine_distance = 1 - F.cosine_similarity(student, teacher)
    if valid is None:
        return squared_error.mean(), cosine_distance.mean()
    return squared_error[valid].mean(), cosine_distance[valid].mean()


def dice_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return 1 - Dice coefficient of each mask, smoothed by one pixel.

    It is least where the probabilities equal the targets, which with V-Net's squares holds for soft targets, the shares
    of the cells that an object covers, too.

    Args:
        logits: (..., h, w).
        targets: (..., h, w), 0 to 1.
        valid: bool, broadcast to (..., h, w), the cells that count; None counts all.

    Returns:
        (...) losses in [0, 1).

    Source: V-Net, section 3, with its squares; SAM, appendix A, names the Dice loss and not its form.
    """
    probabilities = logits.sigmoid()
    if valid is not None:
        probabilities, targets = probabilities * valid, targets * valid
    overlap = 2 * (probabilities * targets).sum((-2, -1))
    return 1 - (overlap + 1) / (probabilities.square().sum((-2, -1)) + targets.square().sum((-2, -1)) + 1)


def hard_mask_weights(student_iou: Tensor, teacher_iou: Tensor) -> Tensor:
    """Return TinySAM's weights of masks, which are larger where the teacher's are better than the student's.

    Args:
        student_iou: IoU of the student's masks with the objects.
        teacher_iou: IoU of the teacher's, of the same shape.

    Returns:
        Weights in that shape: .5 where both are alike, towards 1 where only the teacher's fit.

    Source: TinySAM, section "Hard Mask Weighting"; its epsilon is unpublished.
    """
    return (teacher_iou / (student_iou + 1e-6) - 1).sigmoid()


def with_gradient_of_all(loss: Tensor, module: nn.Module) -> Tensor:
    """Return a loss whose gradient reaches each trainable parameter, as distributed training requires.

    A step that draws one kind of prompt leaves the decoder's parts for the other kinds out; their gradient becomes 0.
    """
    return loss + 0 * torch.stack([p.sum() for p in module.parameters() if p.requires_grad]).sum()


def _mean_over_cells(values: Tensor, valid: Tensor | None) -> Tensor:
    """Return the means (...) of values (..., h, w) over the cells that count."""
    if valid is None:
        return values.mean((-2, -1))
    return (values * valid).sum((-2, -1)) / valid.sum((-2, -1)).clamp(min=1)


def mask_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the IoU (...) of thresholded masks (..., h, w); 0 where both are empty."""
    masks = logits > 0
    target_masks = targets > 0.5
    intersection = (masks & target_masks).sum((-2, -1))
    return intersection / (masks | target_masks).sum((-2, -1)).clamp(min=1)
