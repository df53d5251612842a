"""The direction of imports, read from the sources."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "mobilesamv2"
BASE = ("structures", "transforms", "masks", "released", "visualize", "whole_files")
ROOMS = ("models", "prompts", "data", "metrics")
# What a module may import of this project, beside itself and its own room; the command line wires everything.
ALLOWED: dict[str, tuple[str, ...] | None] = {
    "structures": (),
    "transforms": (),
    "released": (),
    "whole_files": (),
    "masks": ("structures",),
    "run_lengths": ("structures", "transforms", "masks"),
    "visualize": ("structures", "masks"),
    **dict.fromkeys(ROOMS, BASE),
    "checkpoints": (*BASE, *ROOMS),
    "registry": (*BASE, *ROOMS, "checkpoints"),
    "downloads": ("released",),
    "pretrained": (*BASE, *ROOMS, "registry", "checkpoints"),
    "segany": (*BASE, *ROOMS, "registry", "checkpoints", "pretrained"),
    "segevery": (*BASE, *ROOMS, "registry", "checkpoints", "pretrained", "segany", "run_lengths"),
    "segment_photos": (*BASE, *ROOMS),
    "exported": (*BASE, *ROOMS, "checkpoints"),
    "export": (*BASE, *ROOMS, "checkpoints", "exported"),
    "quantize": (*BASE, *ROOMS, "exported", "export"),
    "interactive": (*BASE, *ROOMS, "pretrained", "segany", "segevery"),
    "app": (*BASE, "interactive"),
    "tasks": (*BASE, *ROOMS, "registry", "checkpoints", "segany", "segevery"),
    "reports": (*BASE, *ROOMS),
    "cli": None,
    "__main__": ("cli",),
    "__init__": ("pretrained", "registry", "segany", "segevery"),
}
OUTSIDE = {
    "pytorch_lightning": {"tasks", "data/datamodule"},
    "lightning": set(),
    "hydra": set(),
    "omegaconf": set(),
    "wandb": set(),
    "gradio": {"app"},
    "ultralytics": {"models/object_detector", "tasks/detect"},
}


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    place = path.relative_to(PACKAGE).with_suffix("")
    room = place.parts[0]
    assert room in ALLOWED, f"{place} is in no room"
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "mobilesamv2":
            assert rest, f"{place} imports the front door"
            target = rest[0]
            allowed = ALLOWED[room]
            assert target == room or allowed is None or target in allowed, f"{place} imports {name}"
        elif top in OUTSIDE:
            assert {room, str(place)} & OUTSIDE[top], f"{place} imports {top}"


def test_ultralytics_comes_through_one_door() -> None:
    """It is imported by name when used, which the reading of imports does not see."""
    users = {str(p.relative_to(PACKAGE).with_suffix("")) for p in FILES if "ultralytics_module(" in p.read_text()}
    assert users <= OUTSIDE["ultralytics"]
    dynamic = {str(p.relative_to(PACKAGE).with_suffix("")) for p in FILES if "import_module" in p.read_text()}
    assert dynamic == {"models/object_detector"}


def test_nothing_lies_in_a_junk_drawer() -> None:
    names = {p.stem for p in PACKAGE.rglob("*")}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_the_library_works_without_lightning_hydra_and_ultralytics() -> None:
    import subprocess
    import sys

    code = (
        "import sys, mobilesamv2.prompts, mobilesamv2.data.lvis, mobilesamv2.models.object_detector\n"
        "bad = {'pytorch_lightning', 'hydra', 'omegaconf', 'ultralytics'} & sys.modules.keys()\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
