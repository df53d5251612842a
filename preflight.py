"""What evaluate.py and train.py do before they run: look for files, and turn a user's mistakes into sentences."""

import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from mobilesamv2.models.released import require_released


@contextmanager
def sentences() -> Iterator[None]:
    """Ends the program with one sentence, and no traceback, where a file is missing or a value makes no sense."""
    try:
        yield
    except (FileNotFoundError, ValueError, InstantiationException) as error:
        reason = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(reason, FileNotFoundError | ValueError):
            raise
        raise SystemExit(f"error: {reason}") from error


def weight_checks(*nodes: DictConfig | None) -> list[Callable[[], Any]]:
    """A check for each weight file that models and detectors name under ``checkpoint``."""
    files: list[str] = []
    for node in nodes:
        checkpoint = None if node is None else node.checkpoint
        files += list(checkpoint) if OmegaConf.is_list(checkpoint) else [checkpoint] if checkpoint else []
    return [partial(require_released, file) for file in files]


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


def environment(seed: int) -> dict[str, Any]:
    """What else decides the numbers: versions, commit, seed."""
    packages = ("mobilesamv2", "torch", "timm", "ultralytics", "pycocotools", "numpy")
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "commit": git.stdout.strip() or None,
        "seed": seed,
    }
