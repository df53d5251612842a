"""The interface of data sets of annotated images, and the selection of a subset."""

from __future__ import annotations

import hashlib
import io
import math
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from mobilesamv2.structures import GroundTruth

WHOLE_FLOAT = re.compile(r"-?\d+\.0*")
"""An id as pandas writes it where a column has gaps: ``7.0``."""


FINGERPRINTED = 1000
"""Images that ``ImageDataset.fingerprint`` looks at; a look at all 11 million on a network disk would take hours."""


class ImageDataset(Dataset[tuple[np.ndarray, GroundTruth]], ABC):
    """Images with their annotated objects, in a fixed order."""

    @classmethod
    def require_files(cls, settings: Mapping[str, Any]) -> None:
        """Check that the files a data set reads exist; called before any model is built.

        Args:
            settings: arguments the data set is built with, by name.

        Raises:
            FileNotFoundError: if a file is missing, with where it is published.
        """

    @property
    @abstractmethod
    def image_ids(self) -> list[int]:
        """Return the ids of the images, in order."""

    @abstractmethod
    def load_image(self, index: int) -> np.ndarray:
        """Return an image, RGB uint8 (H, W, 3)."""

    @abstractmethod
    def ground_truth(self, index: int) -> GroundTruth:
        """Return the objects of an image, without crowds and ignored ones."""

    @property
    def has_objects(self) -> bool:
        """Return whether images have annotations at all; without, they serve decoupled distillation alone."""
        return True

    def stored_image(self, index: int) -> tuple[str, bytes]:
        """Return the suffix of an image's format and the content of its file; a PNG where there is no file."""
        content = io.BytesIO()
        Image.fromarray(self.load_image(index)).save(content, "PNG")
        return ".png", content.getvalue()

    def signature(self, index: int) -> str:
        """Return what tells an image from others with its id, found without reading it: by default, its data set's."""
        provenance = self.provenance
        return str(provenance["annotations_sha256"] or provenance["annotations"])

    def pixel_signature(self, index: int) -> str:
        """Return what tells an image's pixels, which are kept on disk, from those of others with its id.

        By default it is ``signature``. It is asked for where an image is read, so that some of its bytes may be read.
        """
        return self.signature(index)

    def content_hash(self, index: int) -> str:
        """Return a hash of all bytes of an image, its file's where it is one; by default, of its decoded pixels.

        Results that are kept on disk are those of the image with this hash, wherever it lies. A file is hashed without
        decoding it, far faster.
        """
        return hash_of_pixels(self.load_image(index))

    def fingerprint(self) -> dict[str, str | None]:
        """Return hashes that tell ``annotations`` and ``images`` from others of the same ids, wherever the files lie.

        No image is read: that of the images is of the signatures of ``FINGERPRINTED`` ones, a missing one's included.
        """
        digest = hashlib.sha256()
        # a signature of all images together needs no second look
        chosen = [0] if type(self).signature is ImageDataset.signature else self.fingerprinted
        for index in chosen:
            try:
                signature = self.signature(index)
            except OSError:
                signature = "missing"
            digest.update(f"{signature}\n".encode())
        return {"annotations": self.provenance["annotations_sha256"], "images": digest.hexdigest()}

    @property
    def fingerprinted(self) -> list[int]:
        """Return the indices of the images that ``fingerprint`` looks at, spread evenly: all of a small data set."""
        return np.linspace(0, len(self) - 1, min(len(self), FINGERPRINTED)).round().astype(int).tolist()

    def size_of(self, index: int) -> tuple[int, int]:
        """Return (H, W) of an image, pixels."""
        return self.ground_truth(index).size

    def file_name(self, index: int) -> str | None:
        """Return the name that the annotations give an image's file; None if they give none."""
        return None

    def require_masks(self) -> None:
        """Check that every object has a mask, for what trains on masks or measures them; by default all have one.

        Raises:
            ValueError: if there are objects of which only the box is known, and they are not to be left out.
        """

    def check_images(self) -> None:
        """Check that every image exists, as far as that is known without decoding it.

        Raises:
            FileNotFoundError: if an image is missing.
        """

    @property
    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Return where the annotations come from, plain values: at least ``annotations`` and ``annotations_sha256``."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, GroundTruth]:
        """Return an image, RGB uint8 (H, W, 3), and its objects."""
        return self.load_image(index), self.ground_truth(index)


def hash_of_pixels(image: np.ndarray) -> str:
    """Return a hash of an image's pixels, RGB uint8 (H, W, 3)."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def choose_images(
    image_ids: Sequence[int],
    limit: float | None = None,
    subset_seed: int | None = None,
    image_list: str | Path | None = None,
    names: Sequence[str] = (),
) -> list[int]:
    """Return the indices of the images to read, in ascending order.

    Args:
        image_ids: ids of all images.
        limit: at most N images, or below 1 that share of them; None keeps all.
        subset_seed: draws them at random, the same ones for the same seed; None keeps the first.
        image_list: text file with one image id per line; only these images are kept.
        names: of all images, which the list may have instead of their ids.

    Raises:
        FileNotFoundError: if there is no such list.
        ValueError: if a line is not the id of an image, if no image is left, if ``limit`` is neither a number of images
            nor a share of them, or if there is a seed without a limit.
    """
    indices = list(range(len(image_ids)))
    if image_list is not None:
        indices = _listed_indices(image_ids, names, Path(image_list))
    if not indices:
        raise ValueError(f"There is no image to read: {image_list or 'the data set'} is empty.")
    if limit is None:
        if subset_seed is not None:
            raise ValueError("subset_seed requires limit, the number of images to draw, got limit=null.")
        return indices
    if not 0 < limit < math.inf or (limit > 1 and limit != int(limit)):
        raise ValueError(f"limit must be a number of images, a share of them below 1, or null for all, got {limit}.")
    count = max(1, round(limit * len(indices))) if limit < 1 else int(limit)
    if subset_seed is not None and count < len(indices):
        indices = sorted(random.Random(subset_seed).sample(indices, count))
    return indices[:count]


def _listed_indices(image_ids: Sequence[int], image_names: Sequence[str], path: Path) -> list[int]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no list of images {path}.")
    index_by_name = {name: i for i, name in enumerate(image_names)}
    index_by_name |= {str(image_id): i for i, image_id in enumerate(image_ids)}
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text file with one image id per line, got {error}.") from error
    names = [line.strip() for line in lines if line.strip()]
    names = [name if name in index_by_name or not WHOLE_FLOAT.fullmatch(name) else name.split(".")[0] for name in names]
    for number, name in enumerate(names, start=1):
        if name not in index_by_name:
            raise ValueError(f"Line {number} of {path} must be the id of an image of the data set, got '{name}'.")
    return sorted({index_by_name[name] for name in names})
