"""Where the files of SA-1B lie: in tars, or extracted, in any depth of folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mobilesamv2.data.images import walk_files
from mobilesamv2.data.tar_index import KINDS, TarIndex, image_id

PUBLISHED = "SA-1B is published at https://ai.meta.com/datasets/segment-anything-downloads as sa_000000.tar and so on."


@dataclass(frozen=True)
class ExtractedFolder:
    """A folder that directly contains extracted images, with their annotations beside them.

    Attributes:
        path: the folder.
        index: as of a tar, with a position in ``names`` in place of an offset, and lengths that are 1, or 0 for
            annotations that an image does not have.
        names: how its files are named, each with a place for the id: ``sa_{:06d}.jpg`` for one of six digits.
    """

    path: Path
    index: TarIndex
    names: list[str]

    def read(self, number: int, name: int) -> bytes:
        """Return the content of an image or its annotations.

        Args:
            number: the image's id.
            name: position in ``names``.

        Raises:
            FileNotFoundError: if the file has gone.
        """
        return self._file(number, name).read_bytes()

    def num_bytes(self, number: int, name: int) -> int:
        """Return the length of a file that ``read`` reads."""
        return self._file(number, name).stat().st_size

    def _file(self, number: int, name: int) -> Path:
        return self.path / self.names[name].format(number)


def find_sources(tars: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the tars and the folders of extracted images that paths name.

    A folder is searched through all folders in it, for tars and for folders that contain images.

    Args:
        tars: a tar, a folder, or a list of either.

    Raises:
        FileNotFoundError: if a tar or folder is missing, or a folder has neither tars nor images of SA-1B.
    """
    sources: list[Path] = []
    for path in map(Path, [tars] if isinstance(tars, str | Path) else tars):
        if not path.exists():
            raise FileNotFoundError(f"There is no tar or folder of tars {path}. {PUBLISHED}")
        found = _search(path) if path.is_dir() else [path]
        if not found:
            raise FileNotFoundError(
                f"There is no tar in {path} or the folders in it, and no extracted sa_ID.jpg. {PUBLISHED} Images of "
                "other names are read by dataset=photos dataset.folder=FOLDER, for distillation."
            )
        sources += found
    if not sources:
        raise FileNotFoundError(f"The list of tars is empty. {PUBLISHED}")
    return sources


def _search(folder: Path) -> list[Path]:
    """Return the tars in a folder and all folders in it, then the folders that contain images."""
    tars: list[Path] = []
    extracted: dict[Path, None] = {}
    for file in walk_files(folder):
        suffix = file.suffix.lower()
        if suffix == ".tar":
            tars.append(file)
        elif KINDS.get(suffix) == "image" and file.parent not in extracted and _extracted_id(file.stem) is not None:
            extracted[file.parent] = None
    return [*sorted(tars), *sorted(extracted)]


def index_extracted(folder: Path) -> ExtractedFolder:
    """Build the index of a folder of extracted images, from the names of its files alone."""
    names: dict[str, int] = {}
    files: dict[str, dict[str, int]] = {}
    for file in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(file)
        kind = KINDS.get(suffix.lower())
        if kind and stem.startswith("sa_"):
            name = f"sa_{{:0{len(stem) - len('sa_')}d}}{suffix}"
            files.setdefault(stem, {})[kind] = names.setdefault(name, len(names))
    rows, unpaired = [], []
    for stem, parts in files.items():
        number = _extracted_id(stem)
        if number is None or "image" not in parts:
            unpaired.append(stem)
        else:
            rows.append((number, parts["image"], 1, parts.get("annotations", 0), int("annotations" in parts)))
    entries = np.array(sorted(rows), np.int64).reshape(-1, 5)
    return ExtractedFolder(folder, TarIndex(entries, unpaired, None), list(names))


def _extracted_id(stem: str) -> int | None:
    """Return the id in the name of an extracted file, ``sa_ID``; None if it has none."""
    return image_id(stem) if stem.startswith("sa_") else None
