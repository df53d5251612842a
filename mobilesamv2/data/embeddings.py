"""The teacher's image embeddings on disk: written on the first pass, read on later ones."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class EmbeddingCache:
    """Embeddings by image id, in shards of half-precision safetensors.

    A shard is written whole under a temporary name, synchronised and renamed, so that a killed run loses the shard in
    progress and nothing else. Several processes may write at once; each writes shards of its own.

    Args:
        folder: where the shards are; created if need be.
        identity: what the embeddings depend on: the teacher's name, the hash of its weights, the image size. It is
            written into each shard.
        shard_size: embeddings in a shard.

    Raises:
        ValueError: the folder holds embeddings of another identity, or a broken shard; the sentence says what differs.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, str | int], shard_size: int = 64) -> None:
        self.folder = Path(folder)
        self.identity = {key: str(value) for key, value in identity.items()}
        self.shard_size = shard_size
        self.folder.mkdir(parents=True, exist_ok=True)
        self._shards: dict[str, Path] = {}
        self._pending: dict[str, Tensor] = {}
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

    def read(self, image_ids: Sequence[int]) -> Tensor:
        """Embeddings (B, C, h, w) float32 of images that are in the cache.

        Raises:
            KeyError: an image that is not.
        """
        return torch.stack([self._read_one(str(image_id)) for image_id in image_ids]).float()

    def write(self, image_ids: Sequence[int], embeddings: Tensor) -> Tensor:
        """Keeps embeddings (B, C, h, w), and returns them as later passes will read them.

        Raises:
            ValueError: an embedding that half precision can't hold; the sentence names the image.
        """
        halves = embeddings.detach().to("cpu", torch.float16)
        for image_id, half in zip(image_ids, halves, strict=True):
            if not torch.isfinite(half).all():
                raise ValueError(f"The embedding of image {image_id} is not finite in half precision.")
            if image_id not in self:
                self._pending[str(image_id)] = half.clone(memory_format=torch.contiguous_format)
        while len(self._pending) >= self.shard_size:
            self.flush()
        return halves.float()

    def flush(self) -> None:
        """Writes what is pending to disk, at most a shard."""
        keys = list(self._pending)[: self.shard_size]
        if not keys:
            return
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        temporary = path.with_suffix(".partial")
        save_file({key: self._pending[key] for key in keys}, temporary, {"identity": json.dumps(self.identity)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.rename(path)
        for key in keys:
            self._shards[key] = path
            del self._pending[key]

    def _read_one(self, key: str) -> Tensor:
        if key in self._pending:
            return self._pending[key]
        if key not in self._shards:
            raise KeyError(f"There is no embedding of image {key} in {self.folder}.")
        with safe_open(self._shards[key], framework="pt") as file:
            return file.get_tensor(key)

    def _keys_of(self, path: Path) -> list[str]:
        try:
            with safe_open(path, framework="pt") as file:
                theirs = json.loads((file.metadata() or {}).get("identity", "{}"))
                keys = list(file.keys())
        except SafetensorError as error:
            raise ValueError(f"The embeddings in {path} can't be read ({error}); delete that file.") from error
        if theirs != self.identity:
            names = theirs.keys() | self.identity.keys()
            differs = [
                f"{name} {theirs.get(name)} instead of {self.identity.get(name)}"
                for name in sorted(names)
                if theirs.get(name) != self.identity.get(name)
            ]
            raise ValueError(f"The embeddings in {self.folder} are of another teacher: {'; '.join(differs)}.")
        return keys
