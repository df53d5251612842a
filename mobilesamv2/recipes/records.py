"""What a result or a run records of itself: networks, versions, commit, seed."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mobilesamv2.files import sha256_of
from mobilesamv2.recipes.checks import weight_files
from mobilesamv2.recipes.schema import CONF


def config_record(node: DictConfig | None) -> dict[str, Any] | None:
    """Return a model, teacher or detector of conf/ as plain values, with the hashes of its weight files."""
    if node is None:
        return None
    values: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # pyright: ignore
    del values["_target_"]
    return values | {"sha256": [sha256_of([file]) for file in weight_files(node)]}


def detector_record(node: DictConfig, detector: Any) -> dict[str, Any]:
    """Return a detector of conf/ for the record of a run, a YOLO's with the input that it was built for."""
    record = config_record(node)
    assert record is not None
    return record | ({"image_size": detector.image_size} if "image_size" in record else {})


def warn_of_random_weights(nodes: Mapping[str, Any]) -> None:
    """Print to stderr which models have no checkpoint, of nodes of conf/ or their records, by name."""
    for name, node in nodes.items():
        if node is not None and "checkpoint" in node and node["checkpoint"] is None:
            print(f"{name}.checkpoint is null: its weights are random, and so is the result.", file=sys.stderr)


def describe_start(name: str, node: DictConfig, from_teacher: bool = False) -> str:
    """Return a line on the weights that the model of a run starts from.

    Args:
        name: of the model.
        node: of conf/model.
        from_teacher: its image encoder takes over the tensors that its teacher's has too, over all others.
    """
    whole, backbone = node.get("checkpoint"), node.get("backbone_checkpoint")
    first = "its teacher's image encoder where the two have tensors in common, elsewhere from " if from_teacher else ""
    rest = "random weights" if whole is None else whole
    if whole is None and backbone is not None:
        rest += f", its image encoder's backbone from those of {backbone}"
    return f"{name} starts from {first}{rest}"


def environment(seed: int) -> dict[str, Any]:
    """Return what else decides the numbers: versions, code, commit, seed; None for what can't be found out.

    ``is_clean`` says whether the code is that of the commit, without changes and new files.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("mobilesamv2", "torch", "timm", "ultralytics", "pycocotools", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {"versions": versions, **_commit(Path(__file__)), "code_sha256": code_sha256(), "seed": seed}


def _commit(module: Path) -> dict[str, Any]:
    """Return the commit of the repository that tracks a module, and whether ``mobilesamv2/`` and ``conf/`` are clean.

    A repository that merely contains the virtual environment does not track it.
    """
    if _git(module, "ls-files", "--error-unmatch", module.name) is None:
        return {"commit": None, "is_clean": None}
    changes = _git(module, "status", "--porcelain", "--", str(module.parents[1]), str(CONF))
    return {"commit": _git(module, "rev-parse", "HEAD"), "is_clean": None if changes is None else not changes}


def _git(module: Path, *arguments: str) -> str | None:
    """Return what git prints in the folder of a module; None where it is not installed, or fails."""
    command = ["git", "--no-optional-locks", "-C", str(module.parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def code_sha256() -> str:
    """Return a hash of the package's modules and of conf/, the same in a clone and in an installed wheel.

    A commit says nothing of a clone with changes, and a wheel has none.
    """
    package = Path(__file__).parents[1]
    files = {f"mobilesamv2/{path.relative_to(package).as_posix()}": path for path in package.rglob("*.py")}
    files |= {f"conf/{path.relative_to(CONF).as_posix()}": path for path in CONF.rglob("*.yaml")}
    lines = "".join(f"{sha256_of([files[name]])}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()
