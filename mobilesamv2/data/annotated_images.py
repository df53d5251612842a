"""What every data set of images and their objects offers, and the choice of a part of it."""

from __future__ import annotations

import io
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from mobilesamv2.structures import GroundTruth


class AnnotatedImages(Dataset[tuple[np.ndarray, GroundTruth]], ABC):
    """Images with their annotated objects, in a fixed order."""

    @classmethod
    def require_files(cls, settings: Mapping[str, Any]) -> None:
        """Nothing, if the files that a data set would read are there; asked before any model is built.

        Args:
            settings: what the data set is to be built with, by name.

        Raises:
            FileNotFoundError: naming what is missing, and where it is published.
        """

    @property
    @abstractmethod
    def image_ids(self) -> list[int]:
        """Ids of the images, in order."""

    @abstractmethod
    def load_image(self, index: int) -> np.ndarray:
        """RGB uint8 (H, W, 3)."""

    @abstractmethod
    def ground_truth(self, index: int) -> GroundTruth:
        """The objects of an image, without crowds and ignored ones."""

    def stored_image(self, index: int) -> tuple[str, bytes]:
        """The suffix that an image's format has, and its file's content; where there is no file, a PNG."""
        content = io.BytesIO()
        Image.fromarray(self.load_image(index)).save(content, "PNG")
        return ".png", content.getvalue()

    def size_of(self, index: int) -> tuple[int, int]:
        """(H, W) of an image, pixels."""
        return self.ground_truth(index).size

    def check_images(self) -> None:
        """Nothing, if every image is there, as far as that can be said without decoding it.

        Raises:
            FileNotFoundError: an image is missing; the sentence names it.
        """

    @property
    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Where the annotations come from, as plain values: ``annotations`` and ``annotations_sha256`` at least."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, GroundTruth]:
        """RGB uint8 (H, W, 3) and the image's objects."""
        return self.load_image(index), self.ground_truth(index)


def choose_images(
    image_ids: Sequence[int],
    limit: float | None = None,
    subset_seed: int | None = None,
    image_list: str | Path | None = None,
) -> list[int]:
    """Indices of the images to read, in ascending order.

    Args:
        image_ids: of all images.
        limit: at most so many, or below 1 that share of them; None keeps all.
        subset_seed: draws them at random, the same ones for the same seed; None keeps the first.
        image_list: a text file of image ids, one a line; only these are kept.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: a line is no id, or an id of no image; no image is left; a limit that is no number of images and no
            share of them, or a seed without one.
    """
    indices = list(range(len(image_ids)))
    if image_list is not None:
        indices = _listed(image_ids, Path(image_list))
    if not indices:
        raise ValueError(f"There is no image to read: {image_list or 'the data set'} is empty.")
    if limit is None:
        if subset_seed is not None:
            raise ValueError("subset_seed draws as many images as limit says, and limit is null.")
        return indices
    if not 0 < limit < math.inf or (limit > 1 and limit != int(limit)):
        raise ValueError(f"limit is a number of images, a share of them below 1, or null for all; got {limit}.")
    count = max(1, round(limit * len(indices))) if limit < 1 else int(limit)
    if subset_seed is not None and count < len(indices):
        indices = sorted(random.Random(subset_seed).sample(indices, count))
    return indices[:count]


def _listed(image_ids: Sequence[int], path: Path) -> list[int]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no list of images {path}.")
    known = {str(image_id): i for i, image_id in enumerate(image_ids)}
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"The list of images {path} is no text of one id a line.") from error
    names = [line.strip() for line in lines if line.strip()]
    for number, name in enumerate(names, start=1):
        if name not in known:
            raise ValueError(f"Line {number} of {path} is '{name}', which is the id of no image of the data set.")
    return sorted({known[name] for name in names})
