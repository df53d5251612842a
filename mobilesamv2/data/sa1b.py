"""SA-1B: images and masks read from its tars by random access, without extraction."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from typing_extensions import override

from mobilesamv2.data.base import ImageDataset, choose_images
from mobilesamv2.data.images import read_rgb
from mobilesamv2.data.json_files import is_finite_number
from mobilesamv2.data.tar_index import cached_index
from mobilesamv2.masks import to_rles
from mobilesamv2.ranges import NonNegativeInt, Positive, Share
from mobilesamv2.structures import GroundTruth

logger = logging.getLogger(__name__)

PUBLISHED = "SA-1B is published at https://ai.meta.com/datasets/segment-anything-downloads as sa_000000.tar and so on."

IMAGE, ANNOTATIONS = 2, 4
"""Columns of the table with the offsets of an image and of its annotations; their lengths follow."""

MAX_OPEN_TARS = 64
"""Open tars per process; systems allow about a thousand files."""


class SA1BDataset(ImageDataset):
    """Images of SA-1B with their masks.

    Args:
        tars: a tar, a folder of tars, or a list of either.
        limit: at most N images, or below 1 that share of them; None keeps all.
        subset_seed: draws them at random; None keeps the first.
        image_list: text file with one image id per line; only these images are kept.
        index_folder: folder of the tars' cached indices, which the next run reads instead of scanning the tars; None
            caches nothing.
        max_broken: share of the tars that may be truncated, and of the images that may lack their annotations; they
            are logged and skipped. More are an error.

    Raises:
        FileNotFoundError: if a tar, folder or list is missing, or a folder contains no tar.
        ValueError: if a file is not a tar in SA-1B's layout, or too much is broken.
    """

    def __init__(
        self,
        tars: str | Path | Sequence[str | Path],
        limit: Positive | None = None,
        subset_seed: NonNegativeInt | None = None,
        image_list: str | Path | None = None,
        index_folder: str | Path | None = None,
        max_broken: Share = 0.01,
    ) -> None:
        self.tars = require_tars(tars)
        truncated: list[str] = []
        unpaired: list[str] = []
        tables: list[np.ndarray] = []
        requires_all_tars = limit is None or limit < 1 or subset_seed is not None or image_list is not None
        folder = None if index_folder is None else Path(index_folder)
        for i, file in enumerate(
            tqdm(self.tars, desc="indexing tars", unit="tar", disable=len(self.tars) < 10 or None)
        ):
            index = cached_index(file, folder)
            tables.append(np.insert(index.entries, 0, i, axis=1))
            truncated += [f"{file} is truncated: {index.truncated}"] if index.truncated else []
            unpaired += [f"{name} of {file} has no image or no annotations" for name in index.unpaired]
            if not requires_all_tars and limit is not None and sum(map(len, tables)) >= limit:
                break
        table = np.concatenate(tables)  # (images, 6): number of the tar, then the columns of its index
        _check_broken(truncated, "tars", len(self.tars), max_broken)
        _check_broken(unpaired, "images", len(table), max_broken)
        ids, counts = np.unique(table[:, 1], return_counts=True)
        if len(ids) < len(table):
            duplicate, some_tars = ids[counts > 1][0], ", ".join(str(file) for file in self.tars[:3])
            raise ValueError(
                f"Image ids must be unique, got sa_{duplicate} twice in {some_tars} and so on; remove one of its tars."
            )
        self._table = table[choose_images(table[:, 1].tolist(), limit, subset_seed, image_list)]
        self._image_ids: list[int] = self._table[:, 1].tolist()
        self._files: dict[tuple[int, Path], int] = {}

    @classmethod
    @override
    def require_files(cls, settings: Mapping[str, Any]) -> None:
        require_tars(settings["tars"])

    @property
    @override
    def image_ids(self) -> list[int]:
        return self._image_ids

    @property
    @override
    def provenance(self) -> dict[str, Any]:
        """Return the tars, and the SHA-256 of the selected images' annotations."""
        tars = [str(self.tars[i]) for i in np.unique(self._table[:, 0])]
        return {"annotations": tars, "annotations_sha256": self._sha256}

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(self._read(index, ANNOTATIONS))
        return digest.hexdigest()

    @override
    def __getitem__(self, index: int) -> tuple[np.ndarray, GroundTruth]:
        """Return an image, RGB uint8 (H, W, 3), and its masks.

        Raises:
            ValueError: if the image can't be decoded, its size is not the annotated one, or its annotations are broken.
        """
        image, truth = super().__getitem__(index)
        if image.shape[:2] != truth.size:
            raise ValueError(
                f"Image {self._name(index)} must have the annotated (height, width) {truth.size}, "
                f"got {image.shape[:2]}."
            )
        return image, truth

    @override
    def load_image(self, index: int) -> np.ndarray:
        """Load an image, RGB uint8 (H, W, 3).

        Raises:
            ValueError: if it can't be decoded.
        """
        return read_rgb(io.BytesIO(self._read(index, IMAGE)), f"Image {self._name(index)}")

    @override
    def stored_image(self, index: int) -> tuple[str, bytes]:
        return ".jpg", self._read(index, IMAGE)

    @override
    def ground_truth(self, index: int) -> GroundTruth:
        """Return the masks of an image.

        Raises:
            ValueError: if its annotations are broken.
        """
        try:
            content = json.loads(self._read(index, ANNOTATIONS))
            objects, size = content["annotations"], (int(content["image"]["height"]), int(content["image"]["width"]))
            return GroundTruth(
                image_id=self.image_ids[index],
                size=size,
                rles=to_rles([o["segmentation"] for o in objects], size, lambda i: f"mask number {i}"),
                areas=[_area(o["area"]) for o in objects],
                frequencies=[None] * len(objects),
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"The annotations of {self._name(index)} are broken: {error!r}") from error

    def _name(self, index: int) -> str:
        return f"sa_{self.image_ids[index]} of {self.tars[self._table[index, 0]]}"

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without open files, which a spawned worker can't inherit."""
        return self.__dict__ | {"_files": {}}

    def _read(self, index: int, column: int) -> bytes:
        """Read the bytes of an image or its annotations, from files that each process opens for itself."""
        tar = self.tars[self._table[index, 0]]
        key = (os.getpid(), tar)
        if key not in self._files:
            own = [opened for opened in self._files if opened[0] == os.getpid()]
            if len(own) >= MAX_OPEN_TARS:
                os.close(self._files.pop(own[0]))
            self._files[key] = os.open(tar, os.O_RDONLY)
        offset, length = self._table[index, column : column + 2].tolist()
        content = os.pread(self._files[key], length, offset)
        if len(content) != length:
            raise ValueError(f"{tar} is truncated: it ends before the end of sa_{self.image_ids[index]}.")
        return content


def _area(value: Any) -> float:
    """Check and return an annotation's area."""
    if not is_finite_number(value) or value < 0:
        raise ValueError(f"an area must be 0 or more pixels, got {value}")
    return float(value)


def _check_broken(broken: list[str], what: str, total: int, max_broken: float) -> None:
    """Log what is broken; raise a ValueError if it is more than allowed."""
    for message in broken:
        logger.warning("Skipped: %s", message)
    if len(broken) > max_broken * total:
        raise ValueError(
            f"{len(broken)} of {total} {what} are broken, more than dataset.max_broken={max_broken} allows: "
            f"{broken[0]}."
        )


def require_tars(tars: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the tars of a tar, a folder of tars, or a list of either; those of a folder sorted by name.

    Raises:
        FileNotFoundError: if a tar or folder is missing, or a folder contains no tar.
    """
    files: list[Path] = []
    for path in map(Path, [tars] if isinstance(tars, str | Path) else tars):
        found = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not found:
            raise FileNotFoundError(f"There is no tar in {path}. {PUBLISHED}")
        for file in found:
            if not file.is_file():
                raise FileNotFoundError(f"There is no tar or folder of tars {path}. {PUBLISHED}")
        files += found
    if not files:
        raise FileNotFoundError(f"The list of tars is empty. {PUBLISHED}")
    return files
