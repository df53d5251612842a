"""What evaluate.py and train.py do before they run: look for files, and turn a user's mistakes into sentences."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from mobilesamv2.data.sa1b import require_tars
from mobilesamv2.released import require_released


@contextmanager
def sentences() -> Iterator[None]:
    """Ends the program with one sentence, and no traceback, where a file is missing or a value makes no sense.

    ``HYDRA_FULL_ERROR=1`` shows the traceback all the same.
    """
    try:
        yield
    except (FileNotFoundError, ValueError, InstantiationException) as error:
        reason = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(reason, FileNotFoundError | ValueError) or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        raise SystemExit(f"error: {reason}") from error


def weight_checks(*nodes: DictConfig | None) -> list[Callable[[], Any]]:
    """A check for each weight file that models and detectors name under ``checkpoint``."""
    files: list[str] = []
    for node in nodes:
        checkpoint = None if node is None else node.checkpoint
        files += list(checkpoint) if OmegaConf.is_list(checkpoint) else [checkpoint] if checkpoint else []
    return [partial(require_released, file) for file in files]


def dataset_checks(node: DictConfig, with_images: bool = True) -> list[Callable[[], Any]]:
    """A check of the files that a data set of conf/dataset names."""
    if "tars" in node:
        return [partial(require_tars, node.tars)]
    if "annotations" in node:
        images = node.images if with_images else None
        return [partial(get_class(node._target_).require_files, node.annotations, images)]
    return []


def file_hashes(checkpoint: Any) -> list[str] | None:
    """SHA-256 of each weight file; None for random weights."""
    if checkpoint is None:
        return None
    files = list(checkpoint) if OmegaConf.is_list(checkpoint) else [checkpoint]
    return [hashlib.file_digest(Path(file).open("rb"), "sha256").hexdigest() for file in files]


def require_all(checks: list[Callable[[], Any]]) -> None:
    """Runs checks, and raises one error that names everything that is missing."""
    missing = []
    for check in checks:
        try:
            check()
        except FileNotFoundError as error:
            missing.append(str(error))
    if missing:
        raise FileNotFoundError("\n".join(missing))


def output_folder(cfg: DictConfig) -> Path:
    """Where a run writes: ``output_dir``, or in a sweep the job's own folder inside it."""
    return Path(HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else cfg.output_dir)


def environment(seed: int) -> dict[str, Any]:
    """What else decides the numbers: versions, commit, seed; null for what can't be found out."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("mobilesamv2", "torch", "timm", "ultralytics", "pycocotools", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    try:
        git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    return {"versions": versions, "commit": commit or None, "seed": seed}
