"""Tensors by image id in shards of safetensors: checked, and complete whatever kills the program that writes them."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mobilesamv2.files import atomic_write
from mobilesamv2.ranges import Count

UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError)
"""Errors of a shard whose header is not as it was written."""

Parts = dict[str, Tensor]
"""What is stored of an image: its values under "", and more under names that begin with a dot."""


class ShardError(ValueError):
    """A shard is broken, or holds something else than this run reads."""


class TensorShards:
    """Tensors of images, in shards.

    A shard is written under a temporary name, synchronised and renamed, so that a killed run loses only the shard in
    progress. Several processes may write at once; each writes its own shards. What is stored of an image has a
    checksum, which is checked on every read. As a context manager they write what is pending when the block ends, by
    any error too.

    Args:
        folder: folder of the shards, created if missing.
        identity: what the tensors depend on; it is written into each shard.
        shard_size: images in a shard.

    Raises:
        ShardError: if the folder contains tensors of another identity, or a broken shard.
    """

    one, many, setting, part_names = "tensor", "tensors", "folder", ("",)
    """For error messages, what is stored of an image and of several, and the setting that names the folder; and the
    names of the parts."""

    def __init__(self, folder: str | Path, identity: Mapping[str, str], shard_size: Count) -> None:
        self.folder = Path(folder)
        self.identity = dict(identity)
        self.shard_size = shard_size
        self.folder.mkdir(parents=True, exist_ok=True)
        self._shards: dict[str, Path] = {}
        self._known: set[str] = set()  # names of shards
        self._pending: dict[str, Parts] = {}
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

    def num_bytes(self) -> int:
        """Return the bytes of the shards on disk."""
        return sum((self.folder / name).stat().st_size for name in self._known)

    def flush(self) -> None:
        """Write what is pending to disk, at most one shard, without what another run has written meanwhile.

        A shard is named after its images: of two runs that fill a folder in step, both of which find the same images
        missing, the one that is later finds the other's shard, or replaces it.

        Raises:
            OSError: if the shard can't be written; what it would hold stays pending.
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
            "crc32": json.dumps({key: crc32(self._pending[key]) for key in keys}),
            "shape": json.dumps({key: list(self._pending[key][""].shape) for key in keys}),
        }
        with atomic_write(path) as partial:
            save_file(tensors, partial, metadata | self._more_metadata())
        self._known.add(path.name)
        for key in keys:
            self._shards[key] = path
            del self._pending[key]

    def _store(self, image_id: int, parts: Parts) -> None:
        """Keep what there is of an image until it is flushed."""
        self._pending[str(image_id)] = {name: part.contiguous().clone() for name, part in parts.items()}

    def _flush_full_shards(self) -> None:
        """Write the shards that are full."""
        while len(self._pending) >= self.shard_size:
            self.flush()

    def _parts(self, key: str) -> Parts:
        """Return what is stored of an image, pending or on disk, after its checks."""
        if key in self._pending:
            return self._pending[key]
        if key not in self._shards:
            raise KeyError(f"There is no {self.one} of image {key} in {self.folder}.")
        path = self._shards[key]
        try:
            with safe_open(path, framework="pt") as file:
                stored = file.keys()
                parts = {n: file.get_tensor(f"{key}{n}") for n in self.part_names if f"{key}{n}" in stored}
                metadata = file.metadata()
                expected = json.loads(metadata["crc32"])[key]
                shape = dict(json.loads(metadata.get("shape", "{}"))).get(key)  # older shards have none
        except UNREADABLE as error:
            raise self._unreadable(path, error) from error
        if crc32(parts) != expected or not self._has_kind(parts, shape):
            raise ShardError(f"The {self.one} of image {key} in {path} fails its checksum; delete that file.")
        return parts

    def _keys_of(self, path: Path) -> Collection[str]:
        """Return the images of a shard, after a check that it is of this identity."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            stored = dict(json.loads(metadata.get("identity", "{}")))
        except UNREADABLE as error:
            raise self._unreadable(path, error) from error
        if stored != self.identity:
            theirs, ours = self._as_settings(stored), self._as_settings(self.identity)
            differences = [
                f"{name} {theirs.get(name)} instead of {ours.get(name)}"
                for name in sorted(theirs.keys() | ours.keys())
                if theirs.get(name) != ours.get(name)
            ]
            raise ShardError(
                f"The {self.many} in {path} differ from this run's: {'; '.join(differences)}. "
                f"Set {self.setting}=FOLDER to another folder, or delete {self.folder}."
            )
        try:
            keys = list(dict(json.loads(metadata["crc32"])))
            self._read_more_metadata(path, metadata)
        except ShardError:
            raise
        except UNREADABLE as error:
            raise self._unreadable(path, error) from error
        return keys

    def _unreadable(self, path: Path, error: Exception) -> ShardError:
        return ShardError(f"The {self.many} in {path} can't be read ({error!r}); delete that file.")

    def _more_metadata(self) -> dict[str, str]:
        """Return what else a shard records."""
        return {}

    def _read_more_metadata(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Take over, or compare, what else a shard records."""

    def _has_kind(self, parts: Parts, shape: list[int] | None) -> bool:
        """Return whether the header gives the parts of an image the types and the shapes that they were stored with.

        A checksum is of the bytes alone, which a changed header reads as other numbers.
        """
        return "" in parts and shape in (None, list(parts[""].shape))

    def _as_settings(self, identity: Mapping[str, str]) -> dict[str, str]:
        """Return an identity in the words of the settings, for error messages."""
        return dict(identity)


def crc32(parts: Parts) -> int:
    """Return the checksum of all bytes of what is stored of an image."""
    checksum = 0
    for name in sorted(parts):
        checksum = zlib.crc32(parts[name].numpy().data, checksum)
    return checksum
