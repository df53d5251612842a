"""Training on masks from box, point and mask prompts: fine-tuning of a model's parts, or a small SAM from scratch."""

from __future__ import annotations

from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from mobilesamv2.data.samples import Sample
from mobilesamv2.models.low_rank import add_low_rank
from mobilesamv2.models.sam import Sam
from mobilesamv2.ranges import Count, NonNegativeInt, Positive, Weight
from mobilesamv2.structures import PointLabel
from mobilesamv2.tasks.losses import MaskLoss, mask_iou, with_gradient_of_all
from mobilesamv2.tasks.mask_prompts import (
    Prompt,
    append_point,
    draw_one,
    initial_prompts,
    points_generator,
    sample_error_points,
)
from mobilesamv2.tasks.schedule import OptimizerFactory, cosine_schedule

ERROR_SHARE = 0.5
"""Share of the points beside the first one that lie where the mask is wrong."""

VALIDATION_POINTS = 3


Training = Literal["frozen", "lora", "full"]
"""What is trained of a part of the model: nothing, low-rank updates of its linear layers, or all weights."""


class TrainPromptedMasks(pl.LightningModule):
    """Training on each object's box, for one mask, a point in it, for three, several points and a mask, for one.

    Of the three masks the one of least loss is trained, as in SAM. The predicted IoU learns the IoU of every mask.
    Several points are used where the samples have them: the first one, and more that lie in the object or where the
    mask of the first one is wrong. Without them a model trained from scratch predicts worse masks from several points
    than from one.

    With mask prompts the low-res logits that the point, or several, led to are a prompt beside it, for half of the
    objects with a further point where their mask is wrong, as in SAM's later rounds.

    With ``draw_prompts`` a step trains one kind, boxes half of the time and otherwise one of those of points, and its
    mask where there are mask prompts; no point is then drawn where another kind's mask is wrong. Validation has all.

    Args:
        sam: the model to train.
        optimizer: builds the optimizer from the parameter groups.
        warmup_images: images of the learning rate's warm-up.
        image_encoder: what is trained of it: ``frozen``, ``lora`` or ``full``.
        decoder: what is trained of the mask decoder; ``full`` trains the prompt encoder too.
        lora_rank: rank of the low-rank updates.
        lora_alpha: scale of the low-rank updates, in units of 1 / rank.
        mask_prompts: train prompts of a mask too.
        focal_weight: weight of the focal loss.
        dice_weight: weight of the dice loss.
        iou_weight: weight of the squared error of the predicted IoU.
        bce_weight: weight of the cross-entropy, which a model from scratch learns sooner by than by the focal loss.
        draw_prompts: train one kind of prompt in a step.

    Raises:
        ValueError: if a part is trained in no known way, nothing is trained, an encoder for LoRA has no linear layer,
            or the model does not take all prompts.

    Source: SAM, appendix A; its weights are 20, 1 and 1, and it adds a point in each of 8 rounds, with the last mask as
    a prompt beside the points, where one round adds several points here and another one the mask. A small model trained
    from scratch needs less focal loss.
    """

    def __init__(
        self,
        sam: Sam,
        optimizer: OptimizerFactory,
        warmup_images: NonNegativeInt = 0,
        image_encoder: Training = "frozen",
        decoder: Training = "full",
        lora_rank: Count = 8,
        lora_alpha: Positive = 16.0,
        mask_prompts: bool = False,
        focal_weight: Weight = 20.0,
        dice_weight: Weight = 1.0,
        iou_weight: Weight = 1.0,
        bce_weight: Weight = 0.0,
        draw_prompts: bool = False,
    ) -> None:
        super().__init__()
        if not sam.prompt_encoder.takes_background:
            raise ValueError(
                f"{sam.name} can't be trained on masks from prompts: it takes no background points, which correct a "
                "mask. Distil its image encoder, task=distill, or choose a SAM."
            )
        self.sam = sam
        self._choose_trained(image_encoder, decoder, lora_rank, lora_alpha)
        if not mask_prompts:
            # No prompt contains a mask, and distributed training requires a gradient of every trainable parameter.
            self.sam.prompt_encoder.mask_downscaling.requires_grad_(False)
        self._mask_prompts = mask_prompts
        self._optimizer = optimizer
        self._warmup_images = warmup_images
        self._image_encoder, self._decoder = image_encoder, decoder
        self._draw_prompts = draw_prompts
        self._mask_loss = MaskLoss(focal_weight, dice_weight, iou_weight, bce_weight)

    def _choose_trained(self, image_encoder: Training, decoder: Training, rank: int, alpha: float) -> None:
        """Freeze what is not trained, and add low-rank updates where they are."""
        sam = self.sam
        for name, how in (("image_encoder", image_encoder), ("decoder", decoder)):
            if how not in get_args(Training):
                raise ValueError(f"task.{name} must be frozen, lora or full, got {how}.")
        if image_encoder == decoder == "frozen":
            raise ValueError("task.image_encoder or task.decoder must be lora or full, got frozen for both.")
        sam.image_encoder.requires_grad_(image_encoder == "full")
        sam.prompt_encoder.requires_grad_(decoder == "full")
        sam.mask_decoder.requires_grad_(decoder == "full")
        if image_encoder == "lora" and not add_low_rank(sam.image_encoder, rank, alpha):
            raise ValueError(
                f"task.image_encoder=lora needs an encoder with linear layers, as ViT and TinyViT have, and "
                f"{sam.encoder_name} has none: frozen or full."
            )
        if decoder == "lora":
            add_low_rank(sam.mask_decoder.transformer, rank, alpha)

    @property
    def backbone(self) -> nn.Module:
        """Return the network that compilation and memory layout apply to."""
        return self.sam.image_encoder

    @override
    def on_fit_start(self) -> None:
        # Lightning keeps the modes that it finds, and build_sam builds in eval mode.
        self.sam.train()
        # low-rank updates leave the statistics of batch norms alone
        self.sam.image_encoder.train(self._image_encoder == "full")
        self.sam.mask_decoder.train(self._decoder != "frozen")

    @override
    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        loss, ious = self._loss(batch)
        size = len(batch["pixels"])
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log_dict({f"train/miou_{kind}": iou for kind, iou in ious.items()}, prog_bar=True, batch_size=size)
        return loss

    @override
    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        loss, ious = self._loss(batch)
        size = len(batch["pixels"])
        self.log("val/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self.log_dict({f"val/miou_{kind}": iou for kind, iou in ious.items()}, batch_size=size, sync_dist=True)

    @override
    def configure_optimizers(self) -> Any:
        return cosine_schedule(self.trainer, self.sam, self._optimizer, self._warmup_images)

    def _loss(self, batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and the mean IoU of the masks by kind of prompt."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._image_encoder != "frozen"):
            embeddings = self.sam.image_encoder(batch["pixels"])
        prompts_per_image = batch["masks"].shape[1]
        embeddings = embeddings.repeat_interleave(prompts_per_image, dim=0)  # (N, C, S/16, S/16)
        targets, weights = batch["masks"].flatten(0, 1), batch["weights"].flatten()
        total = weights.sum().clamp(min=1)
        loss, ious = torch.zeros((), device=self.device), {}
        prompt: Prompt = {}
        logits = targets - 0.5  # where no mask comes before, none is wrong
        kinds = [*self._prompts(batch), *([("mask", prompt)] if self._mask_prompts else [])]
        for kind, given in kinds:
            if kind == "points":
                given = self._mix_error_points(given, _like_targets(logits, targets) > 0, targets)
            elif kind == "mask":
                given = self._append_mask(prompt, logits, targets)
            prompt_loss, iou, logits = self._prompt_loss(embeddings, given, targets)
            loss = loss + (prompt_loss * weights).sum() / total
            ious[kind] = (iou * weights).sum() / total
            prompt = given
        return with_gradient_of_all(loss, self.sam) if self._draw_prompts and self.training else loss, ious

    def _prompts(self, batch: Sample) -> list[tuple[str, Prompt]]:
        """Return prompts by kind: a box, for one mask; a point, for three; more points, for one; or a drawn kind."""
        prompts = list(initial_prompts(batch).items())
        points = batch["points"].flatten(0, 1)
        if points.shape[1] > 1:
            labels = torch.full(points.shape[:2], PointLabel.FOREGROUND, dtype=torch.int64, device=points.device)
            prompts.append(("points", {"points": points, "labels": labels, "multimask_output": False}))
        if not (self._draw_prompts and self.training):
            return prompts
        generator = points_generator(self)
        if draw_one(("box", "points"), generator) == "box":
            return prompts[:1]
        kind = draw_one([kind for kind, _ in prompts[1:]], generator)
        return [(name, prompt) for name, prompt in prompts if name == kind]

    def _mix_error_points(self, prompt: Prompt, masks: Tensor, targets: Tensor) -> Prompt:
        """Move some of several points to where the first one's mask is wrong, and drop some."""
        points, labels = prompt["points"], prompt["labels"]
        extra = points.shape[1] - 1
        if not self.training:
            return prompt | {"points": points[:, :VALIDATION_POINTS], "labels": labels[:, :VALIDATION_POINTS]}
        generator = points_generator(self)
        error_points, error_labels = sample_error_points(masks, targets > 0.5, generator, self.sam.image_size, extra)
        draw = torch.rand(2, *labels[:, 1:].shape, generator=generator, device=labels.device)
        is_error = (draw[0] < ERROR_SHARE) & (error_labels != PointLabel.PADDING)
        points = torch.cat([points[:, :1], torch.where(is_error[..., None], error_points, points[:, 1:])], dim=1)
        labels = torch.cat([labels[:, :1], torch.where(is_error, error_labels, labels[:, 1:])], dim=1)
        # The points up to the smallest draw are kept: one to all of them.
        is_kept = torch.arange(1, extra + 1, device=labels.device) <= 1 + draw[1].argmin(1, keepdim=True)
        labels = torch.cat([labels[:, :1], labels[:, 1:].masked_fill(~is_kept, PointLabel.PADDING)], dim=1)
        return prompt | {"points": points, "labels": labels}

    def _append_mask(self, prompt: Prompt, logits: Tensor, targets: Tensor) -> Prompt:
        """Return a prompt with its mask as another, and for half of the objects a point where the mask is wrong.

        Args:
            prompt: of points, whose masks the logits are.
            logits: (N, S/4, S/4).
            targets: (N, h, w).
        """
        generator = points_generator(self)
        masks = _like_targets(logits, targets) > 0
        points, labels = sample_error_points(masks, targets > 0.5, generator, self.sam.image_size)
        is_left_out = torch.rand(labels.shape, generator=generator, device=labels.device) < 0.5
        labels = labels.masked_fill(is_left_out, PointLabel.PADDING)
        return append_point(prompt, points, labels) | {"mask_input": logits[:, None]}

    def _prompt_loss(self, embeddings: Tensor, prompt: Prompt, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss (N,), IoU (N,) and low-res logits (N, S/4, S/4) of each prompt's best mask."""
        logits, predicted_iou = self.sam.decode(embeddings, **prompt)  # (N, M, S/4, S/4), (N, M)
        low_res = logits.detach()
        logits = _like_targets(logits, targets)
        targets = targets[:, None].expand_as(logits)
        iou = mask_iou(logits, targets)
        iou_loss = self._mask_loss.iou_term(predicted_iou, iou).mean(1)
        least_loss, best = self._mask_loss.mask_terms(logits, targets).min(dim=1)
        rows = torch.arange(len(best), device=best.device)
        return least_loss + iou_loss, iou[rows, best], low_res[rows, best]


def _like_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """Interpolate logits (N, h, w) or (N, M, h, w) to the cells of the targets."""
    if logits.shape[-2:] == targets.shape[-2:]:
        return logits
    channels = logits.flatten(0, -3)[:, None]
    resized = F.interpolate(channels, size=targets.shape[-2:], mode="bilinear", align_corners=False)
    return resized.view(*logits.shape[:-2], *targets.shape[-2:])
