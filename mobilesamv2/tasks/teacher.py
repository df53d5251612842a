"""The teacher of a distillation: its image embeddings, encoded or read from disk, and the pass that caches them."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from typing_extensions import override

from mobilesamv2.checkpoints import weights_sha256
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.samples import Sample
from mobilesamv2.models.sam import Sam
from mobilesamv2.ranges import Count
from mobilesamv2.structures import EMBEDDING_STRIDE
from mobilesamv2.tasks.teacher_batch import RECORD, agree_on_batch, find_batch
from mobilesamv2.transforms import preprocessing

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher:
    """A model in eval mode without gradients, and the cache of its image embeddings.

    It is no module, so that checkpoints leave it out and the averaging of weights does not copy it.

    Args:
        sam: the model.
        cache: store of its image embeddings; None encodes the images in every epoch.
        precision: precision of the image encoder: ``fp32``, or ``bf16`` or ``fp16`` by autocast.
        levels: levels of the image embedding that are returned and cached, coarsest first; None for all.

    Attributes:
        images_encoded: images that were encoded in this run; the rest were read from the cache.
        level_channels: channels of each level that it returns, C together.

    Raises:
        ValueError: if ``precision`` is none of these, or there are not so many levels.
    """

    def __init__(
        self, sam: Sam, cache: EmbeddingCache | None = None, precision: str = "fp32", levels: Count | None = None
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"teacher.precision must be one of {', '.join(PRECISIONS)}, got {precision}.")
        most = len(sam.level_channels)
        if levels is not None and (type(levels) is not int or not 1 <= levels <= most):
            raise ValueError(f"teacher.levels must be null or from 1 to {most} for {sam.name}, got {levels}.")
        self.level_channels = sam.level_channels[:levels]
        self.sam = sam.eval().requires_grad_(False)
        self.cache = cache
        self.precision = precision
        self.images_encoded = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self

    def encode(self, pixels: Tensor) -> Tensor:
        """Return float32 image embeddings (B, C, S/16, S/16) of pixels (B, 3, S, S), and count them."""
        self.images_encoded += len(pixels)
        return self.run_encoder(pixels)

    @torch.no_grad()
    def run_encoder(self, pixels: Tensor) -> Tensor:
        """Return float32 image embeddings (B, C, S/16, S/16) of pixels (B, 3, S, S) of any precision."""
        dtype = PRECISIONS[self.precision]
        with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
            embedding = self.sam.image_encoder(pixels.float()).float()
        return embedding if self.has_all_levels else embedding[:, : sum(self.level_channels)]

    @property
    def has_all_levels(self) -> bool:
        """Return whether no level of the embeddings is left out."""
        return self.level_channels == self.sam.level_channels

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

    def check_all_levels(self, reason: str) -> None:
        """Check that no level of the embeddings is left out.

        Args:
            reason: why the task requires all.

        Raises:
            ValueError: if one is.
        """
        if not self.has_all_levels:
            raise ValueError(f"teacher.levels must be null, got {len(self.level_channels)}: {reason}")


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

    Many jobs can share this pass out before a student is trained. The teacher encodes as many images at once as memory
    allows, always equally many, whatever batches the loader gives.

    Args:
        teacher: the teacher, with a cache.
        largest_batch: images that it encodes at once, at most.
    """

    def __init__(self, teacher: Teacher, largest_batch: Count = 64) -> None:
        super().__init__()
        assert teacher.cache is not None, "there is nothing to fill"
        self.teacher = teacher
        self.network = teacher.sam.image_encoder  # an attribute, so that Lightning moves it to the device
        self._cache = teacher.cache
        self._largest_batch = largest_batch
        self._batch = 0
        self._waiting: dict[int, tuple[Tensor, Tensor]] = {}  # pixels and size of images, by id
        self._began = time.monotonic()
        self.images_per_second = 0.0
        """Of the pass, once it has ended; waiting for photos included."""

    @override
    def on_predict_start(self) -> None:
        side, device = self.teacher.sam.image_size, str(self.device)

        def find(largest: int) -> int:
            return find_batch(self.teacher.run_encoder, (3, side, side), largest, device)

        self._batch = agree_on_batch(self._cache.folder, self._largest_batch, find)
        logger.info("The teacher encodes %d images at once, as %s says.", self._batch, self._cache.folder / RECORD)
        self._began = time.monotonic()

    @override
    def predict_step(self, batch: Sample, batch_idx: int) -> None:
        for image_id, pixels, resized in zip(
            batch["image_id"].tolist(), batch["pixels"], batch["resized"], strict=True
        ):
            if image_id not in self._cache:
                self._waiting[image_id] = (pixels, resized)
        while len(self._waiting) >= self._batch:
            self._encode_waiting()

    @override
    def on_predict_end(self) -> None:
        if self._waiting:
            self._encode_waiting()
        self._cache.flush()  # the last shard may be short
        self.images_per_second = self.teacher.images_encoded / max(time.monotonic() - self._began, 1e-9)

    def _encode_waiting(self) -> None:
        """Encode and store the images that have waited longest; a short rest is filled up by black images."""
        ids = list(self._waiting)[: self._batch]
        pixels, resized = map(torch.stack, zip(*(self._waiting.pop(image_id) for image_id in ids), strict=True))
        missing = self._batch - len(ids)
        full = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])]) if missing else pixels
        try:
            embeddings = self.teacher.run_encoder(full)[: len(ids)]
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"The {self._batch} images at once that {self._cache.folder / RECORD} records must fit in the memory "
                f"of {self.device}, and do not: end what else runs there, run on a larger device, or begin another "
                "cache.folder, with task.largest_batch=N."
            ) from error
        self.teacher.images_encoded += len(ids)
        self._cache.write(ids, embeddings, valid_grid_size(resized), pixels)


def valid_grid_size(resized: Tensor) -> Tensor:
    """Return the (B, 2) rows and columns of the image embedding that hold pixels of the image.

    Args:
        resized: (B, 2) height and width of the images in the model's input, pixels.
    """
    return (resized + EMBEDDING_STRIDE - 1) // EMBEDDING_STRIDE


def teacher_identity(teacher: Sam, precision: str = "fp32", levels: int | None = None) -> dict[str, str | int]:
    """Return what embeddings depend on: name, hash of the encoder's weights, preprocessing, precision and levels."""
    return {
        "teacher": teacher.name or "unnamed",
        "weights_sha256": weights_sha256(teacher.image_encoder),
        "image_size": teacher.image_size,
        "preprocessing": preprocessing(teacher.resizing),
        "precision": precision,
        **({} if levels is None or levels == len(teacher.level_channels) else {"levels": levels}),
    }
