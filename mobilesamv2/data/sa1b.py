"""SA-1B: photos and masks straight from its tars, by random access, without extraction."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mobilesamv2.data.annotated_images import AnnotatedImages, choose_images
from mobilesamv2.data.coco import is_finite_number
from mobilesamv2.data.images import read_rgb
from mobilesamv2.data.tar_index import cached_index
from mobilesamv2.masks import boxes_from_rles, to_rles
from mobilesamv2.structures import GroundTruth
from mobilesamv2.whole_files import whole_file

logger = logging.getLogger(__name__)

PUBLISHED = "SA-1B is published at https://ai.meta.com/datasets/segment-anything-downloads as sa_000000.tar and so on."

IMAGE, ANNOTATIONS = 2, 4
"""Columns of the table where a photo and its annotations begin; their lengths follow."""

MAX_OPEN_TARS = 64
"""Of each process; systems allow about a thousand files."""


class SA1BDataset(AnnotatedImages):
    """Photos of SA-1B with their masks.

    Args:
        tars: a tar, a folder of tars, or a list of either.
        limit: at most so many photos, or below 1 that share of them; None keeps all.
        subset_seed: draws them at random; None keeps the first.
        image_list: a text file of image ids, one a line; only these are kept.
        index_folder: where the tars' indices are kept, for the next run to read instead of walking through the tars;
            None keeps none.
        max_broken: share of the tars that may be truncated, and of the photos that may lack their annotations; they
            are named in the log and left out. More are an error.

    Raises:
        FileNotFoundError: a tar, folder or list is not there, or a folder has no tar.
        ValueError: a file is no tar of SA-1B's layout, or too much is broken.
    """

    def __init__(
        self,
        tars: str | Path | Sequence[str | Path],
        limit: float | None = None,
        subset_seed: int | None = None,
        image_list: str | Path | None = None,
        index_folder: str | Path | None = None,
        max_broken: float = 0.01,
    ) -> None:
        self.tars = require_tars(tars)
        truncated: list[str] = []
        alone: list[str] = []
        tables: list[np.ndarray] = []
        all_are_wanted = limit is None or limit < 1 or subset_seed is not None or image_list is not None
        folder = None if index_folder is None else Path(index_folder)
        for i, file in enumerate(
            tqdm(self.tars, desc="indexing tars", unit="tar", disable=len(self.tars) < 10 or None)
        ):
            index = cached_index(file, folder)
            tables.append(np.insert(index.entries, 0, i, axis=1))
            truncated += [f"{file} is truncated: {index.truncated}"] if index.truncated else []
            alone += [f"{name} of {file} has no partner" for name in index.alone]
            if not all_are_wanted and limit is not None and sum(map(len, tables)) >= limit:
                break
        table = np.concatenate(tables)  # (photos, 6): number of the tar, and the columns of a tar's index
        _tolerate(truncated, "tars", len(self.tars), max_broken)
        _tolerate(alone, "photos", len(table), max_broken)
        ids, counts = np.unique(table[:, 1], return_counts=True)
        if len(ids) < len(table):
            twice = ids[counts > 1][0]
            raise ValueError(f"Photo sa_{twice} is there twice, in {[str(f) for f in self.tars][:3]} and so on.")
        self._table = table[choose_images(table[:, 1].tolist(), limit, subset_seed, image_list)]
        self._image_ids: list[int] = self._table[:, 1].tolist()
        self._files: dict[tuple[int, Path], int] = {}

    @classmethod
    def require_files(cls, settings: Mapping[str, Any]) -> None:
        """Nothing, if the tars are there.

        Args:
            settings: what the data set is to be built with.

        Raises:
            FileNotFoundError: a tar or folder is not there, or a folder has no tar.
        """
        require_tars(settings["tars"])

    @property
    def image_ids(self) -> list[int]:
        """Ids of the photos, in order."""
        return self._image_ids

    @property
    def provenance(self) -> dict[str, Any]:
        """The tars, and the SHA-256 of the chosen photos' annotations."""
        tars = [str(self.tars[i]) for i in np.unique(self._table[:, 0])]
        return {"annotations": tars, "annotations_sha256": self._sha256}

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(self._read(index, ANNOTATIONS))
        return digest.hexdigest()

    def __getitem__(self, index: int) -> tuple[np.ndarray, GroundTruth]:
        """RGB uint8 (H, W, 3) and the photo's masks.

        Raises:
            ValueError: the photo can't be decoded or its size is not the stated one, or its annotations are broken;
                the sentence names it.
        """
        image, truth = super().__getitem__(index)
        if image.shape[:2] != truth.size:
            raise ValueError(
                f"Photo {self._name(index)} is {image.shape[:2]} (height, width), and its annotations say {truth.size}."
            )
        return image, truth

    def load_image(self, index: int) -> np.ndarray:
        """RGB uint8 (H, W, 3).

        Raises:
            ValueError: the photo can't be decoded; the sentence names it.
        """
        return read_rgb(io.BytesIO(self._read(index, IMAGE)), f"Photo {self._name(index)}")

    def stored_image(self, index: int) -> tuple[str, bytes]:
        """The photo as it lies in its tar."""
        return ".jpg", self._read(index, IMAGE)

    def ground_truth(self, index: int) -> GroundTruth:
        """The photo's masks.

        Raises:
            ValueError: its annotations are broken; the sentence names it.
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
        """Open files stay behind when a worker is spawned."""
        return self.__dict__ | {"_files": {}}

    def _read(self, index: int, column: int) -> bytes:
        """A photo's or its annotations' bytes; each process has files of its own, and positions are not shared."""
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
            raise ValueError(f"{tar} ends before sa_{self.image_ids[index]}: it is truncated.")
        return content


def _area(value: Any) -> float:
    """An annotation's area, if it is one."""
    if not is_finite_number(value) or value < 0:
        raise ValueError(f"an area is a number of pixels, and not {value}")
    return float(value)


def _tolerate(broken: list[str], what: str, total: int, max_broken: float) -> None:
    """Names what is broken in the log; an error if it is too much."""
    for sentence in broken:
        logger.warning("Left out: %s", sentence)
    if len(broken) > max_broken * total:
        raise ValueError(
            f"{len(broken)} of {total} {what} are broken, too many for dataset.max_broken={max_broken}: {broken[0]}."
        )


def require_tars(tars: str | Path | Sequence[str | Path]) -> list[Path]:
    """The tars that a tar, a folder of tars, or a list of either names, each folder's by name.

    Raises:
        FileNotFoundError: a tar or folder is not there, or a folder has no tar.
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


def write_sa1b_tar(samples: Iterable[tuple[np.ndarray, GroundTruth]], path: Path) -> None:
    """Writes images with their masks as one tar in SA-1B's layout, JPEG quality 95.

    Args:
        samples: RGB uint8 images and their objects.
        path: the tar to write.
    """
    with whole_file(path) as partial, tarfile.open(partial, "w") as tar:
        for image, truth in samples:
            height, width = truth.size
            name = f"sa_{truth.image_id}"
            record = {"image_id": truth.image_id, "width": width, "height": height, "file_name": f"{name}.jpg"}
            objects = [
                {"id": truth.image_id * 10_000 + i, "segmentation": rle, "area": area, "bbox": _sam_box(rle)}
                for i, (rle, area) in enumerate(zip(truth.rles, truth.areas, strict=True))
            ]
            photo = io.BytesIO()
            Image.fromarray(image).save(photo, "JPEG", quality=95)
            _add(tar, f"{name}.jpg", photo.getvalue())
            _add(tar, f"{name}.json", json.dumps({"image": record, "annotations": objects}).encode())


def _sam_box(rle: dict[str, Any]) -> list[float]:
    """Xywh where width and height reach from the first to the last covered pixel, as SA-1B has them."""
    x0, y0, x1, y1 = boxes_from_rles([rle])[0].tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
