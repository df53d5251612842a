"""Distillation: what its ways share, and the decoupled one, where the student learns the teacher's image embedding."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from mobilesamv2.data.samples import Sample
from mobilesamv2.models.sam import Sam
from mobilesamv2.tasks.losses import embedding_losses
from mobilesamv2.tasks.schedule import OptimizerFactory, cosine_schedule
from mobilesamv2.tasks.teacher import Teacher, cells_of


class Distill(pl.LightningModule):
    """A student and its teacher.

    The student takes over the prompt encoder and mask decoder of the teacher, since its embedding is to fit them.

    Args:
        student: the model to train.
        teacher: the model to imitate, of the student's image size and embedding width.
        optimizer: makes the optimizer from the parameters.
        warmup_images: images that the learning rate rises over.
        train_decoder: train the student's mask decoder too.

    Raises:
        ValueError: the two models' sizes differ.
    """

    def __init__(
        self,
        student: Sam,
        teacher: Teacher,
        optimizer: OptimizerFactory,
        warmup_images: int = 0,
        train_decoder: bool = False,
    ) -> None:
        super().__init__()
        ours, theirs = ((s.image_size, s.prompt_encoder.embed_dim) for s in (student, teacher.sam))
        if ours != theirs:
            raise ValueError(f"Image size and embedding width are {ours} in the student and {theirs} in the teacher.")
        student.prompt_encoder.load_state_dict(teacher.sam.prompt_encoder.state_dict())
        student.mask_decoder.load_state_dict(teacher.sam.mask_decoder.state_dict())
        student.prompt_encoder.requires_grad_(False)
        student.mask_decoder.requires_grad_(train_decoder)
        self.student = student
        self.teacher = teacher
        self._optimizer = optimizer
        self._warmup_images = warmup_images
        self._train_decoder = train_decoder

    @property
    def backbone(self) -> nn.Module:
        """The network that compilation and memory layout are for."""
        return self.student.image_encoder

    def on_fit_start(self) -> None:
        """The teacher follows the student to the device.

        Lightning keeps the modes that it finds, and ``build_sam`` builds in eval mode.
        """
        self.teacher.sam.to(self.device)
        self.student.image_encoder.train()
        self.student.mask_decoder.train(self._train_decoder)

    def on_train_epoch_end(self) -> None:
        """How many images the teacher has encoded; with a cache the number stops growing after the first epoch.

        The processes' next epochs read what all of them have written in this one.
        """
        self.log("train/teacher_images", float(self.teacher.images_encoded), reduce_fx="sum", sync_dist=True)
        if self.teacher.cache is not None:
            self.teacher.cache.flush()
            self.trainer.strategy.barrier()
            self.teacher.cache.refresh()

    def configure_optimizers(self) -> Any:
        """What is trained, warm-up and cosine."""
        return cosine_schedule(self.trainer, self.student, self._optimizer, self._warmup_images)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a checkpoint counts as done is on disk."""
        if self.teacher.cache is not None:
            self.teacher.cache.flush()

    def on_fit_end(self) -> None:
        """The last shard may be short."""
        if self.teacher.cache is not None:
            self.teacher.cache.flush()


class DistillDecoupled(Distill):
    """Trains the student's image encoder on the teacher's image embeddings, and nothing else.

    Args:
        student: the model to train.
        teacher: the model to imitate, of the student's image size and embedding width.
        optimizer: makes the optimizer from the parameters.
        warmup_images: images that the learning rate rises over.
        mse_weight: of the mean squared error.
        cosine_weight: of one minus the cosine similarity of each cell.
        mask_padding: leave out the cells that hold nothing of the image, as EdgeSAM does.

    Raises:
        ValueError: the two models' sizes differ, or a loss over the padding, of which the cache has nothing.

    Source: MobileSAM, section 3, which has the mean squared error of all cells alone.
    """

    def __init__(
        self,
        student: Sam,
        teacher: Teacher,
        optimizer: OptimizerFactory,
        warmup_images: int = 0,
        mse_weight: float = 1.0,
        cosine_weight: float = 0.0,
        mask_padding: bool = False,
    ) -> None:
        super().__init__(student, teacher, optimizer, warmup_images)
        if not mask_padding:
            teacher.refuse_valid_region("the loss is taken over the padding; task.mask_padding=true, or")
        self._mse_weight, self._cosine_weight = mse_weight, cosine_weight
        self._mask_padding = mask_padding

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        mse, cosine = self._errors(batch)
        loss = self._mse_weight * mse + self._cosine_weight * cosine
        size = len(batch["pixels"])
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log("train/cosine", 1 - cosine.detach(), batch_size=size)
        return loss

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Error and cosine similarity on images that no step trains on."""
        mse, cosine = self._errors(batch)
        size = len(batch["pixels"])
        loss = self._mse_weight * mse + self._cosine_weight * cosine
        self.log("val/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self.log("val/cosine", 1 - cosine, batch_size=size, sync_dist=True)

    def _errors(self, batch: Sample) -> tuple[Tensor, Tensor]:
        """Mean squared error, and one minus the cosine similarity, means over the cells that count."""
        student, teacher = self.student.image_encoder(batch["pixels"]), self.teacher.embedding(batch)
        valid = valid_cells(batch["resized"], student.shape[-1]) if self._mask_padding else None
        return embedding_losses(student, teacher, valid)


def valid_cells(resized: Tensor, grid: int) -> Tensor:
    """(B, grid, grid) bool: the cells of the image embedding that hold a pixel of the image.

    Args:
        resized: (B, 2) height and width of the images in the model's input, pixels.
        grid: side of the image embedding, cells.
    """
    inside = torch.arange(grid, device=resized.device) < cells_of(resized)[..., None]  # (B, 2, grid)
    return inside[:, 0, :, None] & inside[:, 1, None, :]
