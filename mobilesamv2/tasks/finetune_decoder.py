"""Training on masks from box and point prompts: a decoder's fine-tuning, or a small SAM from nothing."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from mobilesamv2.data.samples import Sample
from mobilesamv2.models.sam import Sam
from mobilesamv2.tasks.losses import bce_loss, dice_loss, focal_loss, mask_iou
from mobilesamv2.tasks.mask_prompts import Prompt, disagreement, first_prompts, points_generator, with_point
from mobilesamv2.tasks.schedule import OptimizerFactory, cosine_schedule


class FinetuneDecoder(pl.LightningModule):
    """Each object is asked for twice: by its box, for one mask, and by a point in it, for three.

    Of the three masks the one of least loss is trained, as in SAM. The predicted IoU learns the IoU of every mask. Each
    round then adds a point where the mask is wrong and asks for one mask: without any, a model that learns from nothing
    makes worse masks of several points than of one.

    Args:
        sam: the model to train.
        optimizer: makes the optimizer from the parameters.
        warmup_images: images that the learning rate rises over.
        freeze_image_encoder: train the prompt encoder and mask decoder alone.
        focal_weight: of the focal loss.
        dice_weight: of the dice loss.
        iou_weight: of the squared error of the predicted IoU.
        bce_weight: of the cross-entropy, which a model from nothing learns sooner by than by the focal loss.
        rounds: points that are added.

    Raises:
        ValueError: there are fewer rounds than none.

    Source: SAM, appendix A; its weights are 20, 1 and 1, and its rounds 8, with the last mask as a prompt beside the
    points, which is left out here. A small model trained from nothing needs less focal loss.
    """

    def __init__(
        self,
        sam: Sam,
        optimizer: OptimizerFactory,
        warmup_images: int = 0,
        freeze_image_encoder: bool = True,
        focal_weight: float = 20.0,
        dice_weight: float = 1.0,
        iou_weight: float = 1.0,
        bce_weight: float = 0.0,
        rounds: int = 0,
    ) -> None:
        super().__init__()
        if rounds < 0:
            raise ValueError(f"rounds is a number of points, 0 or more, and is {rounds}.")
        self.sam = sam
        self.sam.image_encoder.requires_grad_(not freeze_image_encoder)
        # No mask is given as a prompt, and distributed training wants a gradient of every parameter.
        self.sam.prompt_encoder.mask_downscaling.requires_grad_(False)
        self._optimizer = optimizer
        self._warmup_images = warmup_images
        self._freeze_image_encoder = freeze_image_encoder
        self._weights = {"focal": focal_weight, "dice": dice_weight, "iou": iou_weight, "bce": bce_weight}
        self._rounds = rounds

    @property
    def backbone(self) -> nn.Module:
        """The network that compilation and memory layout are for."""
        return self.sam.image_encoder

    def on_fit_start(self) -> None:
        """Lightning keeps the modes that it finds, and ``build_sam`` builds in eval mode."""
        self.sam.train()
        self.sam.image_encoder.train(not self._freeze_image_encoder)

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss, ious = self._loss(batch)
        size = len(batch["pixels"])
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log_dict({f"train/miou_{kind}": iou for kind, iou in ious.items()}, prog_bar=True, batch_size=size)
        return loss

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """The same on images that no step trains on."""
        loss, ious = self._loss(batch)
        size = len(batch["pixels"])
        self.log("val/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self.log_dict({f"val/miou_{kind}": iou for kind, iou in ious.items()}, batch_size=size, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """All parameters that are trained, warm-up and cosine."""
        return cosine_schedule(self.trainer, self.sam, self._optimizer, self._warmup_images)

    def _loss(self, batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the mean IoU of the masks from boxes and from points, before and after points are added."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._freeze_image_encoder):
            embeddings = self.sam.image_encoder(batch["pixels"])
        per_image = batch["masks"].shape[1]
        embeddings = embeddings.repeat_interleave(per_image, dim=0)  # (N, C, S/16, S/16)
        masks, weights = batch["masks"].flatten(0, 1), batch["weights"].flatten()
        total = weights.sum().clamp(min=1)
        generator = points_generator(self)
        loss, ious = torch.zeros((), device=self.device), {}
        for kind, prompt in first_prompts(batch).items():
            for i in range(self._rounds + 1):
                each, iou, best = self._of_prompt(embeddings, prompt, masks)
                loss = loss + (each * weights).sum() / total / (self._rounds + 1)
                ious[f"{kind}_corrected" if i else kind] = (iou * weights).sum() / total
                if i < self._rounds:
                    prompt = with_point(prompt, *disagreement(best, masks > 0.5, generator))
        return loss, ious

    def _of_prompt(self, embeddings: Tensor, prompt: Prompt, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the mask of least loss: its loss (N,), its IoU (N,), and where it is (N, S/4, S/4)."""
        logits, predicted_iou = self.sam.decode(embeddings, **prompt)  # (N, M, S/4, S/4), (N, M)
        targets = masks[:, None].expand_as(logits)
        of_mask = self._weights["focal"] * focal_loss(logits, targets)
        of_mask = of_mask + self._weights["dice"] * dice_loss(logits, targets)  # (N, M)
        if self._weights["bce"]:
            of_mask = of_mask + self._weights["bce"] * bce_loss(logits, targets)
        iou = mask_iou(logits, targets)
        of_iou = self._weights["iou"] * (predicted_iou - iou).square().mean(1)
        least, best = of_mask.min(dim=1)
        each = torch.arange(len(best), device=best.device)
        return least + of_iou, iou[each, best], logits.detach()[each, best] > 0
