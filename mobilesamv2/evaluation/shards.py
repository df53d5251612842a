"""Results of images on disk as they come, so that a killed evaluation resumes where it stopped."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mobilesamv2.files import atomic_write, read_arrays
from mobilesamv2.identity import read_identity, require_same_identity

SHARD_SIZE, SECONDS_AT_RISK = 50, 60.0
"""Images, and work, that a killed run may lose; whichever comes first."""


@dataclass(frozen=True)
class ImageResult:
    """The result of one image.

    Attributes:
        image_id: the image's id in its annotation file.
        values: arrays by name, of the same shapes for every image.
        ms: of each stage; None for an image that warmed a process up.
        num_prompts: decoded prompts.
        cpu_ms: processor time of each stage, over all threads; None where a device computed.
    """

    image_id: int
    values: dict[str, np.ndarray]
    ms: dict[str, float] | None
    num_prompts: int
    cpu_ms: dict[str, float] | None = None


class ResultShards:
    """Values, times and, with ``keep_masks``, masks of images, in files of a few images each.

    A file is written under a temporary name, synchronised and renamed, and an image's masks before its values: a killed
    run loses the images in progress and nothing else. Several processes may write at once, each into files of its own.

    Args:
        folder: of the evaluation; values go to ``progress/*.npz``, masks to ``masks/*.json``.
        identity: plain values that the results depend on; they are written beside the files.
        keep_masks: write masks, as COCO results.
        environment: plain values that may change from one part of a run to the next, such as the commit; each file
            has them.

    Raises:
        ValueError: if the folder holds results of another identity, or masks of something else.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        keep_masks: bool = False,
        environment: Mapping[str, Any] | None = None,
    ) -> None:
        self._values_folder, self.masks_folder = folder / "progress", folder / "masks"
        self._identity = json.loads(json.dumps({**identity, "save_masks": keep_masks}))
        self._environment = json.dumps(dict(environment or {}), sort_keys=True)
        self.keep_masks = keep_masks
        self._pending: list[ImageResult] = []
        self._pending_masks: list[dict[str, Any]] = []
        self._flushed_at = time.monotonic()
        masks = sorted(self.masks_folder.glob("*.json"))  # before the values, which are written after them
        shards = sorted(self._values_folder.glob("*.npz"))
        self._check_identity(folder, bool(shards), masks)
        self.done: list[ImageResult] = []
        """Results of earlier runs, when this one began."""
        self.earlier_environments: list[dict[str, Any]] = []
        """Environments of those runs, as far as they differ from this one's."""
        for path in shards:
            results, environment_then = _read(path)
            if self.done and results and _layout(results[0]) != _layout(self.done[0]):
                raise ValueError(
                    f"{path} can't be read (its values are not those of the other files); delete that file."
                )
            self.done += results
            known = [self._environment, *(json.dumps(e, sort_keys=True) for e in self.earlier_environments)]
            if environment_then not in known:
                self.earlier_environments.append(json.loads(environment_then))
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
        name = uuid.uuid4().hex
        if self.keep_masks:
            masks = json.dumps(self._pending_masks).encode()
            _write(self.masks_folder / f"{name}.json", lambda file: file.write(masks))
        arrays = _arrays(self._pending) | {"environment": np.array(self._environment)}
        _write(
            self._values_folder / f"{name}.npz",
            lambda file: np.savez_compressed(file, allow_pickle=False, **arrays),  # pyright: ignore
        )
        self._pending, self._pending_masks = [], []
        self._flushed_at = time.monotonic()

    @property
    def _identity_path(self) -> Path:
        return self._values_folder / "identity.json"

    def _check_identity(self, folder: Path, has_shards: bool, masks: Sequence[Path]) -> None:
        if not self._identity_path.is_file():
            if has_shards or (masks and self.keep_masks):
                raise ValueError(
                    f"{folder} holds masks or results, but not progress/identity.json, which records of what. "
                    "Name another output_dir, or delete it."
                )
            return
        way_out = "Name another output_dir, or delete it."
        require_same_identity(read_identity(self._identity_path, way_out), self._identity, folder, way_out)


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file atomically."""
    with atomic_write(path) as partial, partial.open("wb") as file:
        write(file)


def _arrays(results: Sequence[ImageResult]) -> dict[str, np.ndarray]:
    return {
        "image_id": np.array([r.image_id for r in results]),
        **_time_arrays("ms/", [r.ms for r in results]),
        **_time_arrays("cpu_ms/", [r.cpu_ms for r in results]),
        "num_prompts": np.array([r.num_prompts for r in results]),
        **{f"value/{name}": np.stack([r.values[name] for r in results]) for name in results[0].values},
    }


def _time_arrays(kind: str, times: Sequence[dict[str, float] | None]) -> dict[str, np.ndarray]:
    """Return the times of each stage, NaN for images without."""
    stages = next((list(ms) for ms in times if ms is not None), [])
    return {f"{kind}{name}": np.array([np.nan if ms is None else ms[name] for ms in times]) for name in stages}


def _read(path: Path) -> tuple[list[ImageResult], str]:
    """Return the images of a file, and the environment that it was written in."""
    arrays = read_arrays(path)
    try:
        return _results(arrays)
    except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read ({error!r}); delete that file.") from error


def _layout(result: ImageResult) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in result.values.items()}


def _results(arrays: Mapping[str, np.ndarray]) -> tuple[list[ImageResult], str]:
    values, ms, cpu_ms = (
        {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}
        for kind in ("value/", "ms/", "cpu_ms/")
    )
    environment = str(arrays["environment"])
    if not isinstance(json.loads(environment), dict):
        raise ValueError("its environment is no JSON object")
    if any(len(array) != len(arrays["image_id"]) for array in (*values.values(), *ms.values(), *cpu_ms.values())):
        raise ValueError("its arrays are of different numbers of images")
    results = [
        ImageResult(
            int(image_id),
            {name: array[i] for name, array in values.items()},
            {stage: float(array[i]) for stage, array in ms.items() if not np.isnan(array[i])} or None,
            int(num_prompts),
            {stage: float(array[i]) for stage, array in cpu_ms.items() if not np.isnan(array[i])} or None,
        )
        for i, (image_id, num_prompts) in enumerate(zip(arrays["image_id"], arrays["num_prompts"], strict=True))
    ]
    return results, environment
