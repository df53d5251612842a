"""Distillation by masks: semi-coupled, coupled, and with the prompt in the loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mobilesamv2.data.samples import Sample
from mobilesamv2.models.sam import Sam
from mobilesamv2.tasks.distill import Distill
from mobilesamv2.tasks.losses import dice_loss, focal_loss, mask_iou
from mobilesamv2.tasks.mask_prompts import Prompt, disagreement, first_prompts, points_generator, with_point
from mobilesamv2.tasks.schedule import OptimizerFactory
from mobilesamv2.tasks.teacher import Teacher


class DistillSemiCoupled(Distill):
    """The student's masks learn to be the teacher's, of the same prompts, through the teacher's frozen mask decoder.

    Each object is asked for by its box, for one mask, and by a point, for three. The annotated mask is not looked at.

    Args:
        student: the model to train; its mask decoder is the teacher's and stays so.
        teacher: the model to imitate, of the student's image size and embedding width.
        optimizer: makes the optimizer from the parameters.
        warmup_images: images that the learning rate rises over.
        focal_weight: of the focal loss.
        dice_weight: of the dice loss.
        iou_weight: of the squared error between the predicted IoUs.

    Raises:
        ValueError: the two models' sizes differ, or the cache leaves out the padding.

    Source: MobileSAM, section 3, which names it and gives no recipe; the losses' weights are SAM's.
    """

    train_decoder = False

    def __init__(
        self,
        student: Sam,
        teacher: Teacher,
        optimizer: OptimizerFactory,
        warmup_images: int = 0,
        focal_weight: float = 20.0,
        dice_weight: float = 1.0,
        iou_weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher, optimizer, warmup_images, train_decoder=self.train_decoder)
        teacher.refuse_valid_region("the teacher's masks are decoded from whole embeddings:")
        self._weights = {"focal": focal_weight, "dice": dice_weight, "iou": iou_weight}

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        return self._logged(batch, "train")

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """The same on images that no step trains on."""
        self._logged(batch, "val")

    def _logged(self, batch: Sample, stage: str) -> Tensor:
        loss, ious = self._loss(batch)
        size = len(batch["pixels"])
        settings: dict[str, Any] = {"prog_bar": True, "batch_size": size, "sync_dist": stage == "val"}
        self.log(f"{stage}/loss", loss, **settings)
        self.log_dict({f"{stage}/miou_{kind}": iou for kind, iou in ious.items()}, **settings)
        return loss

    def _loss(self, batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the mean IoU with the teacher's masks by kind of prompt."""
        per_image = batch["masks"].shape[1]
        student = self.student.image_encoder(batch["pixels"]).repeat_interleave(per_image, dim=0)  # (N, C, h, w)
        teacher = self.teacher.embedding(batch).repeat_interleave(per_image, dim=0)
        weights = batch["weights"].flatten()
        loss, ious = torch.zeros((), device=self.device), {}
        for kind, prompt in first_prompts(batch).items():
            of_kind, ious[kind] = self._of_prompt(student, teacher, prompt, weights)
            loss = loss + of_kind
        return loss, ious

    def _of_prompt(self, student: Tensor, teacher: Tensor, prompt: Prompt, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and mean IoU of one kind of prompt, given the embeddings (N, C, h, w)."""
        with torch.no_grad():
            wanted, wanted_iou = self.teacher.sam.decode(teacher, **prompt)  # (N, M, S/4, S/4), (N, M)
        logits, predicted_iou = self.student.decode(student, **prompt)
        return self._compare(logits, predicted_iou, wanted, wanted_iou, weights)

    def _compare(
        self, logits: Tensor, predicted_iou: Tensor, wanted: Tensor, wanted_iou: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and IoU of masks (N, M, S/4, S/4) with the teacher's, means over the objects of weight 1."""
        targets = (wanted > 0).to(logits.dtype)
        each = self._weights["focal"] * focal_loss(logits, targets) + self._weights["dice"] * dice_loss(logits, targets)
        each = each + self._weights["iou"] * (predicted_iou - wanted_iou).square()  # (N, M)
        total = weights.sum().clamp(min=1)
        iou = mask_iou(logits, targets).mean(1)
        return (each.mean(1) * weights).sum() / total, (iou * weights).sum() / total


class DistillCoupled(DistillSemiCoupled):
    """Semi-coupled distillation that trains the mask decoder too, which begins as the teacher's.

    Source: MobileSAM, section 3: the way it compares decoupled distillation with, and SAM's own.
    """

    train_decoder = True


class DistillPromptInLoop(DistillCoupled):
    """Coupled distillation where prompts grow by points on which student and teacher disagree.

    After the first masks, of a box or a point, each round adds a point to every prompt, drawn where the two masks
    differ: foreground where the student lacks what the teacher has, background where it has too much.

    Args:
        student: the model to train; its mask decoder begins as the teacher's.
        teacher: the model to imitate, of the student's image size and embedding width.
        optimizer: makes the optimizer from the parameters.
        warmup_images: images that the learning rate rises over.
        focal_weight: of the focal loss.
        dice_weight: of the dice loss.
        iou_weight: of the squared error between the predicted IoUs.
        rounds: points that are added.

    Raises:
        ValueError: the two models' sizes differ, or there are no rounds.

    Source: EdgeSAM, section 3.3 and algorithm 1; the losses' weights are SAM's, EdgeSAM's are dice and cross-entropy.
    """

    def __init__(
        self,
        student: Sam,
        teacher: Teacher,
        optimizer: OptimizerFactory,
        warmup_images: int = 0,
        focal_weight: float = 20.0,
        dice_weight: float = 1.0,
        iou_weight: float = 1.0,
        rounds: int = 1,
    ) -> None:
        super().__init__(student, teacher, optimizer, warmup_images, focal_weight, dice_weight, iou_weight)
        if rounds < 1:
            raise ValueError(f"rounds is 1 or more, and is {rounds}; without any this is coupled distillation.")
        self._rounds = rounds

    def _of_prompt(self, student: Tensor, teacher: Tensor, prompt: Prompt, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss of the first masks and of those of each round; the IoU of the last."""
        losses, iou = [], torch.zeros(())
        generator = points_generator(self)
        for i in range(self._rounds + 1):
            with torch.no_grad():
                wanted, wanted_iou = self.teacher.sam.decode(teacher, **prompt)
            logits, predicted_iou = self.student.decode(student, **prompt)
            loss, iou = self._compare(logits, predicted_iou, wanted, wanted_iou, weights)
            losses.append(loss)
            if i < self._rounds:
                best = wanted_iou.argmax(1)[:, None, None, None].expand(-1, 1, *wanted.shape[2:])
                pair = (masks.detach().gather(1, best)[:, 0] > 0 for masks in (logits, wanted))
                prompt = with_point(prompt, *disagreement(*pair, generator))
        return torch.stack(losses).mean(), iou
