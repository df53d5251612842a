"""Index of the images in a tar of SA-1B; cached on disk, since building it takes seconds for 10 GiB."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mobilesamv2.data.images import is_sidecar
from mobilesamv2.files import atomic_write, read_arrays

logger = logging.getLogger(__name__)

VERSION = 2
"""Of cached indices; those of other versions, which left out some images, are built anew."""

KINDS = {".jpg": "image", ".jpeg": "image", ".json": "annotations"}
"""What a file of SA-1B is, by its suffix in lower case."""

HEADERS_CHECKED = 16
"""Images of a cached index that are compared with the tar."""

COLUMNS = ("image id", "image offset", "image length", "annotations offset", "annotations length")


class TarIndex(NamedTuple):
    """Content of a tar.

    Attributes:
        entries: (images, 5) int64, images in the order of the tar: ``COLUMNS``, in bytes; annotations of length 0 where
            an image has none.
        unpaired: names of annotations without an image, and of files whose name has no id.
        truncated: why the tar ends early; None if it is complete.
    """

    entries: np.ndarray
    unpaired: list[str]
    truncated: str | None


def cached_index(path: Path, folder: Path | None) -> TarIndex:
    """Return the index of a tar, from the cache when size, mtime and some headers match, else built and cached.

    Args:
        path: the tar.
        folder: folder of the cached indices; None caches nothing, and neither does a folder that can't be written to.

    Raises:
        ValueError: if it is not a tar, or holds no ``sa_ID.jpg``.
    """
    if folder is None:
        return index_tar(path)
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    cached, stat = folder / f"{path.stem}-{digest}.npz", path.stat()
    stamp = [VERSION, stat.st_size, stat.st_mtime_ns]
    try:
        arrays = read_arrays(cached)
        notes = json.loads(str(arrays["notes"]))
        kept = TarIndex(arrays["entries"], notes["alone"], notes["truncated"])
        if notes["stamp"] == stamp and _is_sound(kept) and _describes(kept, path):
            return kept
    except (ValueError, KeyError, TypeError, RecursionError):
        pass  # missing, or damaged by a killed run or another program: rebuilt
    index = index_tar(path)
    notes = json.dumps({"stamp": stamp, "alone": index.unpaired, "truncated": index.truncated})
    try:
        # an open file, since np.savez appends .npz to a path
        with atomic_write(cached) as partial, partial.open("wb") as file:
            np.savez(file, entries=index.entries, notes=np.array(notes))
    except OSError as error:
        logger.warning("The index of %s can't be kept and is rebuilt in each run: %s", path, error)
    return index


def _is_sound(index: TarIndex) -> bool:
    """Return whether a cached index is of the types that ``index_tar`` gives."""
    entries, unpaired, truncated = index
    return (
        entries.dtype == np.int64
        and entries.ndim == 2
        and entries.shape[1] == len(COLUMNS)
        and len(entries) > 0
        and isinstance(unpaired, list)
        and all(isinstance(name, str) for name in unpaired)
        and isinstance(truncated, str | None)
    )


def _describes(index: TarIndex, path: Path) -> bool:
    """Return whether headers are where an index has them; a tar may have been replaced at the same size and mtime.

    The last one moves with the length of every file before it.
    """
    rows = np.unique(np.linspace(0, len(index.entries) - 1, HEADERS_CHECKED).round().astype(np.int64))
    with path.open("rb") as file:
        for image_id, *parts in index.entries[rows].tolist():
            for offset, length in (parts[:2], parts[2:]):
                if not offset:
                    continue  # an image without annotations
                file.seek(max(0, offset - tarfile.BLOCKSIZE))
                try:
                    header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), tarfile.ENCODING, "surrogateescape")
                except tarfile.HeaderError:
                    return False
                stem = os.path.splitext(os.path.basename(header.name))[0].removeprefix("sa_")
                is_cut = len(header.name) >= tarfile.LENGTH_NAME  # a longer name is written elsewhere
                if header.size != length or not (is_cut or (stem.isdecimal() and int(stem) == image_id)):
                    return False
    return True


def index_tar(path: Path) -> TarIndex:
    """Build the index of a tar; only headers are read.

    Raises:
        ValueError: if it is not a tar, or holds no ``sa_ID.jpg``.
    """
    members: dict[str, dict[str, tuple[int, int]]] = {}
    size, truncated = path.stat().st_size, None
    try:
        with tarfile.open(path, "r:") as tar:  # not compressed, which would allow no random access
            for member in tar:
                stem, suffix = os.path.splitext(os.path.basename(member.name))
                kind = KINDS.get(suffix.lower())
                if kind and member.isfile() and not is_sidecar(member.name):
                    if member.offset_data + member.size > size:
                        truncated = f"it ends within {member.name}"
                        break
                    members.setdefault(stem, {})[kind] = (member.offset_data, member.size)
            end = tar.offset
        with path.open("rb") as file:
            file.seek(end)
            if truncated is None and file.read(512) != bytes(512):  # a tar ends with empty blocks
                truncated = f"it does not end after byte {end}"
    except tarfile.TarError as error:
        if not members:
            raise ValueError(f"{path} is not a tar, or is truncated or compressed: {error}.") from error
        truncated = str(error)
    ids = {stem: image_id(stem) for stem in members}
    rows = [
        (ids[stem], *parts["image"], *parts.get("annotations", (0, 0)))
        for stem, parts in members.items()
        if "image" in parts and ids[stem] is not None
    ]
    if not rows:
        raise ValueError(f"{path} holds no image of SA-1B: sa_ID.jpg, with a number as ID.")
    unpaired = [stem for stem, parts in members.items() if "image" not in parts or ids[stem] is None]
    return TarIndex(np.array(rows, np.int64), unpaired, truncated)


def image_id(stem: str) -> int | None:
    """Return the id in the name of a file of SA-1B, ``sa_ID`` or ``ID``; None if it has none."""
    number = stem.removeprefix("sa_")
    return int(number) if re.fullmatch("[0-9]{1,18}", number) else None
