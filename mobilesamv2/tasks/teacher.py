"""The model to imitate: its image embeddings, encoded or read from disk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mobilesamv2.checkpoints import weights_sha256
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.samples import Sample
from mobilesamv2.models.image_encoder import EMBEDDING_STRIDE
from mobilesamv2.models.sam import Sam
from mobilesamv2.transforms import PREPROCESSING

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher:
    """A model in eval mode that gets no gradient, and the cache of its image embeddings.

    It is no module, so that it is in no checkpoint; where weights are averaged, it is not copied.

    Args:
        sam: the model.
        cache: where its embeddings are kept; None computes them anew in each epoch.
        precision: that the image encoder computes in: ``fp32``, or ``bf16`` or ``fp16`` by autocast.

    Raises:
        ValueError: another precision.
    """

    def __init__(self, sam: Sam, cache: EmbeddingCache | None = None, precision: str = "fp32") -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"teacher.precision is one of {', '.join(PRECISIONS)}; got {precision}.")
        self.sam = sam.eval().requires_grad_(False)
        self.cache = cache
        self.precision = precision
        self.images_encoded = 0
        """In this run; the rest were read."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Image embeddings (B, C, S/16, S/16) float32 of pixels (B, 3, S, S), whatever precision the student has."""
        self.images_encoded += len(pixels)
        dtype = PRECISIONS[self.precision]
        with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
            return self.sam.image_encoder(pixels.float()).float()

    def embedding(self, batch: Sample) -> Tensor:
        """(B, C, S/16, S/16) of a batch: read with it by the loader, or encoded, and then kept."""
        if "teacher_embedding" in batch:
            return batch["teacher_embedding"].float()
        if self.cache is None:
            return self.encode(batch["pixels"])
        self.keep(batch)
        # what later epochs will read, so that a run that is resumed is the run that was not stopped
        return self.cache.read(batch["image_id"].tolist(), batch["pixels"]).to(batch["pixels"].device).float()

    def keep(self, batch: Sample) -> None:
        """Encodes a batch and writes it into the cache, unless it is there.

        Raises:
            ValueError: there is no cache.
        """
        if self.cache is None:
            raise ValueError("The teacher's embeddings are to be kept, and there is no cache: teacher.cache=on.")
        image_ids = batch["image_id"].tolist()
        if not all(image_id in self.cache for image_id in image_ids):
            # the whole batch, since an embedding differs in its last bits with the number of images beside it
            self.cache.write(image_ids, self.encode(batch["pixels"]), cells_of(batch["resized"]), batch["pixels"])

    def refuse_valid_region(self, why: str) -> None:
        """Nothing, if the cache has whole embeddings.

        Raises:
            ValueError: it leaves out the padding.
        """
        if self.cache is not None and self.cache.region == "valid":
            raise ValueError(f"cache.region=valid keeps nothing of the padding, and {why} cache.region=full.")


def cells_of(resized: Tensor) -> Tensor:
    """(B, 2) rows and columns of the image embedding that hold a pixel of the image.

    Args:
        resized: (B, 2) height and width of the images in the model's input, pixels.
    """
    return (resized + EMBEDDING_STRIDE - 1) // EMBEDDING_STRIDE


def teacher_identity(teacher: Sam, precision: str = "fp32") -> dict[str, str | int]:
    """What the teacher's embeddings depend on: name, hash of the image encoder's weights, preprocessing, precision."""
    return {
        "teacher": teacher.name or "unnamed",
        "weights_sha256": weights_sha256(teacher.image_encoder),
        "image_size": teacher.image_size,
        "preprocessing": PREPROCESSING,
        "precision": precision,
    }
