"""Photos without annotations, in folders of any depth, for distillation."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from mobilesamv2.data.base import ImageDataset, choose_images
from mobilesamv2.data.images import (
    MAX_DECODED_PIXELS,
    check_decoding,
    checksum_of_blocks,
    choose_image_files,
    decoding_record,
    file_signature,
    read_rgb,
    readable_suffixes,
    suffix_to_copy,
    unread_note,
    walk_files,
)
from mobilesamv2.data.orientation import Upright
from mobilesamv2.data.pixel_values import ValueRange
from mobilesamv2.files import sha256_of
from mobilesamv2.ranges import Count, NonNegativeInt, Positive
from mobilesamv2.structures import GroundTruth

logger = logging.getLogger(__name__)


class PhotosDataset(ImageDataset):
    """The images of a folder and of all folders in it, without objects.

    An image's id is derived from its path below the folder, and stays the same when others are added or removed.

    Args:
        folder: the folder. Hidden files and folders are passed over.
        limit: at most N images, or below 1 that share of them; None keeps all.
        subset_seed: draws them at random; None keeps the first.
        image_list: text file with one image per line, its id or its path below the folder; only these are kept.
        upright: ``never`` reads images as they are stored, ``auto`` and ``always`` turn them as their EXIF orientation
            says.
        value_range: the values that become 0 and 255 in images of more than 8 bits; None is the rule of ``to_rgb``.
        max_pixels: an image of more is refused.

    Raises:
        FileNotFoundError: if the folder is missing or has no image that can be read.
        ValueError: if a setting of the images is invalid.
    """

    def __init__(
        self,
        folder: str | Path,
        limit: Positive | None = None,
        subset_seed: NonNegativeInt | None = None,
        image_list: str | Path | None = None,
        upright: Upright = "auto",
        value_range: ValueRange | None = None,
        max_pixels: Count = MAX_DECODED_PIXELS,
    ) -> None:
        check_decoding(upright, value_range, max_pixels)
        self.upright: Upright = upright
        self.value_range = value_range
        self.max_pixels = max_pixels
        self.folder = Path(folder)
        files = _require_images(self.folder)
        note = unread_note(files)
        if note:
            logger.warning("%s: %s", self.folder, note)
        names = [file.relative_to(self.folder).as_posix() for file in choose_image_files(files)]
        ids = [_id_of(name) for name in names]
        chosen = choose_images(ids, limit, subset_seed, image_list, names)
        self._names = [names[i] for i in chosen]
        self._ids = [ids[i] for i in chosen]

    @classmethod
    @override
    def require_files(cls, settings: Mapping[str, Any]) -> None:
        _require_images(Path(settings["folder"]))

    @property
    @override
    def image_ids(self) -> list[int]:
        return self._ids

    @property
    @override
    def has_objects(self) -> bool:
        return False

    @property
    @override
    def provenance(self) -> dict[str, Any]:
        settings = decoding_record(self.upright, self.value_range)
        return {"annotations": None, "annotations_sha256": None, "images": str(self.folder), **settings}

    @override
    def load_image(self, index: int) -> np.ndarray:
        """Load an image, RGB uint8 (H, W, 3).

        Raises:
            FileNotFoundError: if it has gone.
            ValueError: if it can't be decoded.
        """
        path = self.folder / self._names[index]
        if not path.is_file():
            raise FileNotFoundError(f"There is no image {path} any more.")
        return read_rgb(path, str(path), self.upright, self.value_range, self.max_pixels)

    @override
    def stored_image(self, index: int) -> tuple[str, bytes]:
        """Return the suffix and the content of an image's file, or a PNG of what ``load_image`` returns.

        It is a PNG where other programs would read the file in another way; see ``suffix_to_copy``.
        """
        path = self.folder / self._names[index]
        suffix = suffix_to_copy(path, path.suffix)
        return super().stored_image(index) if suffix is None else (suffix, path.read_bytes())

    @override
    def signature(self, index: int) -> str:
        num_bytes = (self.folder / self._names[index]).stat().st_size
        return file_signature(num_bytes, self.upright, self.value_range)

    @override
    def pixel_signature(self, index: int) -> str:
        return self.signature(index) + checksum_of_blocks(self.folder / self._names[index])

    @override
    def content_hash(self, index: int) -> str:
        return sha256_of([self.folder / self._names[index]])

    @override
    def ground_truth(self, index: int) -> GroundTruth:
        """Refuse to return objects.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.folder / self._names[index]} has no annotations.")


def _require_images(folder: Path) -> list[Path]:
    """Return the files of a folder and of all folders in it, among which there is an image."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; name another with dataset.folder=FOLDER.")
    files = list(walk_files(folder))
    if not choose_image_files(files):
        suffixes = ", ".join(readable_suffixes())
        raise FileNotFoundError(
            f"There is no image in {folder} or the folders in it; {suffixes} are read. {unread_note(files)}".strip()
        )
    return files


def _id_of(name: str) -> int:
    """Return a number of 63 bits for a path."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big") >> 1
