"""The teacher's image embeddings on disk: written on the first pass, read on later ones."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from mobilesamv2.files import atomic_write
from mobilesamv2.ranges import Count

DTYPES = ("fp16", "int8")
REGIONS = {True: "full", False: "valid"}
"""``store_padding`` as the metadata of a shard has it, under "region"."""

INT8 = {"": torch.int8, ".scale": torch.float32}
"""Types of the parts of an embedding with ``int8`` that differ from those with ``fp16``."""

UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError)
"""Errors of a shard whose header is not as it was written."""

Parts = dict[str, Tensor]
"""An embedding as a shard stores it: its values under "" and, optionally, each channel's scale under ".scale" and the
fingerprint of the image under ".look"."""

FINGERPRINT_SIZE = 48
"""Numbers of a fingerprint: 4 x 4 means of 3 channels."""

FINGERPRINT_TOLERANCE = 0.1
"""Largest difference between the fingerprints of one JPEG from two decoders, in units of the model's input, where
images have a standard deviation of about 1."""


class EmbeddingCache:
    """Embeddings by image id, in shards of safetensors.

    A shard is written under a temporary name, synchronised and renamed, so that a killed run loses only the shard in
    progress. Several processes may write at once; each writes its own shards. Every embedding has a checksum, which is
    checked on every read. As a context manager it writes what is pending when the block ends, by any error too.

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
        self.folder = Path(folder)
        self.dtype, self.store_padding = dtype, store_padding
        settings = {"dtype": dtype, "region": REGIONS[store_padding]}
        self.identity = {key: str(value) for key, value in identity.items()} | settings
        self.shard_size = shard_size
        self.folder.mkdir(parents=True, exist_ok=True)
        self._shards: dict[str, Path] = {}
        self._known: set[str] = set()  # names of shards
        self._pending: dict[str, Parts] = {}
        self._grid: int | None = None  # side of an embedding with its padding, cells
        self.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        while self._pending:  # more than a shard, where the block ends amid a write
            self.flush()

    def refresh(self) -> None:
        """Find the shards that other processes have written since the last call."""
        names = {name for name in os.listdir(self.folder) if name.endswith(".safetensors")}
        for name in sorted(names - self._known):
            path = self.folder / name
            for key in self._keys_of(path):
                self._shards.setdefault(key, path)
            self._known.add(name)

    def __contains__(self, image_id: int) -> bool:
        return str(image_id) in self._shards or str(image_id) in self._pending

    def __len__(self) -> int:
        return len(self._shards.keys() | self._pending.keys())

    def read(self, image_ids: Sequence[int], pixels: Tensor | None = None) -> Tensor:
        """Read the embeddings (B, C, h, w) float16 of images that are in the cache.

        Args:
            image_ids: B ids.
            pixels: (B, 3, S, S), the images themselves, to check that the cache was computed on the same images.

        Raises:
            KeyError: if an image is not in the cache.
            ValueError: if a shard is broken, or an image differs from the cached one with its id.
        """
        stored = [self._parts(str(image_id)) for image_id in image_ids]
        if pixels is not None:
            for image_id, parts, expected in zip(image_ids, stored, fingerprint(pixels), strict=True):
                if ".look" in parts and (parts[".look"].float() - expected).abs().max() > FINGERPRINT_TOLERANCE:
                    raise ValueError(
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
            self._pending[str(image_id)] = {name: part.contiguous().clone() for name, part in parts.items()}
        while len(self._pending) >= self.shard_size:
            self.flush()

    def flush(self) -> None:
        """Write pending embeddings to disk, at most one shard, without those that another run has written meanwhile.

        A shard is named after its images: of two runs that fill a cache in step, both of which find the same images
        missing, the one that is later finds the other's shard, or replaces it.

        Raises:
            OSError: if the shard can't be written; its embeddings stay pending.
        """
        if not self._pending:
            return
        self.refresh()
        for key in self._pending.keys() & self._shards.keys():
            del self._pending[key]
        keys = list(self._pending)[: self.shard_size]
        if not keys:
            return
        path = self.folder / f"{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:32]}.safetensors"
        tensors = {f"{key}{name}": part for key in keys for name, part in self._pending[key].items()}
        metadata = {
            "identity": json.dumps(self.identity),
            "grid": str(self._grid),
            "crc32": json.dumps({key: crc32(self._pending[key]) for key in keys}),
            "shape": json.dumps({key: list(self._pending[key][""].shape) for key in keys}),
        }
        with atomic_write(path) as partial:
            save_file(tensors, partial, metadata)
        self._known.add(path.name)
        for key in keys:
            self._shards[key] = path
            del self._pending[key]

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

    def _parts(self, key: str) -> Parts:
        if key in self._pending:
            return self._pending[key]
        if key not in self._shards:
            raise KeyError(f"There is no embedding of image {key} in {self.folder}.")
        path = self._shards[key]
        try:
            with safe_open(path, framework="pt") as file:
                stored = file.keys()
                names = [name for name in ("", ".scale", ".look") if f"{key}{name}" in stored]
                parts = {name: file.get_tensor(f"{key}{name}") for name in names}
                metadata = file.metadata()
                expected = json.loads(metadata["crc32"])[key]
                shape = dict(json.loads(metadata.get("shape", "{}"))).get(key)  # older shards have none
        except UNREADABLE as error:
            raise ValueError(f"The embeddings in {path} can't be read ({error!r}); delete that file.") from error
        if crc32(parts) != expected or not self._has_kind(parts, shape):
            raise ValueError(f"The embedding of image {key} in {path} fails its checksum; delete that file.")
        return parts

    def _has_kind(self, parts: Parts, shape: list[int] | None) -> bool:
        """Return whether the header gives an embedding the types and the shape that it was stored with.

        A checksum is of the bytes alone, which a changed header reads as other numbers.
        """
        dtypes = {".look": torch.float16, "": torch.float16} | (INT8 if self.dtype == "int8" else {})
        if "" not in parts or (".scale" in parts) != (".scale" in dtypes):
            return False
        values, grid = parts[""], self._grid or 0
        sides = values.shape[1:]
        return (
            all(part.dtype == dtypes[name] for name, part in parts.items())
            and values.ndim == 3
            and (all(side == grid for side in sides) if self.store_padding else max(sides) <= grid)
            and shape in (None, list(values.shape))
            and (".scale" not in parts or parts[".scale"].shape == values.shape[:1])
            and (".look" not in parts or parts[".look"].shape == (FINGERPRINT_SIZE,))
        )

    def _keys_of(self, path: Path) -> list[str]:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            stored = dict(json.loads(metadata.get("identity", "{}")))
        except UNREADABLE as error:
            raise ValueError(f"The embeddings in {path} can't be read ({error!r}); delete that file.") from error
        if stored != self.identity:
            theirs, ours = _as_settings(stored), _as_settings(self.identity)
            differences = [
                f"{name} {theirs.get(name)} instead of {ours.get(name)}"
                for name in sorted(theirs.keys() | ours.keys())
                if theirs.get(name) != ours.get(name)
            ]
            raise ValueError(
                f"The embeddings in {path} differ from this run's: {'; '.join(differences)}. "
                f"Set cache.folder=FOLDER to another folder, or delete {self.folder}."
            )
        try:
            keys, grid = list(dict(json.loads(metadata["crc32"]))), int(metadata["grid"])
        except UNREADABLE as error:
            raise ValueError(f"The embeddings in {path} can't be read ({error!r}); delete that file.") from error
        if self._grid not in (None, grid):
            raise ValueError(f"The embeddings in {path} are {grid} cells wide, not {self._grid}; delete that file.")
        self._grid = grid
        return keys


def _as_settings(identity: Mapping[str, str]) -> dict[str, str]:
    """Return an identity with its region as the setting ``store_padding``, for error messages."""
    settings = dict(identity)
    if "region" in settings:
        settings["store_padding"] = str(settings.pop("region") == REGIONS[True]).lower()
    return settings


def fingerprint(pixels: Tensor) -> Tensor:
    """Return coarse means (B, 48) of images (B, 3, S, S), which tell two images apart; on the CPU."""
    stride = max(1, pixels.shape[-1] // 128)
    return F.adaptive_avg_pool2d(pixels[:, :, ::stride, ::stride].float(), 4).flatten(1).cpu()


def quantized(embedding: Tensor) -> Parts:
    """Quantize an embedding (C, h, w) to int8, with the scale (C,) that makes each channel's largest value 127.

    A channel of zeros has scale 1.
    """
    largest = embedding.abs().amax((1, 2))
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return {"": (embedding / scale[:, None, None]).round().to(torch.int8), ".scale": scale}


def crc32(parts: Parts) -> int:
    """Return the checksum of an embedding's bytes."""
    checksum = 0
    for name in sorted(parts):
        checksum = zlib.crc32(parts[name].numpy().data, checksum)
    return checksum
