"""Results of images on disk as they come, so that a killed evaluation resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from mobilesamv2.files import atomic_write, read_arrays
from mobilesamv2.identity import read_identity, require_same_identity
from mobilesamv2.structures import GroundTruth

SHARD_SIZE, SECONDS_AT_RISK = 50, 60.0
"""Images, and work, that a killed run may lose; whichever comes first."""

WAY_OUT = "Name another output_dir, or delete it."


@dataclass(frozen=True)
class ImageResult:
    """The result of one image.

    Attributes:
        image_id: the image's id in its annotation file.
        values: arrays by name, of the same shapes for every image.
        ms: of each stage; None for an image that warmed a process up.
        num_prompts: decoded prompts.
        cpu_ms: processor time of each stage, over all threads; None where a device computed.
        truth: ``truth_fingerprint`` of its annotations; empty in results of earlier versions.
        peak_mib: ``PeakMemory`` of it; None where it can't be measured, and in results of earlier versions.
        content_hash: of the image, see ``ImageDataset``; empty in results of earlier versions.
    """

    image_id: int
    values: dict[str, np.ndarray]
    ms: dict[str, float] | None
    num_prompts: int
    cpu_ms: dict[str, float] | None = None
    truth: str = ""
    peak_mib: float | None = None
    content_hash: str = ""


def truth_fingerprint(truth: GroundTruth) -> str:
    """Return a hash of all annotations of an image that its result depends on."""
    values = [truth.image_id, truth.size, truth.rles, truth.areas, truth.frequencies]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def photos_fingerprint(images: Sequence[ImageResult]) -> str | None:
    """Return a hash of the content of all images, by their ids; None where an earlier version kept none of one."""
    if not all(image.content_hash for image in images):
        return None
    lines = "".join(f"{image.image_id} {image.content_hash}\n" for image in sorted(images, key=lambda i: i.image_id))
    return hashlib.sha256(lines.encode()).hexdigest()


class ResultShards:
    """Values, times and, with ``keep_masks``, masks of images, in files of a few images each.

    A file is written under a temporary name, synchronised and renamed, and an image's masks before its values: a killed
    run loses the images in progress and nothing else. Several processes may write at once, each into files of its own.

    Photos may be replaced and annotations repaired between two parts of a run: an image of which either has changed is
    taken out of the files, and is to be evaluated again.

    Args:
        folder: of the evaluation; values go to ``progress/*.npz``, masks to ``masks/*.json``.
        identity: plain values that the results depend on; they are written beside the files.
        keep_masks: write masks, as COCO results.
        environment: plain values that may change from one part of a run to the next, such as the commit; each file
            has them.
        annotations_sha256: hash of all annotations; where it is that of the earlier part, no image's are compared.
        truth_of: returns the annotations of an image by its id; None where annotations never change.
        content_hash_of: returns the ``content_hash`` of an image by its id, and reads all that is done; None where
            images never change.

    Raises:
        ValueError: if the folder holds results of another identity, masks of something else, or results of an earlier
            version, which kept no hashes of its images.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        keep_masks: bool = False,
        environment: Mapping[str, Any] | None = None,
        annotations_sha256: str | None = None,
        truth_of: Callable[[int], GroundTruth] | None = None,
        content_hash_of: Callable[[int], str] | None = None,
    ) -> None:
        self._values_folder, self.masks_folder = folder / "progress", folder / "masks"
        self._identity = json.loads(json.dumps({**identity, "save_masks": keep_masks}))
        self._environment = json.dumps(dict(environment or {}), sort_keys=True)
        self._annotations_sha256 = annotations_sha256
        self._truth_of, self._content_hash_of = truth_of, content_hash_of
        self.keep_masks = keep_masks
        self._name = uuid.uuid4().hex
        """Of the files of what is pending, so that a flush that was interrupted is repeated into the same files."""
        self._pending: list[ImageResult] = []
        self._pending_masks: list[dict[str, Any]] = []
        self._flushed_at = time.monotonic()
        masks = sorted(self.masks_folder.glob("*.json"))  # before the values, which are written after them
        shards = sorted(self._values_folder.glob("*.npz"))
        self._check_identity(folder, bool(shards), masks)
        self.done: list[ImageResult] = []
        """Results of earlier runs, when this one began."""
        self.outdated: set[int] = set()
        """Ids of images that have changed since, or whose annotations have."""
        written = {path: path.stat().st_mtime_ns for path in shards}  # before any is written anew
        last_written: dict[str, int] = {}
        for path in tqdm(shards, "comparing images", unit="shard", delay=2, disable=None):
            arrays = self._drop_outdated(path, _read(path), folder)
            results, environment_then = _results(arrays), _environment(arrays)
            self.done += results
            if results:
                _require_same_arrays(path, self.done[0], results)
            last_written[environment_then] = max(written[path], last_written.get(environment_then, 0))
        self.environments: list[dict[str, Any]] = [
            json.loads(each) for each in sorted(last_written, key=lambda each: last_written[each])
        ]
        """Environments of those runs, that of the file which was written last at the end."""
        whole = {path.stem for path in shards}
        for path in masks if keep_masks else ():
            if path.stem not in whole:  # a killed run wrote them, but not their values
                path.unlink(missing_ok=True)

    def add(self, result: ImageResult, masks: Sequence[dict[str, Any]] = ()) -> None:
        """Keep one image; what is pending goes to disk when a shard is full or a minute has passed."""
        self._pending.append(result)
        self._pending_masks += masks
        if len(self._pending) >= SHARD_SIZE or time.monotonic() - self._flushed_at > SECONDS_AT_RISK:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        if not self._pending:
            return
        if not self._identity_path.is_file():
            identity = json.dumps(self._identity, indent=2).encode()
            _write(self._identity_path, lambda file: file.write(identity))
        name = self._name
        if self.keep_masks:
            masks = json.dumps(self._pending_masks).encode()
            _write(self.masks_folder / f"{name}.json", lambda file: file.write(masks))
        facts = {"environment": self._environment, "annotations_sha256": self._annotations_sha256 or ""}
        _write_arrays(
            self._values_folder / f"{name}.npz",
            _arrays(self._pending) | {key: np.array(value) for key, value in facts.items()},
        )
        self._pending, self._pending_masks, self._name = [], [], uuid.uuid4().hex
        self._flushed_at = time.monotonic()

    @property
    def _identity_path(self) -> Path:
        return self._values_folder / "identity.json"

    def _check_identity(self, folder: Path, has_shards: bool, masks: Sequence[Path]) -> None:
        """Check the record of an earlier part."""
        if not self._identity_path.is_file():
            if has_shards or (masks and self.keep_masks):
                raise ValueError(
                    f"{folder} holds masks or results, but not progress/identity.json, which records of what. {WAY_OUT}"
                )
            return
        require_same_identity(read_identity(self._identity_path, WAY_OUT), self._identity, folder, WAY_OUT)

    def _drop_outdated(self, path: Path, arrays: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
        """Return a shard without images that have changed, or whose annotations have; take these out of its files."""
        same = self._unchanged(arrays, folder)
        if same.all():
            return arrays
        outdated = set(arrays["image_id"][~same].tolist())
        self.outdated |= outdated
        kept = {name: array if array.ndim == 0 else array[same] for name, array in arrays.items()}
        masks_path = self.masks_folder / f"{path.stem}.json"
        if self.keep_masks and masks_path.is_file():  # before the values, as they are written
            masks = [entry for entry in json.loads(masks_path.read_bytes()) if entry["image_id"] not in outdated]
            _write(masks_path, lambda file: file.write(json.dumps(masks).encode()))
        _write_arrays(path, kept)
        return kept

    def _unchanged(self, arrays: Mapping[str, np.ndarray], folder: Path) -> np.ndarray:
        """Return which images of a shard are as they were, with the same annotations: (images,) bool."""
        hash_of, truth_of = self._content_hash_of, self._truth_of
        if (hash_of or truth_of) and not {"content_hash", "truth", "annotations_sha256"} <= arrays.keys():
            raise ValueError(
                f"{folder} holds results of an earlier version, which did not record their photos' hashes. {WAY_OUT}"
            )
        if truth_of and str(arrays["annotations_sha256"]) == (self._annotations_sha256 or ""):
            truth_of = None
        done = _results(arrays)
        same = [
            (hash_of is None or hash_of(image.image_id) == image.content_hash)
            and (truth_of is None or truth_fingerprint(truth_of(image.image_id)) == image.truth)
            for image in done
        ]
        return np.array(same, dtype=bool)


def read_images(folder: Path) -> tuple[list[ImageResult], list[dict[str, Any]]]:
    """Return the results of all images that an evaluation keeps, by their ids, and the environments of its parts.

    Raises:
        ValueError: if a file can't be read, or an image is there twice.
    """
    images: list[ImageResult] = []
    environments: list[dict[str, Any]] = []
    for path in sorted((folder / "progress").glob("*.npz")):
        arrays = _read(path)
        images += _results(arrays)
        environments.append(json.loads(_environment(arrays)))
    images.sort(key=lambda image: image.image_id)
    ids = [image.image_id for image in images]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{folder / 'progress'} has an image twice.")
    return images, environments


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file atomically."""
    with atomic_write(path) as partial, partial.open("wb") as file:
        write(file)


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an ``.npz`` file atomically."""
    _write(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))  # pyright: ignore


def _arrays(results: Sequence[ImageResult]) -> dict[str, np.ndarray]:
    return {
        "image_id": np.array([r.image_id for r in results]),
        **_time_arrays("ms/", [r.ms for r in results]),
        **_time_arrays("cpu_ms/", [r.cpu_ms for r in results]),
        "num_prompts": np.array([r.num_prompts for r in results]),
        "truth": np.array([r.truth for r in results]),
        "content_hash": np.array([r.content_hash for r in results]),
        "peak_mib": np.array([np.nan if r.peak_mib is None else r.peak_mib for r in results]),
        **{f"value/{name}": np.stack([r.values[name] for r in results]) for name in results[0].values},
    }


def _time_arrays(kind: str, times: Sequence[dict[str, float] | None]) -> dict[str, np.ndarray]:
    """Return the times of each stage, NaN for images without."""
    stages = next((list(ms) for ms in times if ms is not None), [])
    return {f"{kind}{name}": np.array([np.nan if ms is None else ms[name] for ms in times]) for name in stages}


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file, after a check that they are what ``_arrays`` makes."""
    arrays = read_arrays(path)
    try:
        _environment(arrays)
        _results(arrays)
    except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read ({error!r}); delete that file.") from error
    return arrays


def _environment(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the environment that a file was written in, as JSON."""
    environment = str(arrays["environment"])
    if not isinstance(json.loads(environment), dict):
        raise ValueError("its environment is no JSON object")
    return environment


def _results(arrays: Mapping[str, np.ndarray]) -> list[ImageResult]:
    """Return the images of a file's arrays."""
    truths, content_hashes = (
        arrays[name].tolist() if name in arrays else [""] * len(arrays["image_id"])
        for name in ("truth", "content_hash")
    )
    peaks = arrays["peak_mib"].tolist() if "peak_mib" in arrays else [np.nan] * len(truths)
    values, ms, cpu_ms = (
        {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}
        for kind in ("value/", "ms/", "cpu_ms/")
    )
    of_images = (*values.values(), *ms.values(), *cpu_ms.values(), truths, content_hashes)
    if any(len(array) != len(arrays["image_id"]) for array in of_images):
        raise ValueError("its arrays are of different numbers of images")
    return [
        ImageResult(
            int(image_id),
            {name: array[i] for name, array in values.items()},
            {stage: float(array[i]) for stage, array in ms.items() if not np.isnan(array[i])} or None,
            int(num_prompts),
            {stage: float(array[i]) for stage, array in cpu_ms.items() if not np.isnan(array[i])} or None,
            truths[i],
            None if np.isnan(peaks[i]) else peaks[i],
            content_hashes[i],
        )
        for i, (image_id, num_prompts) in enumerate(zip(arrays["image_id"], arrays["num_prompts"], strict=True))
    ]


def _require_same_arrays(path: Path, first: ImageResult, results: Sequence[ImageResult]) -> None:
    """Check that the values of a file are arrays of the kinds and shapes of the first one's."""
    wanted, *others = (
        {name: (array.dtype.kind, array.shape) for name, array in result.values.items()}
        for result in (first, *results[:1])
    )
    if any(other != wanted for other in others):
        raise ValueError(f"{path} has values {others[0]}, and those of the other files are {wanted}; delete that file.")
