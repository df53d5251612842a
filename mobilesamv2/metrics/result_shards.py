"""Results of images on disk as they come, so that a killed evaluation goes on where it stopped."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilesamv2.metrics.average_recall import ImageCounts
from mobilesamv2.metrics.stage_time import STAGES

SECONDS_AT_RISK = 60.0
"""Work that a killed run may lose."""


@dataclass(frozen=True)
class ImageResult:
    """What is kept of one image.

    Attributes:
        counts: found objects.
        ms: of each stage; None for an image that warmed a process up.
        num_prompts: decoded prompts.
    """

    counts: ImageCounts
    ms: dict[str, float] | None
    num_prompts: int


class ResultShards:
    """Counts, times and, if asked for, masks of images, in files of a few images each.

    A file is written under a temporary name, synchronised and renamed, and an image's masks before its counts: a killed
    run loses the images in progress and nothing else. Several processes may write at once, each into files of its own.

    Args:
        folder: of the evaluation; counts go to ``progress/*.npz``, masks to ``masks/*.json``.
        identity: plain values that the results depend on; they are written beside the files.
        keep_masks: write masks, as COCO results.
        shard_size: images in a file.

    Raises:
        ValueError: the folder holds results of another identity; the sentence says what differs.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], keep_masks: bool = False, shard_size: int = 50
    ) -> None:
        self._counts_folder, self._masks_folder = folder / "progress", folder / "masks"
        self._identity = json.loads(json.dumps({**identity, "save_masks": keep_masks}))
        self.keep_masks = keep_masks
        self._shard_size = shard_size
        self._pending: list[ImageResult] = []
        self._pending_masks: list[dict[str, Any]] = []
        self._flushed_at = time.monotonic()
        self._check_identity(folder)
        shards = sorted(self._counts_folder.glob("*.npz"))
        self.done: list[ImageResult] = [result for path in shards for result in _read(path)]
        """Of earlier runs, when this one began."""
        for orphan in {p.stem for p in self._masks_folder.glob("*.json")} - {p.stem for p in shards}:
            (self._masks_folder / f"{orphan}.json").unlink(missing_ok=True)

    def add(self, result: ImageResult, masks: Sequence[dict[str, Any]] = ()) -> None:
        """Keeps one image; what is pending goes to disk when a shard is full or a minute has passed."""
        self._pending.append(result)
        self._pending_masks += masks
        if len(self._pending) >= self._shard_size or time.monotonic() - self._flushed_at > SECONDS_AT_RISK:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending."""
        if not self._pending:
            return
        name = uuid.uuid4().hex
        if self.keep_masks:
            _write(
                self._masks_folder / f"{name}.json", lambda file: file.write(json.dumps(self._pending_masks).encode())
            )
        _write(
            self._counts_folder / f"{name}.npz",
            lambda file: np.savez_compressed(file, allow_pickle=False, **_arrays(self._pending)),
        )
        self._pending, self._pending_masks = [], []
        self._flushed_at = time.monotonic()

    def _check_identity(self, folder: Path) -> None:
        path = self._counts_folder / "identity.json"
        if not path.is_file():
            _write(path, lambda file: file.write(json.dumps(self._identity, indent=2).encode()))
            return
        theirs = json.loads(path.read_text())
        differs = [k for k in sorted(theirs.keys() | self._identity.keys()) if theirs.get(k) != self._identity.get(k)]
        if differs:
            changes = "; ".join(f"{k} was {theirs.get(k)} and is {self._identity.get(k)}" for k in differs)
            raise ValueError(
                f"{folder} holds results of another evaluation ({changes}). Name another output_dir, or delete it."
            )


def _write(path: Path, write: Any) -> None:
    """A file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{uuid.uuid4().hex}.partial")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _arrays(results: Sequence[ImageResult]) -> dict[str, np.ndarray]:
    return {
        "image_ids": np.array([r.counts.image_id for r in results]),
        "matches": np.stack([r.counts.matched for r in results]),
        "n_gt": np.stack([r.counts.n_gt for r in results]),
        "num_detections": np.array([r.counts.num_detections for r in results]),
        "ms": np.array([[np.nan if r.ms is None else r.ms[stage] for stage in STAGES] for r in results]),
        "num_prompts": np.array([r.num_prompts for r in results]),
    }


def _read(path: Path) -> list[ImageResult]:
    with np.load(path) as arrays:
        columns = [arrays[name] for name in ("image_ids", "matches", "n_gt", "num_detections", "ms", "num_prompts")]
    return [
        ImageResult(
            ImageCounts(int(image_id), matched, n_gt, int(detections)),
            None if np.isnan(ms).any() else dict(zip(STAGES, ms.tolist(), strict=True)),
            int(prompts),
        )
        for image_id, matched, n_gt, detections, ms, prompts in zip(*columns, strict=True)
    ]
