"""SA-1B: photos and masks straight from its tars, by random access, without extraction."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from mobilesamv2.data.annotated_images import AnnotatedImages, choose_images
from mobilesamv2.data.images import read_rgb
from mobilesamv2.masks import boxes_from_rles, to_rles
from mobilesamv2.structures import GroundTruth

logger = logging.getLogger(__name__)

PUBLISHED = "SA-1B is published at https://ai.meta.com/datasets/segment-anything-downloads as sa_000000.tar and so on."

MAX_OPEN_TARS = 64
"""Of each process; systems allow about a thousand files."""


@dataclass(frozen=True)
class TarEntry:
    """Where one photo and its annotations lie in a tar, bytes."""

    tar: Path
    image_id: int
    image: tuple[int, int]  # offset, length
    annotations: tuple[int, int]


class TarIndex(NamedTuple):
    """What a tar holds.

    Attributes:
        entries: its photos with annotations, in its order.
        alone: names of photos without annotations, and the other way round.
        truncated: what ends it early; None where nothing does.
    """

    entries: list[TarEntry]
    alone: list[str]
    truncated: str | None


def index_tar(path: Path) -> TarIndex:
    """The photos of a tar; only headers are read.

    Raises:
        ValueError: it is not a tar, or holds no pair of ``sa_ID.jpg`` and ``sa_ID.json``.
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
    size, truncated = path.stat().st_size, None
    try:
        with tarfile.open(path) as tar:
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
            raise ValueError(f"{path} is not a tar, or is truncated: {error}.") from error
        truncated = str(error)
    ids = {stem: stem.removeprefix("sa_") for stem in found}
    whole = {stem: parts for stem, parts in found.items() if parts.keys() == {".jpg", ".json"} and ids[stem].isdigit()}
    if not whole:
        raise ValueError(f"{path} holds no pair of sa_ID.jpg and sa_ID.json.")
    entries = [TarEntry(path, int(ids[stem]), parts[".jpg"], parts[".json"]) for stem, parts in whole.items()]
    return TarIndex(entries, [stem for stem in found if stem not in whole], truncated)


class SA1BDataset(AnnotatedImages):
    """Photos of SA-1B with their masks.

    Args:
        tars: a tar, a folder of tars, or a list of either.
        limit: at most so many photos; None keeps all.
        subset_seed: draws them at random; None keeps the first.
        image_list: a text file of image ids, one a line; only these are kept.
        max_broken: share of the tars that may be truncated, and of the photos that may lack their annotations; they
            are named in the log and left out. More are an error.

    Raises:
        FileNotFoundError: a tar, folder or list is not there, or a folder has no tar.
        ValueError: a file is no tar of SA-1B's layout, or too much is broken.
    """

    def __init__(
        self,
        tars: str | Path | Sequence[str | Path],
        limit: int | None = None,
        subset_seed: int | None = None,
        image_list: str | Path | None = None,
        max_broken: float = 0.01,
    ) -> None:
        self.entries: list[TarEntry] = []
        truncated: list[str] = []
        alone: list[str] = []
        files = require_tars(tars)
        for file in tqdm(files, desc="indexing tars", unit="tar", disable=len(files) < 10 or None):
            index = index_tar(file)
            self.entries += index.entries
            truncated += [f"{file} is truncated: {index.truncated}"] if index.truncated else []
            alone += [f"{name} of {file} has no partner" for name in index.alone]
            if limit is not None and len(self.entries) >= limit and subset_seed is None and image_list is None:
                break
        _tolerate(truncated, "tars", len(files), max_broken)
        _tolerate(alone, "photos", len(self.entries), max_broken)
        twice = [image_id for image_id, count in Counter(self.image_ids).items() if count > 1]
        if twice:
            raise ValueError(f"Photo sa_{twice[0]} is there twice, in {[str(f) for f in files][:3]} and so on.")
        self.entries = [self.entries[i] for i in choose_images(self.image_ids, limit, subset_seed, image_list)]
        self._files: dict[tuple[int, Path], int] = {}

    @property
    def image_ids(self) -> list[int]:
        """Ids of the photos, in order."""
        return [entry.image_id for entry in self.entries]

    @property
    def provenance(self) -> dict[str, Any]:
        """The tars, and the SHA-256 of the chosen photos' annotations."""
        tars = list(dict.fromkeys(str(entry.tar) for entry in self.entries))
        return {"annotations": tars, "annotations_sha256": self._sha256}

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for entry in self.entries:
            digest.update(self._read(entry, entry.annotations))
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
        entry = self.entries[index]
        return read_rgb(io.BytesIO(self._read(entry, entry.image)), f"Photo {self._name(index)}")

    def ground_truth(self, index: int) -> GroundTruth:
        """The photo's masks.

        Raises:
            ValueError: its annotations are broken; the sentence names it.
        """
        entry = self.entries[index]
        try:
            content = json.loads(self._read(entry, entry.annotations))
            objects, size = content["annotations"], (int(content["image"]["height"]), int(content["image"]["width"]))
            return GroundTruth(
                image_id=entry.image_id,
                size=size,
                rles=to_rles([o["segmentation"] for o in objects], size, lambda i: f"mask number {i}"),
                areas=[float(o["area"]) for o in objects],
                frequencies=[None] * len(objects),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"The annotations of {self._name(index)} are broken: {error!r}") from error

    def _name(self, index: int) -> str:
        return f"sa_{self.entries[index].image_id} of {self.entries[index].tar}"

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay behind when a worker is spawned."""
        return self.__dict__ | {"_files": {}}

    def _read(self, entry: TarEntry, place: tuple[int, int]) -> bytes:
        """Bytes of a tar; each process has files of its own, and positions are not shared."""
        key = (os.getpid(), entry.tar)
        if key not in self._files:
            own = [opened for opened in self._files if opened[0] == os.getpid()]
            if len(own) >= MAX_OPEN_TARS:
                os.close(self._files.pop(own[0]))
            self._files[key] = os.open(entry.tar, os.O_RDONLY)
        offset, length = place
        content = os.pread(self._files[key], length, offset)
        if len(content) != length:
            raise ValueError(f"{entry.tar} ends before sa_{entry.image_id}: it is truncated.")
        return content


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
    return files


def write_sa1b_tar(samples: Iterable[tuple[np.ndarray, GroundTruth]], path: Path) -> None:
    """Writes images with their masks as one tar in SA-1B's layout, JPEG quality 95.

    Args:
        samples: RGB uint8 images and their objects.
        path: the tar to write.
    """
    with tarfile.open(path, "w") as tar:
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
