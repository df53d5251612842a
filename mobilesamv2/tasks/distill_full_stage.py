"""Distillation at every stage, with hard prompts and hard masks weighted: TinySAM's."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from mobilesamv2.data.samples import Sample
from mobilesamv2.models.sam import Sam
from mobilesamv2.ranges import NonNegativeInt, Weight
from mobilesamv2.structures import PointLabel
from mobilesamv2.tasks.distill import Distill
from mobilesamv2.tasks.losses import MaskLoss, hard_mask_weights, mask_iou
from mobilesamv2.tasks.mask_prompts import Prompt, initial_prompts, points_generator, sample_error_points
from mobilesamv2.tasks.schedule import OptimizerFactory
from mobilesamv2.tasks.teacher import Teacher


class DistillFullStage(Distill):
    """Distillation of image embeddings, output tokens and masks, beside training on the annotated masks.

    Each object is prompted with its box and with a point, for all four masks of the decoder. The student's differ from
    the teacher's by L1 distances, of which that of a mask is weighted by its hardness; the mask of least loss learns
    the annotated object, as in SAM. The point is a hard one: it is drawn anew up to ``hard_rounds`` times, a number
    that is drawn for each step, where the object is and the student's mask of the last point is not.

    Args:
        student: the model to train.
        teacher: the model to imitate.
        optimizer: builds the optimizer from the parameter groups.
        warmup_images: images of the learning rate's warm-up.
        train_decoder: train the student's mask decoder too.
        hard_rounds: most draws of a point beyond the first.
        weight_hard_masks: weight the masks' distances by their hardness.
        embedding_weight: weight of the image embeddings' distance.
        token_weight: weight of the output tokens' distance.
        output_weight: weight of the low-res logits' distance.
        focal_weight: weight of the focal loss.
        dice_weight: weight of the dice loss.
        iou_weight: weight of the L1 distance between predicted and true IoU.

    Raises:
        ValueError: as in ``Distill``; if the cache lacks the padding, or the student has another image size or
            embedding width than its teacher.

    Source: TinySAM, equations 1 to 9. Its weights and whether the decoder is trained are unpublished; the distances are
    means over objects here, and a sum there.
    """

    learns_masks = True

    def __init__(
        self,
        student: Sam,
        teacher: Teacher,
        optimizer: OptimizerFactory,
        warmup_images: NonNegativeInt = 0,
        train_decoder: bool = True,
        hard_rounds: NonNegativeInt = 9,
        weight_hard_masks: bool = True,
        embedding_weight: Weight = 1.0,
        token_weight: Weight = 1.0,
        output_weight: Weight = 1.0,
        focal_weight: Weight = 20.0,
        dice_weight: Weight = 1.0,
        iou_weight: Weight = 1.0,
    ) -> None:
        super().__init__(student, teacher, optimizer, warmup_images, train_decoder)
        sizes = [(sam.image_size, sam.embedding_channels) for sam in (student, teacher.sam)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"The student must have its teacher's image size and embedding width {sizes[1]}, got {sizes[0]}: "
                "full-stage distillation compares embeddings and tokens. task=distill and its kinds take others."
            )
        teacher.check_all_levels("the teacher's masks are decoded from all of them.")
        teacher.check_full_embeddings(
            "the teacher's masks are decoded from full embeddings. Set cache.store_padding=true."
        )
        self._hard_rounds, self._weight_hard_masks = hard_rounds, weight_hard_masks
        self._stage_weights = embedding_weight, token_weight, output_weight
        self._mask_loss, self._iou_weight = MaskLoss(focal_weight, dice_weight), iou_weight

    @override
    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        return self._log_loss(batch, "train")

    @override
    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        self._log_loss(batch, "val")

    def _log_loss(self, batch: Sample, stage: str) -> Tensor:
        loss, parts = self._loss(batch)
        size = len(batch["pixels"])
        self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=size, sync_dist=stage == "val")
        values = {f"{stage}/{name}": value for name, value in parts.items()}
        self.log_dict(values, batch_size=size, sync_dist=stage == "val")
        return loss

    def _loss(self, batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and its unweighted parts with the mean IoU of the best masks by kind of prompt."""
        student, teacher = self.encode(batch), self.teacher.embedding(batch)
        embedding_weight, token_weight, output_weight = self._stage_weights
        distance = (student - teacher).abs().mean()
        loss, parts = embedding_weight * distance, {"embedding": distance.detach()}
        student, teacher = (each.repeat_interleave(batch["masks"].shape[1], dim=0) for each in (student, teacher))
        targets, weights = batch["masks"].flatten(0, 1), batch["weights"].flatten()
        weights = weights / weights.sum().clamp(min=1)
        for kind, prompt in initial_prompts(batch).items():
            given = self._harden(student, prompt, targets) if kind == "point" else prompt
            terms = self._compare(student, teacher, given, targets)
            means = {name: (values * weights).sum() for name, values in terms.items()}
            loss = loss + token_weight * means["token"] + output_weight * means["output"] + means["object"]
            parts |= {f"{name}_{kind}": value.detach() for name, value in means.items()}
        return loss, parts

    @torch.no_grad()
    def _harden(self, embedding: Tensor, prompt: Prompt, targets: Tensor) -> Prompt:
        """Return the point of each object where the student's masks of the points before it lack the object."""
        generator = points_generator(self)
        rounds = int(torch.randint(self._hard_rounds + 1, (), generator=generator, device=generator.device))
        for _ in range(rounds if self.training else 0):
            logits, predicted_iou = self.student.decode(embedding, **prompt)
            best = logits[torch.arange(len(logits), device=logits.device), predicted_iou.argmax(1)] > 0
            objects = targets > 0.5
            points, labels = sample_error_points(best & objects, objects, generator, self.student.image_size)
            is_lacking = (labels == PointLabel.FOREGROUND)[..., None]
            prompt = prompt | {"points": torch.where(is_lacking, points, prompt["points"])}
        return prompt

    def _compare(self, student: Tensor, teacher: Tensor, prompt: Prompt, targets: Tensor) -> dict[str, Tensor]:
        """Return each object's distances of tokens and of masks, loss on the object, and IoU with it, (N,) each."""
        given = {key: prompt[key] for key in prompt if key != "multimask_output"}
        with torch.no_grad():
            theirs = self.teacher.sam.decode_stages(teacher, **given)
        ours = self.student.decode_stages(student, **given)
        objects = targets[:, None].expand_as(ours.logits)
        iou = mask_iou(ours.logits, objects)
        distance = (ours.logits - theirs.logits).abs().mean((2, 3))
        if self._weight_hard_masks:
            distance = distance * hard_mask_weights(iou, mask_iou(theirs.logits, objects))
        least, best = self._mask_loss.mask_terms(ours.logits, objects).min(dim=1)
        return {
            "token": (ours.tokens - theirs.tokens).abs().mean((1, 2)),
            "output": distance.mean(1),
            "object": least + self._iou_weight * (ours.predicted_iou - iou).abs().mean(1),
            "miou": iou.gather(1, best[:, None])[:, 0],
        }
