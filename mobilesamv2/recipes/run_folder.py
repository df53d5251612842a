"""The folder of a training run: what the run depends on is recorded there, and compared when it resumes.

Settings, images and weights must be those of the run that the folder records; a difference is refused before anything
in the folder is touched. Versions and commit may differ from one part of a run to the next; all of them are recorded.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mobilesamv2.backbone_weights import TIMM
from mobilesamv2.data.base import ImageDataset
from mobilesamv2.files import sha256_of, write_text_atomic
from mobilesamv2.identity import read_identity, require_same_identity
from mobilesamv2.recipes.records import environment

FREE_SETTINGS = (
    "output_dir", "resume", "requeue", "objective", "best.*", "num_workers", "checkpoint_minutes", "max_broken",
    "compile", "picture_steps", "logger.*", "paths.*", "cache.folder", "cache.pixels", "hydra.*",
    "dataset.index_folder", "dataset.max_broken", "dataset.bad_annotations",
    "trainer.accelerator", "trainer.strategy", "trainer.max_epochs", "trainer.max_steps",
    "trainer.devices", "trainer.num_nodes", "trainer.accumulate_grad_batches",  # images a step are compared instead
    "trainer.log_every_n_steps", "trainer.enable_*", "trainer.val_check_interval", "trainer.check_val_every_n_epoch",
    "trainer.limit_val_batches", "trainer.num_sanity_val_steps", "trainer.profiler", "trainer.detect_anomaly",
)  # fmt: skip
"""Settings that may change when a run resumes: they change no weight beyond the order of summation, or only how long
the run is. More epochs continue the schedule of the new length."""

FILES_BY_CONTENT = ("*checkpoint", "dataset.tars", "dataset.annotations", "dataset.images", "dataset.folder")
"""Settings that name files; weights count by their SHA-256, and data sets by their images."""

RECORD = "run.json"

STEP_SIZE = "images per step"
"""Key of the images of an optimizer step, over all processes."""

ANNOTATIONS, SIGNATURES = "annotations (SHA-256)", "images (SHA-256 of their signatures)"
"""Keys of ``ImageDataset.fingerprint``, which runs of earlier versions did not record."""

WAY_OUT = "Resume with the settings of the folder, name another output_dir, or start over with resume=null."


def run_identity(cfg: DictConfig, images: ImageDataset) -> dict[str, Any]:
    """Return what the weights of a run depend on, flat: settings by name, hashes of images, annotations and weights.

    Args:
        cfg: the composed configuration.
        images: the data set.
    """
    identity: dict[str, Any] = {}
    for key, value in flat_settings(cfg).items():
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in (*FREE_SETTINGS, *FILES_BY_CONTENT)):
            identity[key] = value
        elif key.endswith("checkpoint"):
            files = value if isinstance(value, list) else [value] if value else []
            found = bool(files) and all(Path(file).is_file() for file in files)  # a task may leave a model out
            identity[f"{key} (SHA-256)"] = TIMM if value == TIMM else sha256_of(files) if found else None
    ids = "\n".join(map(str, images.image_ids))
    identity["images (SHA-256 of their ids)"] = hashlib.sha256(ids.encode()).hexdigest()
    fingerprint = images.fingerprint()
    identity |= {ANNOTATIONS: fingerprint["annotations"], SIGNATURES: fingerprint["images"]}
    return json.loads(json.dumps(identity))


def flat_settings(cfg: DictConfig) -> dict[str, Any]:
    """Return all settings of a composed configuration by their dotted names."""
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    return dict(flat(values))


def run_id(folder: Path, resumed: bool) -> str:
    """Return the id of a run that resumes, or a new one."""
    path = folder / RECORD
    known = _read(path).get("id") if resumed and path.is_file() else None
    return known or uuid.uuid4().hex[:12]


def check_resumed_run(folder: Path, identity: dict[str, Any], is_required: bool = True) -> None:
    """Check that a folder with checkpoints, or the result of a run, is of this run.

    Args:
        folder: of the run that is resumed.
        identity: of the run that begins; ``STEP_SIZE`` is compared where it is known, and the content of the data set
            where the folder records it.
        is_required: a folder without a record is refused.

    Raises:
        ValueError: if it is of another, or records nothing.
    """
    path = folder / RECORD
    if path.is_file():
        saved = _identity(_read(path))
        if STEP_SIZE not in identity:
            saved.pop(STEP_SIZE, None)
        unknown = {ANNOTATIONS, SIGNATURES} - saved.keys()
        compared = {key: value for key, value in identity.items() if key not in unknown}
        require_same_identity(saved, compared, folder, WAY_OUT)
    elif is_required:
        raise ValueError(f"{folder} holds checkpoints, but not {RECORD}, which records of what. {WAY_OUT}")


def print_uncompared(folder: Path) -> None:
    """Print what a run that goes on can't be compared by, since an earlier version recorded the folder."""
    path = folder / RECORD
    saved = _identity(_read(path)) if path.is_file() else {}
    unknown = [key for key in (ANNOTATIONS, SIGNATURES) if key not in saved]
    if saved and unknown:
        print(f"{path} is of an earlier version, without {' and '.join(unknown)}, which are not compared.")


def write_run_record(
    cfg: DictConfig,
    folder: Path,
    run_id: str,
    identity: dict[str, Any],
    image_ids: Sequence[int | str],
    weights: Iterable[str],
    resumed: bool,
) -> None:
    """Write ``run.json``, ``images.txt`` and Hydra's record of the configuration.

    Args:
        cfg: the composed configuration.
        folder: of the run.
        run_id: of ``run_id``.
        identity: of the run.
        image_ids: of the data set, those of validation last.
        weights: names of the weight files that the run will write.
        resumed: keep the environments of before, and print a change of length.
    """
    path = folder / RECORD
    before = _read(path) if resumed and path.is_file() else {}
    environments, now = list(before.get("environments", [])), environment(cfg.seed)
    if now not in environments:
        environments.append(now)
    length = {name: cfg.trainer[name] for name in ("max_epochs", "max_steps")}
    if before.get("length", length) != length:
        was = ", ".join(f"{name} {value}" for name, value in before["length"].items())
        is_now = ", ".join(f"{name} {value}" for name, value in length.items())
        print(f"The run had {was} and has {is_now}; the learning rate follows the schedule of the new length.")
    record = {"id": run_id, "identity": identity, "length": length, "environments": environments}
    record["weights"] = sorted(weights)
    write_text_atomic(path, json.dumps(record, indent=2) + "\n")
    write_text_atomic(folder / "images.txt", "".join(f"{image_id}\n" for image_id in image_ids))
    write_hydra_record(cfg, folder)


def _read(path: Path) -> dict[str, Any]:
    return read_identity(path, WAY_OUT)


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    identity = record.get("identity")
    return dict(identity) if isinstance(identity, dict) else {}


def recorded_weights(folder: Path) -> list[str]:
    """Return the names of the weight files that the run of a folder writes; none where that is not recorded."""
    try:
        names = read_identity(folder / RECORD, WAY_OUT).get("weights")
    except ValueError:  # there is no record, or it is damaged
        return []
    return [Path(str(name)).name for name in names] if isinstance(names, list) else []


def recorded_result(folder: Path) -> dict[str, Any] | None:
    """Return what a folder records of a run that ended; None for one that did not.

    Raises:
        ValueError: if the record can't be read.
    """
    path = folder / RECORD
    result = _read(path).get("result") if path.is_file() else None
    if result is not None and not (isinstance(result, dict) and isinstance(result.get("metrics"), dict)):
        raise ValueError(f"{path} can't be read (result must be an object with metrics, got {result!r}). {WAY_OUT}")
    return result


def is_done(result: dict[str, Any], total_steps: int | None) -> bool:
    """Return whether a run that ended is done at a length; early stopping ends one before its last step.

    Args:
        result: of ``recorded_result``; one of an earlier version says only how many steps were done.
        total_steps: optimizer steps of the run, as it is set now.
    """
    return total_steps == result.get("total_steps", result.get("steps"))


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Add to ``run.json`` how a run ended: ``steps``, ``total_steps``, ``metrics``, ``best`` and more."""
    record = _read(folder / RECORD) | {"result": result}
    write_text_atomic(folder / RECORD, json.dumps(record, indent=2) + "\n")


def write_hydra_record(cfg: DictConfig, folder: Path) -> None:
    """Write what Hydra itself would write into ``.hydra`` before a run can be refused."""
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    write_text_atomic(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(cfg))
    write_text_atomic(folder / ".hydra" / "hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra})))
    write_text_atomic(folder / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(hydra.overrides.task))


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings by their dotted names."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
