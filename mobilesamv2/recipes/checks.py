"""What is checked before a run begins: files, precision, and where its processes write."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mobilesamv2.backbone_weights import TIMM
from mobilesamv2.data.base import ImageDataset
from mobilesamv2.model_zoo import require_weights

NETWORKS = ("model", "encoder", "teacher", "detector", "prompt_sampler")
"""The groups of networks, and of what runs them: a task reads some of them."""

Check = Callable[[], Any]
"""Raises FileNotFoundError where a file is missing."""


def require_file(path: str) -> None:
    """Check that a file or folder exists.

    Raises:
        FileNotFoundError: if it does not.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"There is no file {path}.")


def check_single_process_sweep(cfg: DictConfig) -> None:
    """Check that a sweep on this machine starts one process per job; several would each start the sweep again.

    Raises:
        ValueError: if it would start several.
    """
    if not is_sweep():
        return
    if "basic_launcher" in HydraConfig.get().launcher._target_ and cfg.trainer.devices not in (1, "1"):
        raise ValueError(f"trainer.devices must be 1 in a sweep on this machine, got {cfg.trainer.devices}.")


def check_pixels_are_read(cfg: DictConfig, groups: Sequence[str]) -> None:
    """Check that pixels are to be kept by a task with a teacher alone: they lie beside its embeddings.

    Args:
        cfg: the composed configuration.
        groups: that the recipe needs.

    Raises:
        ValueError: if they are to be kept, and there is no teacher.
    """
    pixels = OmegaConf.select(cfg, "cache.pixels", default="off")
    if "teacher" not in groups and pixels != "off":
        raise ValueError(f"cache.pixels must be off for a task without a teacher, which keeps no pixels, got {pixels}.")


def check_networks_are_read(overrides: Sequence[str], recipe: Any) -> None:
    """Check that each network that the command line chooses or sets is one that the task reads.

    Args:
        overrides: ``detector=yolov8n``, ``model.checkpoint=FILE`` and others, as on the command line.
        recipe: of the task, with ``NEEDS`` and ``READS``.

    Raises:
        ValueError: if the task does not read one.
    """
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        group = key.rpartition("@")[2].partition(".")[0]  # model@teacher=NAME, teacher.checkpoint=FILE
        if group in NETWORKS and group not in (*recipe.NEEDS, *recipe.READS) and value not in ("", "null"):
            raise ValueError(f"Nothing would read {override}: this task has no {group}. Leave it out.")


def is_sweep() -> bool:
    """Return whether this run is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def output_dir_is_stable() -> bool:
    """Return whether this job, requeued, would find the folder that it writes into now; print it, if it would not.

    By default the folder is named after the time, which submitit hands on and Slurm alone does not.
    """
    if "SLURM_JOB_ID" in os.environ and not _is_folder_named() and not is_sweep():
        print(
            "This job will not be queued again if it is stopped: name its folder, output_dir=FOLDER.", file=sys.stderr
        )
        return False
    return True


def check_shared_folder() -> None:
    """Check that processes that torchrun or srun started do not each write into a folder of their own.

    Raises:
        ValueError: if they are not.
    """
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    is_one_of_many = by_torchrun or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if is_one_of_many and not _is_folder_named() and not is_sweep():
        raise ValueError(
            "Several processes were started, and each would write into a folder named after its own time: name one for "
            "all, output_dir=FOLDER."
        )


def require_folder_of(program: str, folder: Path) -> None:
    """Check that a folder is not of a run of the other program, whose record of its settings this one would replace.

    Args:
        program: ``train`` or ``evaluate``.
        folder: that it is to write into.

    Raises:
        ValueError: if it is.
    """
    runs = {"train": "a training", "evaluate": "an evaluation"}
    owner = _owner_of(folder)
    if owner in runs and owner != program:
        raise ValueError(
            f"{folder} holds {runs[owner]}, and {runs[program]} would replace its record of its settings: name another "
            f"output_dir, {folder / program} for example."
        )


def _owner_of(folder: Path) -> str | None:
    """Return the program whose run a folder holds, by what either writes when it begins, or the results."""
    if (folder / "run.json").is_file():
        return "train"
    try:
        program = OmegaConf.select(OmegaConf.load(folder / ".hydra" / "hydra.yaml"), "hydra.job.config_name")
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):  # none, or damaged
        program = None
    if program in ("train", "evaluate"):
        return program
    # one from Python has no record of Hydra's, and a stopped one no results
    has_images = any((folder / name).is_file() for name in ("results.json", "progress/identity.json"))
    return "evaluate" if has_images else None


def _is_folder_named() -> bool:
    return any(override.lstrip("+").startswith("output_dir=") for override in command_line())


def command_line() -> list[str]:
    """Return the overrides of this job on the command line of Hydra's program, none where there is no such program."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def weight_checks(*nodes: DictConfig | None) -> list[Callable[[], Any]]:
    """Return a check for each weight file that models and detectors name under ``checkpoint``."""
    return [partial(require_weights, file) for node in nodes if node is not None for file in weight_files(node)]


def weight_files(node: DictConfig) -> list[str]:
    """Return the files that a node names under ``checkpoint``, none, one or several, and ``backbone_checkpoint``."""
    checkpoint: Any = node.get("checkpoint")
    files = list(checkpoint) if OmegaConf.is_list(checkpoint) else [checkpoint] if checkpoint else []
    backbone = node.get("backbone_checkpoint")
    return [*files, backbone] if backbone and backbone != TIMM else files


def dataset_checks(node: DictConfig, with_images: bool = True) -> list[Callable[[], Any]]:
    """Return a check of the files that a data set of conf/dataset names."""
    settings: Any = OmegaConf.to_container(node, resolve=True)
    if not with_images and "images" in settings:
        settings["images"] = None
    return [partial(get_class(node._target_).require_files, settings)]


def require_objects(images: ImageDataset) -> None:
    """Check that a data set has an object; broken images are left to training, which counts them.

    Raises:
        ValueError: if it has none.
    """
    require_annotations(images)
    for index in range(len(images)):
        try:
            if images.ground_truth(index).rles:
                return
        except (OSError, ValueError):
            continue
    raise ValueError(
        f"The {len(images)} images of the data set have no object, and this task learns from objects: check the "
        "annotations, or choose other images (dataset.limit, dataset.image_list)."
    )


def require_annotations(images: ImageDataset) -> None:
    """Check that the images of a data set have annotations.

    Raises:
        ValueError: if it is one of images alone.
    """
    if not images.has_objects:
        raise ValueError(
            f"The {len(images)} images of the data set have no annotations, and this task requires annotated objects "
            "(dataset=sa1b has them as sa_ID.json for each image, dataset=coco in one file). Without, task=distill and "
            "task=cache_teacher work."
        )


def require_all(checks: list[Callable[[], Any]]) -> None:
    """Run checks, and raise one error that names everything that is missing."""
    missing = []
    for check in checks:
        try:
            check()
        except FileNotFoundError as error:
            missing.append(str(error))
    if missing:
        raise FileNotFoundError("\n".join(missing))


def check_precision(cfg: DictConfig) -> None:
    """Check that the weights themselves are of single precision.

    Raises:
        ValueError: if they are not.
    """
    precision = str(cfg.trainer.precision)
    if precision in ("16-true", "bf16-true", "64-true", "64", "transformer-engine", "transformer-engine-float16"):
        raise ValueError(
            f"trainer.precision must keep weights in single precision, got {precision}: use 32-true or bf16-mixed."
        )
