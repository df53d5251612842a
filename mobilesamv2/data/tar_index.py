"""Where the photos of SA-1B lie in its tars; found once and kept, since that takes seconds for 10 GiB."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tarfile
import uuid
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mobilesamv2.whole_files import read_arrays

logger = logging.getLogger(__name__)

COLUMNS = ("image id", "image offset", "image length", "annotations offset", "annotations length")


class TarIndex(NamedTuple):
    """What a tar holds.

    Attributes:
        entries: (photos, 5) int64, its photos with annotations in its order: ``COLUMNS``, in bytes.
        alone: names of photos without annotations, and the other way round.
        truncated: what ends it early; None where nothing does.
    """

    entries: np.ndarray
    alone: list[str]
    truncated: str | None


def cached_index(path: Path, folder: Path | None) -> TarIndex:
    """A tar's index from a folder, if it was made of a tar of this size and time; otherwise made, and kept there.

    Args:
        path: the tar.
        folder: where indices are kept; None keeps none, and a folder that can't be written to keeps none either.

    Raises:
        ValueError: it is not a tar, or holds no pair of ``sa_ID.jpg`` and ``sa_ID.json``.
    """
    if folder is None:
        return index_tar(path)
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    kept, stat = folder / f"{path.stem}-{place}.npz", path.stat()
    stamp = [stat.st_size, stat.st_mtime_ns]
    try:
        arrays = read_arrays(kept)
        notes = json.loads(str(arrays["notes"]))
        if notes["stamp"] == stamp:
            return TarIndex(arrays["entries"], notes["alone"], notes["truncated"])
    except (ValueError, KeyError, TypeError):
        pass  # there is none, or what a killed or another program left, and it is made anew
    index = index_tar(path)
    notes = json.dumps({"stamp": stamp, "alone": index.alone, "truncated": index.truncated})
    temporary = kept.with_name(f"{uuid.uuid4().hex}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, entries=index.entries, notes=np.array(notes))
        temporary.rename(kept)
    except OSError as error:
        logger.warning("The index of %s can't be kept, and is made anew each time: %s", path, error)
    return index


def index_tar(path: Path) -> TarIndex:
    """The photos of a tar; only headers are read.

    Raises:
        ValueError: it is not a tar, or holds no pair of ``sa_ID.jpg`` and ``sa_ID.json``.
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
    size, truncated = path.stat().st_size, None
    try:
        with tarfile.open(path, "r:") as tar:  # a compressed one has no places to read from
            for member in tar:
                stem, suffix = os.path.splitext(os.path.basename(member.name))
                if member.isfile() and suffix in (".jpg", ".json"):
                    if member.offset_data + member.size > size:
                        truncated = f"it ends within {member.name}"
                        break
                    found.setdefault(stem, {})[suffix] = (member.offset_data, member.size)
            end = tar.offset
        with path.open("rb") as file:
            file.seek(end)
            if truncated is None and file.read(512) != bytes(512):  # a tar ends with empty blocks
                truncated = f"it does not end after byte {end}"
    except tarfile.TarError as error:
        if not found:
            raise ValueError(f"{path} is not a tar, or is truncated or compressed: {error}.") from error
        truncated = str(error)
    ids = {stem: stem.removeprefix("sa_") for stem in found}
    whole = {
        stem: parts
        for stem, parts in found.items()
        if parts.keys() == {".jpg", ".json"} and re.fullmatch("[0-9]{1,18}", ids[stem])
    }
    if not whole:
        raise ValueError(f"{path} holds no pair of sa_ID.jpg and sa_ID.json.")
    rows = [(int(ids[stem]), *parts[".jpg"], *parts[".json"]) for stem, parts in whole.items()]
    return TarIndex(np.array(rows, np.int64), [stem for stem in found if stem not in whole], truncated)
