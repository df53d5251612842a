"""Distillation: what its ways share, and the decoupled one, where the student learns the teacher's image embedding."""

from __future__ import annotations

import hashlib
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.samples import Sample
from mobilesamv2.models.image_encoder import EMBEDDING_STRIDE
from mobilesamv2.models.sam import Sam
from mobilesamv2.tasks.losses import embedding_losses
from mobilesamv2.tasks.schedule import OptimizerFactory, cosine_schedule


class Distill(pl.LightningModule):
    """A student, a teacher, and the cache of the teacher's embeddings.

    The student takes over the prompt encoder and mask decoder of the teacher, since its embedding is to fit them. The
    teacher is in eval mode, gets no gradient, and is in no checkpoint.

    Args:
        student: the model to train.
        teacher: the model to imitate; its image embedding has the shape of the student's.
        optimizer: makes the optimizer from the parameters.
        warmup_steps: optimizer steps of linear warm-up.
        cache: where the teacher's embeddings are kept; None computes them anew in each epoch.
        train_decoder: train the student's mask decoder too.

    Raises:
        ValueError: the two models' sizes differ.
    """

    def __init__(
        self,
        student: Sam,
        teacher: Sam,
        optimizer: OptimizerFactory,
        warmup_steps: int = 0,
        cache: EmbeddingCache | None = None,
        train_decoder: bool = False,
    ) -> None:
        super().__init__()
        ours, theirs = ((s.image_size, s.prompt_encoder.embed_dim) for s in (student, teacher))
        if ours != theirs:
            raise ValueError(f"Image size and embedding width are {ours} in the student and {theirs} in the teacher.")
        student.prompt_encoder.load_state_dict(teacher.prompt_encoder.state_dict())
        student.mask_decoder.load_state_dict(teacher.mask_decoder.state_dict())
        student.prompt_encoder.requires_grad_(False)
        student.mask_decoder.requires_grad_(train_decoder)
        self.student = student
        self._teacher = [teacher]  # in a list, so that it is no submodule and in no checkpoint
        self._optimizer = optimizer
        self._warmup_steps = warmup_steps
        self._train_decoder = train_decoder
        self.cache = cache
        self.teacher_images = 0
        """Images that the teacher has encoded in this run; the rest were read."""

    @property
    def teacher(self) -> Sam:
        """The model to imitate."""
        return self._teacher[0]

    def on_fit_start(self) -> None:
        """The teacher follows the student to the device.

        Lightning keeps the modes that it finds, and ``build_sam`` builds in eval mode.
        """
        self.teacher.to(self.device).eval().requires_grad_(False)
        self.student.image_encoder.train()
        self.student.mask_decoder.train(self._train_decoder)

    def on_train_epoch_end(self) -> None:
        """How many images the teacher has encoded; with a cache the number stops growing after the first epoch."""
        self.log("train/teacher_images", float(self.teacher_images))

    def configure_optimizers(self) -> Any:
        """What is trained, warm-up and cosine."""
        return cosine_schedule(self.trainer, self.student.parameters(), self._optimizer, self._warmup_steps)

    @torch.no_grad()
    def teacher_embedding(self, batch: Sample) -> Tensor:
        """(B, C, S/16, S/16) of a batch, from the cache as far as it has them."""
        if self.cache is None:
            return self._encode(batch["pixels"])
        image_ids = batch["image_id"].tolist()
        if not all(image_id in self.cache for image_id in image_ids):
            # the whole batch, since an embedding differs in its last bits with the number of images beside it
            self.cache.write(image_ids, self._encode(batch["pixels"]))
        return self.cache.read(image_ids).to(self.device)

    def _encode(self, pixels: Tensor) -> Tensor:
        self.teacher_images += len(pixels)
        return self.teacher.image_encoder(pixels)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a checkpoint counts as done is on disk."""
        if self.cache is not None:
            self.cache.flush()

    def on_fit_end(self) -> None:
        """The last shard may be short."""
        if self.cache is not None:
            self.cache.flush()


class DistillDecoupled(Distill):
    """Trains the student's image encoder on the teacher's image embeddings, and nothing else.

    Args:
        student: the model to train.
        teacher: the model to imitate; its image embedding has the shape of the student's.
        optimizer: makes the optimizer from the parameters.
        warmup_steps: optimizer steps of linear warm-up.
        cache: where the teacher's embeddings are kept; None computes them anew in each epoch.
        mse_weight: of the mean squared error.
        cosine_weight: of one minus the cosine similarity of each cell.
        mask_padding: leave out the cells that hold nothing of the image, as EdgeSAM does.

    Raises:
        ValueError: the two models' sizes differ.

    Source: MobileSAM, section 3, which has the mean squared error of all cells alone.
    """

    def __init__(
        self,
        student: Sam,
        teacher: Sam,
        optimizer: OptimizerFactory,
        warmup_steps: int = 0,
        cache: EmbeddingCache | None = None,
        mse_weight: float = 1.0,
        cosine_weight: float = 0.0,
        mask_padding: bool = False,
    ) -> None:
        super().__init__(student, teacher, optimizer, warmup_steps, cache)
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
        student, teacher = self.student.image_encoder(batch["pixels"]), self.teacher_embedding(batch)
        valid = valid_cells(batch["resized"], student.shape[-1]) if self._mask_padding else None
        return embedding_losses(student, teacher, valid)


def valid_cells(resized: Tensor, grid: int) -> Tensor:
    """(B, grid, grid) bool: the cells of the image embedding that hold a pixel of the image.

    Args:
        resized: (B, 2) height and width of the images in the model's input, pixels.
        grid: side of the image embedding, cells.
    """
    begin = torch.arange(grid, device=resized.device) * EMBEDDING_STRIDE
    inside = begin < resized[..., None]  # (B, 2, grid)
    return inside[:, 0, :, None] & inside[:, 1, None, :]


def teacher_identity(teacher: Sam, precision: str = "32-true") -> dict[str, str | int]:
    """What the teacher's embeddings depend on: name, hash of the image encoder's weights, image size, precision."""
    digest = hashlib.sha256()
    for key, value in sorted(teacher.image_encoder.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "teacher": teacher.name or "unnamed",
        "weights_sha256": digest.hexdigest(),
        "image_size": teacher.image_size,
        "precision": precision,
    }
