"""Distillation by masks: semi-coupled, coupled, and with the prompt in the loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from mobilesamv2.data.samples import Sample
from mobilesamv2.models.sam import Sam
from mobilesamv2.ranges import NonNegativeInt, Weight
from mobilesamv2.tasks.distill import Distill
from mobilesamv2.tasks.losses import MaskLoss, mask_iou
from mobilesamv2.tasks.mask_prompts import Prompt, append_point, initial_prompts, points_generator, sample_error_points
from mobilesamv2.tasks.schedule import OptimizerFactory
from mobilesamv2.tasks.teacher import Teacher


class DistillMasks(Distill):
    """Distillation of the teacher's masks: of the same prompts the student learns to predict the same masks.

    Each object is prompted with its box, for one mask, and with a point, for three. Its annotated mask is not read.

    The mask decoder starts as the teacher's. Frozen, it makes the distillation semi-coupled; trained, coupled. With
    ``rounds`` the prompt is in the loop: after the first masks, each round appends a point to every prompt, drawn where
    the student's mask and the teacher's differ: foreground where only the teacher's has the cell, background where only
    the student's has it.

    For a student of another input, prompts are scaled to it and its masks are interpolated to the teacher's low-res
    logits. A student of another embedding width decodes with its own mask decoder.

    Args:
        student: the model to train.
        teacher: the model to imitate.
        optimizer: builds the optimizer from the parameter groups.
        warmup_images: images of the learning rate's warm-up.
        train_decoder: train the student's mask decoder too.
        rounds: points that are appended to each prompt, one per round.
        focal_weight: weight of the focal loss.
        dice_weight: weight of the dice loss.
        iou_weight: weight of the squared error between the two predicted IoUs.

    Raises:
        ValueError: as in ``Distill``; if the cache lacks the padding; or if ``rounds`` is negative.

    Source: MobileSAM, section 3, which compares decoupled distillation with the coupled kind, SAM's own, and names the
    semi-coupled kind without a recipe; EdgeSAM, section 3.3 and algorithm 1, for the prompt in the loop. The losses and
    their weights are SAM's; EdgeSAM's are dice and cross-entropy.
    """

    def __init__(
        self,
        student: Sam,
        teacher: Teacher,
        optimizer: OptimizerFactory,
        warmup_images: NonNegativeInt = 0,
        train_decoder: bool = False,
        rounds: NonNegativeInt = 0,
        focal_weight: Weight = 20.0,
        dice_weight: Weight = 1.0,
        iou_weight: Weight = 1.0,
    ) -> None:
        super().__init__(student, teacher, optimizer, warmup_images, train_decoder)
        if rounds < 0:
            raise ValueError(f"rounds must be at least 0, got {rounds}.")
        teacher.check_full_embeddings(
            "the teacher's masks are decoded from full embeddings. Set cache.store_padding=true."
        )
        self._rounds = rounds
        self._mask_loss = MaskLoss(focal_weight, dice_weight, iou_weight)

    @override
    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        return self._log_loss(batch, "train")

    @override
    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        self._log_loss(batch, "val")

    def _log_loss(self, batch: Sample, stage: str) -> Tensor:
        loss, ious = self._loss(batch)
        size = len(batch["pixels"])
        settings: dict[str, Any] = {"prog_bar": True, "batch_size": size, "sync_dist": stage == "val"}
        self.log(f"{stage}/loss", loss, **settings)
        self.log_dict({f"{stage}/miou_{kind}": iou for kind, iou in ious.items()}, **settings)
        return loss

    def _loss(self, batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and the mean IoU with the teacher's masks by kind of prompt."""
        prompts_per_image = batch["masks"].shape[1]
        student, teacher = (
            embeddings.repeat_interleave(prompts_per_image, dim=0)  # (N, C, h, w)
            for embeddings in (self.encode(batch), self.teacher.embedding(batch))
        )
        weights = batch["weights"].flatten()
        loss, ious = torch.zeros((), device=self.device), {}
        for kind, prompt in initial_prompts(batch).items():
            prompt_loss, ious[kind] = self._prompt_loss(student, teacher, prompt, weights)
            loss = loss + prompt_loss
        return loss, ious

    def _prompt_loss(self, student: Tensor, teacher: Tensor, prompt: Prompt, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of the first masks and of each round's, and the IoU of the last, from the embeddings."""
        losses, iou = [], torch.zeros(())
        generator = points_generator(self)
        for i in range(self._rounds + 1):
            with torch.no_grad():
                teacher_logits, teacher_iou = self.teacher.sam.decode(teacher, **prompt)  # (N, M, S/4, S/4), (N, M)
            logits, predicted_iou = self._decode(student, prompt, teacher_logits.shape[-1])
            loss, iou = self._compare(logits, predicted_iou, teacher_logits, teacher_iou, weights)
            losses.append(loss)
            if i < self._rounds:
                best = teacher_iou.argmax(1)[:, None, None, None].expand(-1, 1, *teacher_logits.shape[2:])
                pair = (masks.detach().gather(1, best)[:, 0] > 0 for masks in (logits, teacher_logits))
                prompt = append_point(prompt, *sample_error_points(*pair, generator, self.teacher.sam.image_size))
        return torch.stack(losses).mean(), iou

    def _decode(self, embedding: Tensor, prompt: Prompt, side: int) -> tuple[Tensor, Tensor]:
        """Return the student's masks (N, M, side, side) and predicted IoUs (N, M) of prompts in the teacher's frame."""
        coordinates = {key: prompt[key] * self._scale for key in ("points", "boxes_xyxy") if key in prompt}
        logits, predicted_iou = self.student.decode(embedding, **(prompt | coordinates))
        if logits.shape[-1] != side:
            logits = F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
        return logits, predicted_iou

    def _compare(
        self, logits: Tensor, predicted_iou: Tensor, teacher_logits: Tensor, teacher_iou: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the IoU of masks (N, M, S/4, S/4) with the teacher's, means over objects of weight 1."""
        targets = (teacher_logits > 0).to(logits.dtype)
        loss = self._mask_loss.mask_terms(logits, targets) + self._mask_loss.iou_term(predicted_iou, teacher_iou)
        total = weights.sum().clamp(min=1)
        iou = mask_iou(logits, targets).mean(1)
        return (loss.mean(1) * weights).sum() / total, (iou * weights).sum() / total
