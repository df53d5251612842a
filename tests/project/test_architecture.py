"""The direction of imports, read from the sources."""

import ast
import tomllib
from pathlib import Path

import pytest
from support import ROOT

PACKAGE = ROOT / "mobilesamv2"
BASE = (
    *("structures", "transforms", "masks", "mask_regions", "rle_validation", "visualize", "files", "identity"),
    *("downloads", "model_zoo", "hub", "extras", "ranges", "broken_pipe", "names"),
)
ROOMS = ("models", "prompts", "data", "metrics")
WEIGHTS = ("registry", "checkpoints", "backbone_weights", "model_card", "pretrained")
FORMATS = (
    *("sam2_checkpoints", "sam_hq_checkpoints", "efficient_sam_checkpoints"),
    *("encoder_checkpoints", "transformers_checkpoints"),
)
USE = ("segany", "segevery", "rle_encoder", "prompt_heads")
RUN = ("tasks", "callbacks", "evaluation")
SHOW = ("reports", "export", "app")
# What a module may import of this project, beside itself and its own room.
ALLOWED: dict[str, tuple[str, ...]] = {
    "structures": (),
    "transforms": (),
    "rle_validation": (),
    "files": (),
    "identity": (),
    "extras": (),
    "ranges": (),
    "broken_pipe": (),
    "names": (),
    "downloads": ("files",),
    "model_zoo": ("downloads", "files", "names"),
    "hub": ("model_zoo",),
    "key_tables": (),
    "sam2_checkpoints": ("key_tables", "models"),
    "sam_hq_checkpoints": (),
    "efficient_sam_checkpoints": (),
    "encoder_checkpoints": (),
    "transformers_checkpoints": (*BASE, "key_tables", "models", "data"),
    "checkpoint_layouts": (*BASE, *FORMATS),
    "masks": ("structures", "rle_validation"),
    "rle_encoder": ("structures", "transforms", "masks"),
    "mask_regions": ("structures", "masks"),
    "visualize": ("structures", "transforms", "masks"),
    **dict.fromkeys(ROOMS, BASE),
    "checkpoints": (*BASE, *ROOMS, "checkpoint_layouts", *FORMATS),
    "backbone_weights": (*BASE, *ROOMS, "checkpoints"),
    "registry": (*BASE, *ROOMS, "checkpoints", "backbone_weights", *FORMATS),
    "model_card": (*BASE, *ROOMS),
    "pretrained": (*BASE, *ROOMS, "registry", "checkpoints", "model_card"),
    "segany": (*BASE, *ROOMS, *WEIGHTS, "rle_encoder"),
    "prompt_heads": (*BASE, *ROOMS, *WEIGHTS, "segany"),
    "segevery": (*BASE, *ROOMS, *WEIGHTS, *USE),
    **dict.fromkeys(RUN, (*BASE, *ROOMS, *WEIGHTS, *USE)),
    "reports": (*BASE, *ROOMS, *WEIGHTS, *USE, "evaluation"),
    "export": (*BASE, *ROOMS, *WEIGHTS, *USE),
    "app": (*BASE, *ROOMS, *WEIGHTS, *USE, "export"),
    "recipes": (*BASE, *ROOMS, *WEIGHTS, *USE, *RUN, *SHOW, "sam2_checkpoints"),
    "cli": (*BASE, *ROOMS, *WEIGHTS, *USE, *RUN, *SHOW, "recipes"),
    "__main__": ("cli",),
    "__init__": ("models", "pretrained", "registry", "segany", "segevery"),
}
OUTSIDE = {
    "pytorch_lightning": {"tasks", "callbacks", "evaluation", "recipes", "data/datamodule"},
    "lightning": set(),
    "hydra": {"recipes"},
    "omegaconf": {"recipes"},
    "wandb": {"recipes"},
    "gradio": {"app"},
    "ultralytics": {"models/object_detector", "models/ultralytics_import", "tasks/detect"},
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
            assert target == room or target in allowed, f"{place} imports {name}"
        elif top in OUTSIDE:
            assert {room, str(place)} & OUTSIDE[top], f"{place} imports {top}"


def test_ultralytics_comes_through_one_door() -> None:
    """It is imported by name when used, which the reading of imports does not see."""
    users = {str(p.relative_to(PACKAGE).with_suffix("")) for p in FILES if "ultralytics_module(" in p.read_text()}
    assert users <= OUTSIDE["ultralytics"]
    dynamic = {str(p.relative_to(PACKAGE).with_suffix("")) for p in FILES if "import_module" in p.read_text()}
    assert dynamic == {"__init__", "cli/main", "models/registration", "models/ultralytics_import", "recipes/schema"}


def test_nothing_lies_in_a_junk_drawer() -> None:
    names = {p.stem for p in PACKAGE.rglob("*")}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


@pytest.mark.slow
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


def test_the_wheel_has_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(listed) == found | {"mobilesamv2.conf", "mobilesamv2.expected"}


def test_only_the_two_programs_lie_at_the_top() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {"train.py", "evaluate.py"}
