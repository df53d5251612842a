"""The teacher's image embeddings on disk: written on the first pass, read on later ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from mobilesamv2.data.tensor_shards import Parts, ShardError, TensorShards
from mobilesamv2.ranges import Count

DTYPES = ("fp16", "int8")
REGIONS = {True: "full", False: "valid"}
"""``store_padding`` as the metadata of a shard has it, under "region"."""

INT8 = {"": torch.int8, ".scale": torch.float32}
"""Types of the parts of an embedding with ``int8`` that differ from those with ``fp16``."""

FINGERPRINT_SIZE = 48
"""Numbers of a fingerprint: 4 x 4 means of 3 channels."""

FINGERPRINT_TOLERANCE = 0.1
"""Largest difference between the fingerprints of one JPEG from two decoders, in units of the model's input, where
images have a standard deviation of about 1."""


class EmbeddingCache(TensorShards):
    """Embeddings by image id, in shards, optionally with each channel's scale and the fingerprint of the image.

    Args:
        folder: folder of the shards, created if missing.
        identity: what the embeddings depend on: the teacher's name, the hash of its weights, the preprocessing. It is
            written into each shard.
        dtype: ``fp16``, or ``int8`` with a scale for each channel of each image, half the bytes.
        store_padding: store the full embedding; False omits the cells that contain no part of the image, which are read
            as 0.
        shard_size: embeddings in a shard.

    Raises:
        ValueError: if the folder contains other embeddings, or a broken shard.
    """

    one, many, setting, part_names = "embedding", "embeddings", "cache.folder", ("", ".scale", ".look")

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping[str, str | int],
        dtype: str = "fp16",
        store_padding: bool = True,
        shard_size: Count = 64,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"cache.dtype must be {' or '.join(DTYPES)}, got {dtype}.")
        self.dtype, self.store_padding = dtype, store_padding
        self._grid: int | None = None  # side of an embedding with its padding, cells
        settings = {"dtype": dtype, "region": REGIONS[store_padding]}
        super().__init__(folder, {key: str(value) for key, value in identity.items()} | settings, shard_size)

    def read(self, image_ids: Sequence[int], pixels: Tensor | None = None) -> Tensor:
        """Read the embeddings (B, C, h, w) float16 of images that are in the cache.

        Args:
            image_ids: B ids.
            pixels: (B, 3, S, S), the images themselves, to check that the cache was computed on the same images; those
                of ``strided_pixels`` do too.

        Raises:
            KeyError: if an image is not in the cache.
            ValueError: if a shard is broken, or an image differs from the cached one with its id.
        """
        stored = [self._parts(str(image_id)) for image_id in image_ids]
        if pixels is not None:
            for image_id, parts, expected in zip(image_ids, stored, fingerprint(pixels), strict=True):
                if ".look" in parts and (parts[".look"].float() - expected).abs().max() > FINGERPRINT_TOLERANCE:
                    raise ShardError(
                        f"{self.folder} contains the embedding of another image with id {image_id}, perhaps of another "
                        "data set: set cache.folder=FOLDER to another folder."
                    )
        return torch.stack([self._pad_to_full(parts) for parts in stored])

    def write(
        self,
        image_ids: Sequence[int],
        embeddings: Tensor,
        cells: Tensor | None = None,
        pixels: Tensor | None = None,
    ) -> None:
        """Store embeddings; from now on ``read`` returns the values that later passes will read.

        Args:
            image_ids: B ids; those that are in the cache already are skipped.
            embeddings: (B, C, h, w).
            cells: (B, 2) rows and columns that contain a part of the image; required with ``store_padding=False``.
            pixels: (B, 3, S, S), the images themselves, so that ``read`` can tell other images with the same ids apart.

        Raises:
            ValueError: if an embedding is not finite in half precision, or ``cells`` is missing.
        """
        if not self.store_padding and cells is None:
            raise ValueError("store_padding=False requires cells, the rows and columns that contain image.")
        self._grid = embeddings.shape[-1]
        fingerprints = None if pixels is None else fingerprint(pixels)
        for i, (image_id, embedding) in enumerate(zip(image_ids, embeddings.detach().float().cpu(), strict=True)):
            if image_id in self:
                continue
            if not torch.isfinite(embedding.half()).all():
                raise ValueError(f"The embedding of image {image_id} must be finite in half precision.")
            if not self.store_padding and cells is not None:
                rows, columns = cells[i].tolist()
                embedding = embedding[:, :rows, :columns]
            parts = quantized(embedding) if self.dtype == "int8" else {"": embedding.half()}
            if fingerprints is not None:
                parts[".look"] = fingerprints[i].half()
            self._store(image_id, parts)
        self._flush_full_shards()

    def _pad_to_full(self, parts: Parts) -> Tensor:
        """Return (C, h, w) float16, padded with zeros where the padding was not stored."""
        values = parts[""]
        if ".scale" in parts:
            values = values.float() * parts[".scale"][:, None, None]
        if self.store_padding:
            return values.half()
        rows, columns = values.shape[1:]
        grid = self._grid or max(rows, columns)
        return F.pad(values.half(), (0, grid - columns, 0, grid - rows))

    @override
    def _has_kind(self, parts: Parts, shape: list[int] | None) -> bool:
        dtypes = {".look": torch.float16, "": torch.float16} | (INT8 if self.dtype == "int8" else {})
        if not super()._has_kind(parts, shape) or (".scale" in parts) != (".scale" in dtypes):
            return False
        values, grid = parts[""], self._grid or 0
        sides = values.shape[1:]
        return (
            all(part.dtype == dtypes[name] for name, part in parts.items())
            and values.ndim == 3
            and (all(side == grid for side in sides) if self.store_padding else max(sides) <= grid)
            and (".scale" not in parts or parts[".scale"].shape == values.shape[:1])
            and (".look" not in parts or parts[".look"].shape == (FINGERPRINT_SIZE,))
        )

    @override
    def _more_metadata(self) -> dict[str, str]:
        return {"grid": str(self._grid)}

    @override
    def _read_more_metadata(self, path: Path, metadata: Mapping[str, str]) -> None:
        grid = int(metadata["grid"])
        if self._grid not in (None, grid):
            raise ShardError(f"The embeddings in {path} are {grid} cells wide, not {self._grid}; delete that file.")
        self._grid = grid

    @override
    def _as_settings(self, identity: Mapping[str, str]) -> dict[str, str]:
        settings = dict(identity)
        if "region" in settings:
            settings["store_padding"] = str(settings.pop("region") == REGIONS[True]).lower()
        return settings


def fingerprint_stride(image_size: int) -> int:
    """Return the step between the pixels that a fingerprint is made of, in an input of this side."""
    return max(1, image_size // 128)


def fingerprint(pixels: Tensor) -> Tensor:
    """Return coarse means (B, 48) of images (B, 3, S, S), which tell two images apart; on the CPU."""
    stride = fingerprint_stride(pixels.shape[-1])
    return F.adaptive_avg_pool2d(pixels[:, :, ::stride, ::stride].float(), 4).flatten(1).cpu()


def quantized(embedding: Tensor) -> Parts:
    """Quantize an embedding (C, h, w) to int8, with the scale (C,) that makes each channel's largest value 127.

    A channel of zeros has scale 1.
    """
    largest = embedding.abs().amax((1, 2))
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return {"": (embedding / scale[:, None, None]).round().to(torch.int8), ".scale": scale}
