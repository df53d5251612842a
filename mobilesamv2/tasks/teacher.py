"""The teacher of a distillation: its image embeddings, encoded or read from disk, and the pass that caches them."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from typing_extensions import override

from mobilesamv2.checkpoints import weights_sha256
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.samples import Sample
from mobilesamv2.models.sam import Sam
from mobilesamv2.structures import EMBEDDING_STRIDE
from mobilesamv2.transforms import preprocessing

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher:
    """A model in eval mode without gradients, and the cache of its image embeddings.

    It is no module, so that checkpoints leave it out and the averaging of weights does not copy it.

    Args:
        sam: the model.
        cache: store of its image embeddings; None encodes the images in every epoch.
        precision: precision of the image encoder: ``fp32``, or ``bf16`` or ``fp16`` by autocast.

    Attributes:
        images_encoded: images that were encoded in this run; the rest were read from the cache.

    Raises:
        ValueError: if ``precision`` is none of these.
    """

    def __init__(self, sam: Sam, cache: EmbeddingCache | None = None, precision: str = "fp32") -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"teacher.precision must be one of {', '.join(PRECISIONS)}, got {precision}.")
        self.sam = sam.eval().requires_grad_(False)
        self.cache = cache
        self.precision = precision
        self.images_encoded = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return float32 image embeddings (B, C, S/16, S/16) of pixels (B, 3, S, S) of any precision."""
        self.images_encoded += len(pixels)
        dtype = PRECISIONS[self.precision]
        with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
            return self.sam.image_encoder(pixels.float()).float()

    def embedding(self, batch: Sample) -> Tensor:
        """Return a batch's embeddings (B, C, S/16, S/16): read by the loader, or encoded and then cached."""
        if "teacher_embedding" in batch:
            return batch["teacher_embedding"].float()
        if self.cache is None:
            return self.encode(batch["pixels"])
        self.cache_batch(batch)
        # Read back what later epochs will read, so that a resumed run equals one that was never stopped.
        return self.cache.read(batch["image_id"].tolist(), batch["pixels"]).to(batch["pixels"].device).float()

    def cache_batch(self, batch: Sample) -> None:
        """Encode a batch and write it into the cache, unless it is there.

        Raises:
            ValueError: if there is no cache.
        """
        if self.cache is None:
            raise ValueError("teacher.cache must be on to store the teacher's embeddings, got off.")
        image_ids = batch["image_id"].tolist()
        if not all(image_id in self.cache for image_id in image_ids):
            # The full batch is encoded: an embedding's last bits depend on the number of images in its batch.
            grid_size = valid_grid_size(batch["resized"])
            self.cache.write(image_ids, self.encode(batch["pixels"]), grid_size, batch["pixels"])

    def check_full_embeddings(self, reason: str) -> None:
        """Check that the cache, if there is one, stores the padding of the embeddings.

        Args:
            reason: why the task requires it, and the way out.

        Raises:
            ValueError: if it does not.
        """
        if self.cache is not None and not self.cache.store_padding:
            raise ValueError(f"cache.store_padding must be true, got false: {reason}")


class LearnsFromTeacher(pl.LightningModule):
    """A task that trains on a teacher's image embeddings: it places the teacher and keeps the cache on disk.

    Args:
        teacher: the teacher.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    @override
    def on_fit_start(self) -> None:
        self.teacher.sam.to(self.device)  # it is no module, so Lightning does not move it

    @override
    def on_train_epoch_end(self) -> None:
        # With a cache this number stops growing after the first epoch.
        self.log("train/teacher_images", float(self.teacher.images_encoded), reduce_fx="sum", sync_dist=True)
        if self.teacher.cache is not None:
            # In the next epoch each process reads what all of them wrote in this one.
            self.teacher.cache.flush()
            self.trainer.strategy.barrier()
            self.teacher.cache.refresh()

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The embeddings of the images that a checkpoint counts as done must be on disk.
        if self.teacher.cache is not None:
            self.teacher.cache.flush()

    @override
    def on_fit_end(self) -> None:
        if self.teacher.cache is not None:
            self.teacher.cache.flush()  # the last shard may be short


class CacheTeacher(pl.LightningModule):
    """A pass of the teacher over all images, which writes the embeddings that its cache lacks.

    Many jobs can share this pass out before a student is trained.

    Args:
        teacher: the teacher, with a cache.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher
        self.network = teacher.sam.image_encoder  # an attribute, so that Lightning moves it to the device

    @override
    def predict_step(self, batch: Sample, batch_idx: int) -> None:
        self.teacher.cache_batch(batch)

    @override
    def on_predict_end(self) -> None:
        cache = self.teacher.cache
        assert cache is not None
        cache.flush()  # the last shard may be short


def valid_grid_size(resized: Tensor) -> Tensor:
    """Return the (B, 2) rows and columns of the image embedding that hold pixels of the image.

    Args:
        resized: (B, 2) height and width of the images in the model's input, pixels.
    """
    return (resized + EMBEDDING_STRIDE - 1) // EMBEDDING_STRIDE


def teacher_identity(teacher: Sam, precision: str = "fp32") -> dict[str, str | int]:
    """Return what the embeddings depend on: name, hash of the image encoder's weights, preprocessing and precision."""
    return {
        "teacher": teacher.name or "unnamed",
        "weights_sha256": weights_sha256(teacher.image_encoder),
        "image_size": teacher.image_size,
        "preprocessing": preprocessing(teacher.keep_aspect_ratio),
        "precision": precision,
    }
