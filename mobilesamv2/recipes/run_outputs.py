"""What a training run leaves in its folder, and how that makes room for a run with another record."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from mobilesamv2.checkpoints import is_mobile_sam, save_mobile_sam, save_sam2, save_weights
from mobilesamv2.models.sam import Sam
from mobilesamv2.recipes.run_folder import RECORD, recorded_weights
from mobilesamv2.sam2_checkpoints import obstacle_to_sam2

Writers = Mapping[str, Callable[[Path], object]]
"""What writes each weight file of a run, by the file's name, so that the names are known before anything is written."""

BEST = "best"
"""Folder, in that of a run, of the weights of the best validation."""

OWN_CHECKPOINTS = "own_checkpoints"
"""Folder, in that of a run, of a user's ``ModelCheckpoint`` that names none."""

OUTPUTS = ("checkpoints", OWN_CHECKPOINTS, BEST, "metrics.csv", "calibration.csv")
"""What a run writes beside its weights and its record."""

LOGS = ("hparams.yaml", "events.out.tfevents.*")
"""What its loggers write."""

RECORDS = ("images.txt", ".hydra", RECORD)
"""The record of a run, which goes last: while any of its outputs are there, so is the record."""

RESUMABLE = re.compile(r"(last|recent|stopped|epoch\d+-step\d+)\.ckpt")
"""Names of our checkpoints; others are a user's own, which may hold weights alone."""


def starts_over(cfg: DictConfig) -> bool:
    """Return whether a run begins anew whatever its folder holds; a job that Slurm started again goes on."""
    return cfg.resume is None and not int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def checkpoint_to_resume(cfg: DictConfig, folder: Path) -> Path | None:
    """Return the checkpoint to resume: the newest of this run's folder, or else the one that ``resume`` names."""
    if starts_over(cfg):
        return None
    ours = [path for path in (folder / "checkpoints").glob("*.ckpt") if RESUMABLE.fullmatch(path.name)]
    found = max(ours, key=lambda path: path.stat().st_mtime_ns, default=None)
    return found or (None if cfg.resume in (None, "auto") else Path(cfg.resume))


def make_room(folder: Path, weights: Iterable[str], with_logs: bool) -> None:
    """Move all that an earlier run left in a folder into one of its own there, with the record that it goes with.

    Args:
        folder: in which another run begins.
        weights: names of the weight files of that other run.
        with_logs: what loggers wrote, too, which have to be closed.

    Raises:
        ValueError: if there is something by the same names that no run wrote.
    """
    names = {*recorded_weights(folder), *weights}
    logs = [path for pattern in LOGS for path in folder.glob(pattern)] if with_logs else []
    outputs = [path for path in (folder / name for name in (*sorted(names), *OUTPUTS)) if path.exists()]
    if outputs and not (folder / RECORD).exists() and not _has_checkpoints(folder):
        raise ValueError(
            f"{folder} holds {', '.join(path.name for path in outputs)} and no {RECORD}, so that no run here wrote "
            "them. Name another output_dir, or move them."
        )
    if outputs:
        _move([*outputs, *logs, *(folder / name for name in RECORDS)], folder)


def _has_checkpoints(folder: Path) -> bool:
    """Return whether a folder holds checkpoints by our names, those of a run of a version without a record."""
    return any(RESUMABLE.fullmatch(path.name) for path in (folder / "checkpoints").glob("*.ckpt"))


def make_room_for_more(folder: Path, weights: Iterable[str]) -> None:
    """Move the weights that a run wrote at its end aside, since it is longer now; a copy of its record goes with them.

    Args:
        folder: of the run.
        weights: names of its weight files.
    """
    names = {*recorded_weights(folder), *weights, BEST}
    outputs = [path for path in (folder / name for name in sorted(names)) if path.exists()]
    if outputs:
        _move(outputs, folder, copied=[folder / RECORD])


def require_other_inputs(settings: Mapping[str, Any], folder: Path, weights: Iterable[str]) -> None:
    """Check that no file that a run starts from is one that it would write or move aside.

    Args:
        settings: of the run by their dotted names.
        folder: of the run.
        weights: names of its weight files.

    Raises:
        ValueError: if one is.
    """
    names = {*recorded_weights(folder), *weights, *OUTPUTS, *RECORDS}
    written = [(folder / name).resolve() for name in names]
    for name, value in settings.items():
        if not name.endswith(("checkpoint", "image_list")):
            continue
        for file in value if isinstance(value, list) else [value]:
            if isinstance(file, str) and any(Path(file).resolve().is_relative_to(path) for path in written):
                raise ValueError(
                    f"{name} must not be a file that runs in {folder} write, got {file}; name another output_dir."
                )


def _move(paths: Iterable[Path], folder: Path, copied: Iterable[Path] = ()) -> None:
    aside = folder / f"earlier.{time.time_ns()}"
    aside.mkdir()
    for path in copied:
        if path.is_file():
            shutil.copyfile(path, aside / path.name)
    for path in paths:
        if path.exists():
            path.rename(aside / path.name)
    print(f"what {folder} holds of an earlier run is moved to {aside}")


def has_weights(folder: Path, names: Sequence[str], result: Mapping[str, Any]) -> bool:
    """Return whether a run that ended still has the weight files that it wrote, the best ones too if it kept any."""
    folders = [folder, folder / BEST] if result.get("best") else [folder]
    return all((part / name).is_file() for part in folders for name in names)


def keep_apart(callbacks: Sequence[Callback], folder: Path) -> Sequence[Callback]:
    """Give a user's ``ModelCheckpoint`` a folder of its own, since ours are what a run resumes from.

    Args:
        callbacks: of the user.
        folder: of the run.

    Raises:
        ValueError: if one writes into the folder of ours.
    """
    for callback in callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        if callback.dirpath is None:
            callback.dirpath = str(folder / OWN_CHECKPOINTS)
        elif Path(callback.dirpath).resolve() == (folder / "checkpoints").resolve():
            raise ValueError(
                f"dirpath of a ModelCheckpoint in trainer.callbacks must not be {callback.dirpath}, where the "
                f"checkpoints are that the run resumes from. Without one, it writes into {folder / OWN_CHECKPOINTS}."
            )
    return callbacks


def write_files(writers: Writers, folder: Path) -> list[Path]:
    """Write each file into a folder, and return their paths.

    Raises:
        OSError: if a file can't be written.
    """
    for name, write in writers.items():
        write(folder / name)
    return [folder / name for name in writers]


def sam_writers(sam: Sam) -> Writers:
    """Return what writes a SAM in the formats that other tools read: safetensors and, where it fits, ``mobile_sam.pt``.

    A SAM 2 with a Hiera is also written in the official format, without a memory.
    """
    writers = {f"{sam.name}.safetensors".replace("/", "_"): partial(save_weights, sam)}
    if is_mobile_sam(sam):
        writers["mobile_sam.pt"] = partial(save_mobile_sam, sam)
    if obstacle_to_sam2(sam) is None:
        writers[f"{sam.name}_image.pt".replace("/", "_")] = partial(save_sam2, sam)
    return writers
