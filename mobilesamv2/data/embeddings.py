"""The teacher's image embeddings on disk: written on the first pass, read on later ones."""

from __future__ import annotations

import json
import os
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

DTYPES = ("fp16", "int8")
REGIONS = ("full", "valid")

Parts = dict[str, Tensor]
"""An embedding as a shard has it: its values under "", and the scale of each channel under ".scale", if it has one."""


class EmbeddingCache:
    """Embeddings by image id, in shards of safetensors.

    A shard is written whole under a temporary name, synchronised and renamed, so that a killed run loses the shard in
    progress and nothing else. Several processes may write at once; each writes shards of its own. Every embedding has
    a checksum, which is looked at whenever it is read.

    Args:
        folder: where the shards are; created if need be.
        identity: what the embeddings depend on: the teacher's name, the hash of its weights, how images are prepared.
            It is written into each shard.
        dtype: ``fp16``, or ``int8`` with a scale for each channel of each image, half the bytes.
        region: ``full``, or ``valid``, which leaves out the cells that hold nothing of the image; they are read as 0.
        shard_size: embeddings in a shard.

    Raises:
        ValueError: the folder holds other embeddings, or a broken shard; the sentence says what differs.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping[str, str | int],
        dtype: str = "fp16",
        region: str = "full",
        shard_size: int = 64,
    ) -> None:
        for name, value, known in (("dtype", dtype, DTYPES), ("region", region, REGIONS)):
            if value not in known:
                raise ValueError(f"cache.{name} is {' or '.join(known)}; got {value}.")
        self.folder = Path(folder)
        self.dtype, self.region = dtype, region
        self.identity = {key: str(value) for key, value in identity.items()} | {"dtype": dtype, "region": region}
        self.shard_size = shard_size
        self.folder.mkdir(parents=True, exist_ok=True)
        self._shards: dict[str, Path] = {}
        self._pending: dict[str, Parts] = {}
        self._grid: int | None = None  # side of a whole embedding, cells
        self.refresh()

    def refresh(self) -> None:
        """Finds the shards that other processes have written since."""
        known = set(self._shards.values())
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in known:
                self._shards |= dict.fromkeys(self._keys_of(path), path)

    def __contains__(self, image_id: int) -> bool:
        return str(image_id) in self._shards or str(image_id) in self._pending

    def __len__(self) -> int:
        return len(self._shards.keys() | self._pending.keys())

    def read(self, image_ids: Iterable[int]) -> Tensor:
        """Embeddings (B, C, h, w) float16 of images that are in the cache.

        Raises:
            KeyError: an image that is not.
            ValueError: a shard that is broken.
        """
        return torch.stack([self._whole(self._parts(str(image_id))) for image_id in image_ids])

    def write(self, image_ids: Sequence[int], embeddings: Tensor, cells: Tensor | None = None) -> None:
        """Keeps embeddings; what ``read`` gives from now on is what later passes will read.

        Args:
            image_ids: B ids; those that are in the cache already are passed over.
            embeddings: (B, C, h, w).
            cells: (B, 2) rows and columns that hold something of the image; for ``region="valid"``.

        Raises:
            ValueError: an embedding that half precision can't hold; the sentence names the image.
        """
        if self.region == "valid" and cells is None:
            raise ValueError("region='valid' wants to be told which cells hold something of the image.")
        self._grid = embeddings.shape[-1]
        for i, (image_id, embedding) in enumerate(zip(image_ids, embeddings.detach().float().cpu(), strict=True)):
            if image_id in self:
                continue
            if not torch.isfinite(embedding.half()).all():
                raise ValueError(f"The embedding of image {image_id} is not finite in half precision.")
            if self.region == "valid" and cells is not None:
                rows, columns = cells[i].tolist()
                embedding = embedding[:, :rows, :columns]
            parts = quantised(embedding) if self.dtype == "int8" else {"": embedding.half()}
            self._pending[str(image_id)] = {name: part.contiguous().clone() for name, part in parts.items()}
        while len(self._pending) >= self.shard_size:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending to disk, at most a shard."""
        keys = list(self._pending)[: self.shard_size]
        if not keys:
            return
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        temporary = path.with_suffix(".partial")
        tensors = {f"{key}{name}": part for key in keys for name, part in self._pending[key].items()}
        metadata = {
            "identity": json.dumps(self.identity),
            "grid": str(self._grid),
            "crc32": json.dumps({key: crc32(self._pending[key]) for key in keys}),
        }
        save_file(tensors, temporary, metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.rename(path)
        for key in keys:
            self._shards[key] = path
            del self._pending[key]

    def _whole(self, parts: Parts) -> Tensor:
        """(C, h, w) float16, what was left out filled with zeros."""
        values = parts[""]
        if ".scale" in parts:
            values = values.float() * parts[".scale"][:, None, None]
        rows, columns = values.shape[1:]
        grid = self._grid or max(rows, columns)
        return F.pad(values.half(), (0, grid - columns, 0, grid - rows)) if self.region == "valid" else values.half()

    def _parts(self, key: str) -> Parts:
        if key in self._pending:
            return self._pending[key]
        if key not in self._shards:
            raise KeyError(f"There is no embedding of image {key} in {self.folder}.")
        path = self._shards[key]
        try:
            with safe_open(path, framework="pt") as file:
                names = ("", ".scale") if self.dtype == "int8" else ("",)
                parts = {name: file.get_tensor(f"{key}{name}") for name in names}
                expected = json.loads(file.metadata()["crc32"])[key]
        except (SafetensorError, OSError) as error:
            raise ValueError(f"The embeddings in {path} can't be read ({error}); delete that file.") from error
        if crc32(parts) != expected:
            raise ValueError(f"The embedding of image {key} in {path} fails its checksum; delete that file.")
        return parts

    def _keys_of(self, path: Path) -> list[str]:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"The embeddings in {path} can't be read ({error}); delete that file.") from error
        theirs = json.loads(metadata.get("identity", "{}"))
        if theirs != self.identity:
            names = sorted(theirs.keys() | self.identity.keys())
            differs = [
                f"{name} {theirs.get(name)} instead of {self.identity.get(name)}"
                for name in names
                if theirs.get(name) != self.identity.get(name)
            ]
            raise ValueError(
                f"The embeddings in {self.folder} are others than this run's: {'; '.join(differs)}. "
                "Name another folder, cache.folder=FOLDER, or delete this one."
            )
        self._grid = int(metadata["grid"])
        return list(json.loads(metadata["crc32"]))


def quantised(embedding: Tensor) -> Parts:
    """An embedding (C, h, w) as int8, and the scale (C,) that makes each channel's largest value 127.

    A channel of zeros has scale 1.
    """
    largest = embedding.abs().amax((1, 2))
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return {"": (embedding / scale[:, None, None]).round().to(torch.int8), ".scale": scale}


def crc32(parts: Parts) -> int:
    """Checksum of an embedding's bytes."""
    checksum = 0
    for name in sorted(parts):
        checksum = zlib.crc32(parts[name].numpy().data, checksum)
    return checksum
