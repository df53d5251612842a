"""The images of a file in COCO's layout: ids, sizes, and where their files lie."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mobilesamv2.data.json_files import shown, whole_number
from mobilesamv2.data.packed import PackedTexts

MAX_PIXELS = 2**31 - 1
"""Pixels of an image; run lengths are 32-bit integers."""


class CocoImages:
    """Images by index, checked.

    Args:
        records: ``images`` of the file.
        file: its path, for error messages.

    Raises:
        ValueError: if an image has no integer id, height and width, a name that is no text, or the id of another one.
    """

    def __init__(self, records: Sequence[Any], file: Path) -> None:
        index_by_id: dict[int, int] = {}
        sizes: list[tuple[int, int]] = []
        for i, record in enumerate(records):
            image_id, height, width = _checked_numbers(record, f"Image number {i} of {file}")
            if image_id in index_by_id:
                raise ValueError(f"{file} has two images of id {image_id}.")
            index_by_id[image_id] = i
            sizes.append((height, width))
        self.ids = list(index_by_id)
        self._sizes = np.array(sizes, dtype=np.int64).reshape(-1, 2)
        self._names = PackedTexts([record.get("file_name") or "" for record in records])
        self._urls = PackedTexts([record.get("coco_url") or "" for record in records])

    def __len__(self) -> int:
        return len(self.ids)

    def size(self, index: int) -> tuple[int, int]:
        """Return (H, W) of an image, pixels."""
        height, width = self._sizes[index].tolist()
        return height, width

    def file_name(self, index: int) -> str:
        """Return an image's ``file_name``; empty if it has none."""
        return self._names[index]

    def coco_url(self, index: int) -> str:
        """Return an image's ``coco_url``; empty if it has none."""
        return self._urls[index]


def comparable_name(file_name: str) -> str:
    """Return a file's name as it is the same on all systems: with slashes, composed accents and a small suffix."""
    name = unicodedata.normalize("NFC", file_name.replace("\\", "/"))
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.rpartition(".")
    return f"{folder}{slash}{stem}{dot}{suffix.lower()}"


def paths_of(file_name: str, folder: Path) -> list[Path]:
    """Return where a file of this name may lie, the likeliest path first.

    A name of Windows has back-slashes, a name may begin with the folder itself, ``train/1.jpg`` in ``data/train``, and
    a Mac may have written its accents as letters of their own.
    """
    if not file_name:
        return []
    names = [file_name]
    if "\\" in file_name:
        names.append(file_name.replace("\\", "/"))
    parts = PurePosixPath(names[-1]).parts
    folder_names = {folder.name, folder.resolve().name} if len(parts) > 1 else set()
    inside = [i for i, part in enumerate(parts[:-1]) if part in folder_names]
    if inside:
        names.append("/".join(parts[inside[-1] + 1 :]))
    if not file_name.isascii():
        names += [unicodedata.normalize(form, name) for form in ("NFC", "NFD") for name in names]
    return [folder / name for name in dict.fromkeys(names)]


def find_file(paths: Sequence[Path]) -> Path | None:
    """Return the first of some paths that is a file, or is one with the suffix in another case; None if none is."""
    for path in paths:
        if path.is_file():
            return path
    for path in paths:
        for suffix in (path.suffix.lower(), path.suffix.upper(), path.suffix.title()):
            other = path.with_name(path.stem + suffix) if path.name else path
            if other.is_file():
                return other
    return None


def _checked_numbers(record: Any, name: str) -> tuple[int, int, int]:
    """Return id, height and width of an image."""
    if not isinstance(record, dict):
        raise ValueError(f"{name} must be an object with id, height and width, got {type(record).__name__}.")
    numbers = []
    for key, minimum in (("id", -(2**63)), ("height", 1), ("width", 1)):
        number = whole_number(record.get(key))
        if number is None or number < minimum:
            kind = "64-bit integer" if minimum < 0 else "positive 64-bit integer"
            way_out = " Write ids as numbers, without quotes." if isinstance(record.get(key), str) else ""
            raise ValueError(f"{name} must have a {kind} as {key}, got {shown(record.get(key))}.{way_out}")
        numbers.append(number)
    for key in ("file_name", "coco_url"):
        if not isinstance(record.get(key), str | None):
            raise ValueError(f"{name} must have a string as {key}, got {shown(record[key])}.")
    image_id, height, width = numbers
    if height * width > MAX_PIXELS:
        size = f"{height} x {width}"
        raise ValueError(f"{name} must have at most {MAX_PIXELS} pixels, for 32-bit run lengths, got {size}.")
    return image_id, height, width
