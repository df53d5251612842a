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
from mobilesamv2.tasks.distill import Distill, valid_cells
from mobilesamv2.tasks.losses import MaskLoss, mask_iou, with_gradient_of_all
from mobilesamv2.tasks.mask_prompts import (
    Prompt,
    append_point,
    draw_one,
    initial_prompts,
    points_generator,
    sample_error_points,
)
from mobilesamv2.tasks.schedule import OptimizerFactory
from mobilesamv2.tasks.teacher import Teacher

LOW_RES_STRIDE = 4
"""Pixels of the model's input per cell of the low-res logits."""


class DistillMasks(Distill):
    """Distillation of the teacher's masks: of the same prompts the student learns to predict the same masks.

    Each object is prompted with its box, for one mask, and with a point, for three. Its annotated mask is not read.

    The mask decoder starts as the teacher's. Frozen, it makes the distillation semi-coupled; trained, coupled. With
    ``rounds`` the prompt is in the loop: after the first masks, each round appends a point to every prompt, drawn where
    the student's mask and the teacher's differ: foreground where only the teacher's has the cell, background where only
    the student's has it.

    With ``draw_prompts`` a step trains boxes or points, drawn with equal probability; validation has both. With
    ``all_masks`` a point prompts for all four masks of the decoder in every round, the single one among them.

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
        bce_weight: weight of the cross-entropy.
        mask_padding: leave out the cells that hold no pixel of the image.
        draw_prompts: train one kind of prompt in a step.
        all_masks: prompt for four masks with a point, instead of for three, and for one once a point is appended.

    Raises:
        ValueError: as in ``Distill``; if the cache lacks the padding; if ``rounds`` is negative, or the
            student does not take the prompts that they add.

    Source: MobileSAM, section 3, which compares decoupled distillation with the coupled kind, SAM's own, and names the
    semi-coupled kind without a recipe; EdgeSAM, section 3.3 and algorithm 1, for the prompt in the loop. The losses and
    their weights are SAM's by default; EdgeSAM's are in task=edgesam_prompts.
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
        bce_weight: Weight = 0.0,
        mask_padding: bool = False,
        draw_prompts: bool = False,
        all_masks: bool = False,
    ) -> None:
        super().__init__(student, teacher, optimizer, warmup_images, train_decoder)
        if rounds < 0:
            raise ValueError(f"rounds must be at least 0, got {rounds}.")
        if rounds and not student.prompt_encoder.takes_background:
            raise ValueError(
                f"task.rounds must be 0 for {student.name}, got {rounds}: it takes no background points, which correct "
                "a mask."
            )
        teacher.check_all_levels("the teacher's masks are decoded from all of them.")
        teacher.check_full_embeddings(
            "the teacher's masks are decoded from full embeddings. Set cache.store_padding=true."
        )
        self._rounds = rounds
        self._mask_loss = MaskLoss(focal_weight, dice_weight, iou_weight, bce_weight)
        self._mask_padding, self._draw_prompts, self._all_masks = mask_padding, draw_prompts, all_masks

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
        valid = self._valid_cells(batch)
        loss, ious = torch.zeros((), device=self.device), {}
        for kind, prompt in self._prompts(batch).items():
            prompt_loss, ious[kind] = self._prompt_loss(student, teacher, prompt, batch["weights"].flatten(), valid)
            loss = loss + prompt_loss
        return with_gradient_of_all(loss, self.student) if self._draw_prompts and self.training else loss, ious

    def _prompts(self, batch: Sample) -> dict[str, Prompt]:
        """Return the prompts of a step by kind: both kinds, or one that is drawn."""
        prompts = initial_prompts(batch)
        if not (self._draw_prompts and self.training):
            return prompts
        kind = draw_one(tuple(prompts), points_generator(self))
        return {kind: prompts[kind]}

    def _valid_cells(self, batch: Sample) -> Tensor | None:
        """Return (N, 1, S/4, S/4) bool: the cells of the teacher's masks that count; None if all do."""
        if not self._mask_padding:
            return None
        grid = self.teacher.sam.image_size // LOW_RES_STRIDE
        valid = valid_cells(batch["resized"], grid, LOW_RES_STRIDE)
        return valid.repeat_interleave(batch["masks"].shape[1], dim=0)[:, None]

    def _prompt_loss(
        self, student: Tensor, teacher: Tensor, prompt: Prompt, weights: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss of the first masks and of each round's, and the IoU of the last, from the embeddings."""
        losses, iou = [], torch.zeros(())
        generator, all_masks = points_generator(self), self._all_masks and prompt["multimask_output"]
        for i in range(self._rounds + 1):
            with torch.no_grad():
                teacher_masks = _masks(self.teacher.sam, teacher, prompt, all_masks)
            logits, predicted_iou = self._decode(student, prompt, teacher_masks[0].shape[-1], all_masks)
            loss, iou = self._compare(logits, predicted_iou, *teacher_masks, weights, valid)
            losses.append(loss)
            if i < self._rounds:
                teacher_logits, teacher_iou = teacher_masks
                best = teacher_iou.argmax(1)[:, None, None, None].expand(-1, 1, *teacher_logits.shape[2:])
                pair = (masks.detach().gather(1, best)[:, 0] > 0 for masks in (logits, teacher_logits))
                prompt = append_point(prompt, *sample_error_points(*pair, generator, self.teacher.sam.image_size))
        return torch.stack(losses).mean(), iou

    def _decode(self, embedding: Tensor, prompt: Prompt, side: int, all_masks: bool) -> tuple[Tensor, Tensor]:
        """Return the student's masks (N, M, side, side) and predicted IoUs (N, M) of prompts in the teacher's frame."""
        coordinates = {key: prompt[key] * self._scale for key in ("points", "boxes_xyxy") if key in prompt}
        logits, predicted_iou = _masks(self.student, embedding, prompt | coordinates, all_masks)
        if logits.shape[-1] != side:
            logits = F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
        return logits, predicted_iou

    def _compare(
        self,
        logits: Tensor,
        predicted_iou: Tensor,
        teacher_logits: Tensor,
        teacher_iou: Tensor,
        weights: Tensor,
        valid: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the IoU of masks (N, M, S/4, S/4) with the teacher's, means over objects of weight 1."""
        targets = (teacher_logits > 0).to(logits.dtype)
        loss = self._mask_loss.mask_terms(logits, targets, valid) + self._mask_loss.iou_term(predicted_iou, teacher_iou)
        total = weights.sum().clamp(min=1)
        iou = mask_iou(logits, targets).mean(1)
        return (loss.mean(1) * weights).sum() / total, (iou * weights).sum() / total


def _masks(sam: Sam, embedding: Tensor, prompt: Prompt, all_masks: bool) -> tuple[Tensor, Tensor]:
    """Return the low-res logits (N, M, S/4, S/4) and predicted IoUs (N, M) of prompts: one, three or all four masks."""
    if not all_masks:
        return sam.decode(embedding, **prompt)
    stages = sam.decode_stages(embedding, **{key: prompt[key] for key in prompt if key != "multimask_output"})
    return stages.logits, stages.predicted_iou
