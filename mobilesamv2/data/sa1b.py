"""SA-1B: images and masks read from its tars by random access, or from extracted files."""

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
import torch
from tqdm import tqdm
from typing_extensions import override

from mobilesamv2.data.base import ImageDataset, choose_images
from mobilesamv2.data.images import (
    MAX_DECODED_PIXELS,
    check_decoding,
    decoding_record,
    file_signature,
    read_rgb,
    suffix_to_copy,
)
from mobilesamv2.data.json_files import is_finite_number
from mobilesamv2.data.orientation import Upright, mismatch_note
from mobilesamv2.data.pixel_values import ValueRange
from mobilesamv2.data.sa1b_files import ExtractedFolder, find_sources, index_extracted
from mobilesamv2.data.tar_index import cached_index
from mobilesamv2.data.warn_once import WarnOnce
from mobilesamv2.masks import areas as count_pixels
from mobilesamv2.masks import to_rles
from mobilesamv2.ranges import Count, NonNegativeInt, Positive, Share
from mobilesamv2.structures import RLE, GroundTruth

logger = logging.getLogger(__name__)

_warn_of_areas = WarnOnce(logger)

NUM_IMAGES = 11_185_362
"""Images of SA-1B, by its data card."""

IMAGE, ANNOTATIONS = 2, 4
"""Columns of the table with the offsets of an image and of its annotations; their lengths follow."""

MAX_OPEN_TARS = 64
"""Open tars per process; systems allow about a thousand files."""

MAX_NAMED = 3
"""Broken annotations of an image that the log names."""


class SA1BDataset(ImageDataset):
    """Images of SA-1B with their masks.

    An annotation that is broken is left out, named in the log, and counted. Images without annotations are read where
    no image has any; otherwise they count as broken. Where there are tars, these alone decide: extracted images beside
    them that lack annotations which the tars have are left out with a warning, and so are annotations without an image.

    Args:
        tars: a tar, a folder, or a list of either. A folder is searched, with all folders in it, for tars and for
            extracted images, ``sa_ID.jpg`` with ``sa_ID.json`` beside it; one that a tar holds too is read from there.
        limit: at most N images, or below 1 that share of them; None keeps all. The first N are looked for in no more
            tars and folders than they take.
        subset_seed: draws them at random; None keeps the first.
        image_list: text file with one image id per line; only these images are kept.
        index_folder: folder of the tars' cached indices, which the next run reads instead of scanning the tars; None
            caches nothing.
        max_broken: share of the tars that may be truncated, and of the images that may lack their annotations; they
            are logged and skipped. More are an error.
        upright: turn images as their EXIF orientation says; see ``Upright``.
        value_range: the values that become 0 and 255 in images of more than 8 bits; None is the rule of ``to_rgb``.
        max_pixels: an image of more is refused.

    Raises:
        FileNotFoundError: if a tar, folder or list is missing, or a folder contains neither tars nor images of SA-1B.
        ValueError: if a file is not a tar in SA-1B's layout, too much is broken, or a setting of the images is invalid.
    """

    def __init__(
        self,
        tars: str | Path | Sequence[str | Path],
        limit: Positive | None = None,
        subset_seed: NonNegativeInt | None = None,
        image_list: str | Path | None = None,
        index_folder: str | Path | None = None,
        max_broken: Share = 0.01,
        upright: Upright = "auto",
        value_range: ValueRange | None = None,
        max_pixels: Count = MAX_DECODED_PIXELS,
    ) -> None:
        check_decoding(upright, value_range, max_pixels)
        self.upright: Upright = upright
        self.value_range = value_range
        self.max_pixels = max_pixels
        self.sources = find_sources(tars)
        self._extracted: dict[int, ExtractedFolder] = {}
        truncated: list[str] = []
        unpaired: list[str] = []
        left_out: list[str] = []
        tables: list[np.ndarray] = []
        requires_all = limit is None or limit < 1 or subset_seed is not None or image_list is not None
        num_tars = sum(not file.is_dir() for file in self.sources)
        is_mixed = 0 < num_tars < len(self.sources)
        folder = None if index_folder is None else Path(index_folder)
        for i, file in enumerate(
            tqdm(self.sources, desc="indexing tars", unit="tar", disable=len(self.sources) < 10 or None)
        ):
            if file.is_dir():
                requires_all |= is_mixed  # its images may be copies of those in tars, which are left out below
                self._extracted[i] = index_extracted(file)
                index = self._extracted[i].index
            else:
                index = cached_index(file, folder)
            tables.append(np.insert(index.entries, 0, i, axis=1))
            truncated += [f"{file} is truncated: {index.truncated}"] if index.truncated else []
            without_image = left_out if is_mixed and file.is_dir() else unpaired
            without_image += [f"{name} of {file} has no image, or no number as its id" for name in index.unpaired]
            found = [int((each[:, ANNOTATIONS + 1] > 0).sum()) or len(each) for each in tables]
            if not requires_all and limit is not None and sum(found) >= limit:
                break
        # (images, 6): number of the tar, then the columns of its index
        table = _without_copies(np.concatenate(tables), list(self._extracted))
        is_annotated = table[:, ANNOTATIONS + 1] > 0
        is_decisive = ~np.isin(table[:, 0], list(self._extracted)) if is_mixed else np.ones(len(table), bool)
        self._has_objects = bool(is_annotated[is_decisive].any())
        if self._has_objects:
            for missing, rows in ((unpaired, is_decisive), (left_out, ~is_decisive)):
                for source, number in table[rows & ~is_annotated, :2].tolist():
                    missing.append(f"sa_{number} of {self.sources[source]} has no annotations")
            table = table[is_annotated]
        elif is_annotated.any():
            logger.warning("No image in a tar has annotations: those of %d extracted go unused.", is_annotated.sum())
        if left_out:
            logger.warning("Left out of the extracted images beside tars: %d, e.g. %s.", len(left_out), left_out[0])
        _check_broken(truncated, "tars", num_tars, max_broken)
        _check_broken(unpaired, "images", len(table), max_broken)
        ids, counts = np.unique(table[:, 1], return_counts=True)
        if len(ids) < len(table):
            duplicate, some_tars = ids[counts > 1][0], ", ".join(str(file) for file in self.sources[:3])
            raise ValueError(
                f"Image ids must be unique, got sa_{duplicate} twice in {some_tars} and so on; remove one of the two."
            )
        self._table = table[choose_images(table[:, 1].tolist(), limit, subset_seed, image_list)]
        self._image_ids: list[int] = self._table[:, 1].tolist()
        self._files: dict[tuple[int, Path], int] = {}
        self._left_out = torch.zeros(len(self._image_ids), dtype=torch.int32).share_memory_()
        """Annotations of each image that are known to be broken, for all processes that read images."""

    @classmethod
    @override
    def require_files(cls, settings: Mapping[str, Any]) -> None:
        find_sources(settings["tars"])

    @property
    @override
    def has_objects(self) -> bool:
        return self._has_objects

    @property
    @override
    def image_ids(self) -> list[int]:
        return self._image_ids

    @property
    @override
    def provenance(self) -> dict[str, Any]:
        """Return the tars, and the SHA-256 of the selected images' annotations."""
        tars = [str(self.sources[i]) for i in np.unique(self._table[:, 0])]
        settings = decoding_record(self.upright, self.value_range)
        return {"annotations": tars, "annotations_sha256": self._sha256, **settings}

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
                f"got {image.shape[:2]}." + mismatch_note(io.BytesIO(self._read(index, IMAGE)), self.upright)
            )
        return image, truth

    @override
    def load_image(self, index: int) -> np.ndarray:
        """Load an image, RGB uint8 (H, W, 3).

        Raises:
            ValueError: if it can't be decoded.
        """
        return read_rgb(
            io.BytesIO(self._read(index, IMAGE)),
            f"Image {self._name(index)}",
            self.upright,
            self.value_range,
            self.max_pixels,
            lambda: self._annotated_size(index),
        )

    @override
    def stored_image(self, index: int) -> tuple[str, bytes]:
        """Return the suffix and the content of an image's file, or a PNG of what ``load_image`` returns.

        It is a PNG where other programs would read the file in another way; see ``suffix_to_copy``.

        Raises:
            ValueError: if it is written anew and can't be decoded.
        """
        content = self._read(index, IMAGE)
        suffix = suffix_to_copy(io.BytesIO(content), ".jpg")
        return super().stored_image(index) if suffix is None else (suffix, content)

    @override
    def signature(self, index: int) -> str:
        source, offset, length = self._table[index, [0, IMAGE, IMAGE + 1]].tolist()
        if source in self._extracted:
            length = self._extracted[source].num_bytes(self.image_ids[index], offset)
        return file_signature(length, self.upright, self.value_range)

    @override
    def content_hash(self, index: int) -> str:
        return hashlib.sha256(self._read(index, IMAGE)).hexdigest()

    @override
    def fingerprint(self) -> dict[str, str | None]:
        """Return hashes of the lengths of the images and of their annotations, with the content of some of these.

        Lengths are of all images in tars, which the index knows, and of ``FINGERPRINTED`` extracted ones; these are
        those whose annotations are read too.
        """
        lengths = self._table[:, [IMAGE + 1, ANNOTATIONS + 1]].astype("<i8")  # (images, 2), bytes; 0 and 1 if extracted
        chosen = np.array(self.fingerprinted)
        for index in chosen[np.isin(self._table[chosen, 0], list(self._extracted))].tolist():
            lengths[index] = [self._num_bytes(index, column) for column in (IMAGE, ANNOTATIONS)]
        images, annotations = (hashlib.sha256(column.tobytes()) for column in lengths.T)
        for index in chosen[lengths[chosen, 1] > 0].tolist():
            annotations.update(self._read(index, ANNOTATIONS))
        return {"annotations": annotations.hexdigest(), "images": images.hexdigest()}

    @override
    def ground_truth(self, index: int) -> GroundTruth:
        """Return the masks of an image, without broken ones.

        Raises:
            ValueError: if it has no annotations, or they are broken as a whole.
        """
        if not self._table[index, ANNOTATIONS + 1]:
            raise ValueError(f"{self._name(index)} has no annotations.")
        try:
            content = json.loads(self._read(index, ANNOTATIONS))
            objects, size = content["annotations"], _size(content)
            rles, areas, broken = _sound_objects(objects, size, self._name(index))
        except BROKEN_JSON as error:
            raise ValueError(f"The annotations of {self._name(index)} are broken: {error!r}") from error
        if broken and not self._left_out[index]:
            self._left_out[index] = len(broken)
            named = "; ".join(broken[:MAX_NAMED]) + ("; and so on" if len(broken) > MAX_NAMED else "")
            total = int(self._left_out.sum())
            line = "Left out of %s: %d of %d annotations (%d so far in all images): %s"
            logger.warning(line, self._name(index), len(broken), len(objects), total, named)
        return GroundTruth(self.image_ids[index], size, rles, areas, [None] * len(rles))

    def _annotated_size(self, index: int) -> tuple[int, int] | None:
        """Return the annotated (H, W) of an image; None without annotations, and where these are broken."""
        if not self._table[index, ANNOTATIONS + 1]:
            return None
        try:
            return _size(json.loads(self._read(index, ANNOTATIONS)))
        except BROKEN_JSON:
            return None

    def _name(self, index: int) -> str:
        return f"sa_{self.image_ids[index]} of {self.sources[self._table[index, 0]]}"

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without open files, which a spawned worker can't inherit."""
        return self.__dict__ | {"_files": {}}

    def _num_bytes(self, index: int, column: int) -> int:
        """Return the length of an extracted image or its annotations; 0 without them."""
        source, suffix, exists = self._table[index, [0, column, column + 1]].tolist()
        try:
            return self._extracted[source].num_bytes(self.image_ids[index], suffix) if exists else 0
        except FileNotFoundError:
            return 0

    def _read(self, index: int, column: int) -> bytes:
        """Read the bytes of an image or its annotations, from files that each process opens for itself."""
        source, offset, length = self._table[index, [0, column, column + 1]].tolist()
        if source in self._extracted:
            return self._extracted[source].read(self.image_ids[index], offset)
        tar = self.sources[source]
        key = (os.getpid(), tar)
        if key not in self._files:
            own = [opened for opened in self._files if opened[0] == os.getpid()]
            if len(own) >= MAX_OPEN_TARS:
                os.close(self._files.pop(own[0]))
            self._files[key] = os.open(tar, os.O_RDONLY)
        content = os.pread(self._files[key], length, offset)
        if len(content) != length:
            raise ValueError(f"{tar} is truncated: it ends before the end of sa_{self.image_ids[index]}.")
        return content


BROKEN_JSON = (KeyError, TypeError, ValueError, OverflowError, RecursionError)
"""What values of other types raise where an image's annotations are read."""


def _size(content: Any) -> tuple[int, int]:
    """Return the annotated (H, W)."""
    return int(content["image"]["height"]), int(content["image"]["width"])


def _sound_objects(objects: Any, size: tuple[int, int], name: str) -> tuple[list[RLE], list[float], list[str]]:
    """Return the masks and areas of an image's sound annotations, and a description of each that is broken."""
    if not isinstance(objects, list):
        raise TypeError(f"annotations must be a list, got {type(objects).__name__}")
    try:  # all at once, which is several times as fast
        masks = to_rles([o["segmentation"] for o in objects], size, lambda i: f"mask number {i}")
        return masks, [_area(o, mask, name) for o, mask in zip(objects, masks, strict=True)], []
    except BROKEN_JSON:
        pass
    rles, areas, broken = [], [], []
    for i, annotation in enumerate(objects):
        try:
            [rle] = to_rles([annotation["segmentation"]], size, lambda _: "its mask")
            area = _area(annotation, rle, name)
        except BROKEN_JSON as error:
            known = annotation.get("id", "without id") if isinstance(annotation, dict) else "without id"
            broken.append(f"annotation {known}, number {i}, {error!r}")
            continue
        rles.append(rle)
        areas.append(area)
    return rles, areas, broken


def _area(annotation: dict[str, Any], mask: RLE, name: str) -> float:
    """Check and return an annotation's area, the pixels of its mask where it has none."""
    value = annotation.get("area")
    if value is None:
        _warn_of_areas(f"Annotations of {name} and perhaps others have no area; it is counted in their masks.")
        return float(count_pixels([mask])[0])
    if not is_finite_number(value) or value < 0:
        raise ValueError(f"an area must be 0 or more pixels, got {value}")
    return float(value)


def _without_copies(table: np.ndarray, extracted: list[int]) -> np.ndarray:
    """Return the table of all images without the extracted ones that a tar holds too."""
    if not extracted:
        return table
    is_extracted = np.isin(table[:, 0], extracted)
    is_copy = is_extracted & np.isin(table[:, 1], table[~is_extracted, 1])
    if is_copy.any():
        logger.warning("%d of %d extracted images are read from tars.", is_copy.sum(), is_extracted.sum())
    return table[~is_copy]


def _check_broken(broken: list[str], what: str, total: int, max_broken: float) -> None:
    """Log what is broken; raise a ValueError if it is more than allowed."""
    for message in broken:
        logger.warning("Skipped: %s", message)
    if len(broken) > max_broken * total:
        raise ValueError(
            f"{len(broken)} of {total} {what} are broken, more than dataset.max_broken={max_broken} allows: "
            f"{broken[0]}."
        )
