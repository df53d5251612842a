"""Resized pixels on disk: what the encoder sees, before normalisation, so that photos are decoded and resized once."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, features
from typing_extensions import override

from mobilesamv2.data.tensor_shards import Parts, ShardError, TensorShards
from mobilesamv2.ranges import Count
from mobilesamv2.transforms import preprocessing

FORMATS = ("raw", "webp")
"""How pixels are stored: as they are, or by WebP's lossless coding, a third of the bytes."""


class EncodedPixels(NamedTuple):
    """The pixels of an image as a shard stores them.

    Attributes:
        image_id: the image's id.
        content: uint8, (h, w, 3) as they are, or (n,) encoded.
        facts: (5,) int64: height and width of the image, then as it is resized, and the checksum of its signature.
    """

    image_id: int
    content: np.ndarray
    facts: np.ndarray


class PixelCache(TensorShards):
    """Pixels by image id, resized as ``ModelFrame`` does, without padding: the bits that decoding would give again.

    Args:
        folder: folder of the shards, created if missing.
        image_size: S, pixels; the longest side of all images.
        pixel_format: one of ``FORMATS``.
        shard_size: images in a shard.

    Raises:
        ValueError: if there is no such format, or the folder contains other pixels or a broken shard.
    """

    one, many, setting, part_names = "copy", "pixels", "cache.folder", ("", ".facts")

    def __init__(self, folder: str | Path, image_size: int, pixel_format: str, shard_size: Count = 64) -> None:
        if pixel_format not in FORMATS:
            raise ValueError(f"cache.pixels must be off, {' or '.join(FORMATS)}, got {pixel_format}.")
        if pixel_format == "webp" and not features.check("webp"):
            raise ValueError("cache.pixels=webp requires a Pillow with WebP, which its wheels have; raw requires none.")
        self.pixel_format = pixel_format
        identity = {"pixels": pixel_format, "image_size": str(image_size), "preprocessing": preprocessing()}
        super().__init__(folder, identity, shard_size)

    def read(self, image_id: int, signature: str) -> tuple[np.ndarray, tuple[int, int]]:
        """Return the pixels of an image, RGB uint8 (h, w, 3), and the (H, W) that it had before it was resized.

        Args:
            image_id: the image's id.
            signature: the image's, see ``ImageDataset.pixel_signature``.

        Raises:
            KeyError: if the image is not in the cache.
            ShardError: if a shard is broken, or holds another image of this id.
        """
        parts = self._parts(str(image_id))
        height, width, _, _, checksum = parts[".facts"].tolist()
        if checksum != zlib.crc32(signature.encode()):
            raise ShardError(
                f"{self.folder} contains the pixels of another image with id {image_id}, perhaps of another data set, "
                f"or decoded by other settings than {signature}: delete that folder (the embeddings lie elsewhere), or "
                "set cache.folder=FOLDER to another one."
            )
        content = parts[""].numpy()
        if self.pixel_format == "webp":
            content = np.asarray(Image.open(io.BytesIO(content.tobytes())).convert("RGB"))
        return content, (height, width)

    def encode(self, image_id: int, signature: str, rgb: np.ndarray, original_size: tuple[int, int]) -> EncodedPixels:
        """Encode pixels; a loader's worker does, and leaves it to the main process to write them.

        Args:
            image_id: the image's id.
            signature: the image's.
            rgb: RGB uint8 (h, w, 3), resized.
            original_size: (H, W) before.
        """
        facts = np.array([*original_size, *rgb.shape[:2], zlib.crc32(signature.encode())], dtype=np.int64)
        if self.pixel_format == "raw":
            return EncodedPixels(image_id, rgb, facts)
        content = io.BytesIO()  # the fastest setting; the slowest one saves another tenth
        Image.fromarray(rgb).save(content, "WEBP", lossless=True, quality=0, method=0)
        return EncodedPixels(image_id, np.frombuffer(content.getvalue(), dtype=np.uint8), facts)

    def write(self, encoded: EncodedPixels) -> None:
        """Store the pixels of an image, unless they are in the cache."""
        if encoded.image_id not in self:
            content, facts = (torch.from_numpy(np.array(each)) for each in encoded[1:])
            self._store(encoded.image_id, {"": content, ".facts": facts})
            self._flush_full_shards()

    @override
    def _has_kind(self, parts: Parts, shape: list[int] | None) -> bool:
        if not super()._has_kind(parts, shape) or parts.keys() != set(self.part_names):
            return False
        content, facts = parts[""], parts[".facts"]
        return (
            (content.dtype, facts.dtype, facts.shape) == (torch.uint8, torch.int64, (5,))
            and content.ndim == (3 if self.pixel_format == "raw" else 1)
            and (self.pixel_format != "raw" or [*content.shape] == [*facts[2:4].tolist(), 3])
        )
