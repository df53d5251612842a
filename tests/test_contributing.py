"""CONTRIBUTING.md: its files are written into a copy of the repository, and its commands are run there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from mobilesamv2.data.shapes import ShapesDataset
from mobilesamv2.masks import decode

GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)
FILES = [(language, *body.split("\n", 1)) for language, body in BLOCKS if language in ("python", "yaml", "diff")]
COMMANDS = [
    shlex.split(line)
    for language, body in BLOCKS
    if not language
    for line in body.replace("\\\n", " ").splitlines()
    if line.startswith(("python evaluate.py", "python train.py"))
]
QUIET = ["trainer.accelerator=cpu", "+trainer.enable_progress_bar=false", "num_workers=0"]
# Imports are most of a short run's time: one process runs all commands.
RUN = """
import json, runpy, sys
for program, *arguments in json.loads(sys.argv[1]):
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")
"""


def write_examples(folder: Path) -> list[str]:
    """Writes every file of the guide, below its first line that names it, and gives the names of the new ones."""
    new = []
    for language, head, body in FILES:
        name = head.removeprefix("# ")
        path = folder / name
        if language == "diff":
            path.write_text(with_additions(path.read_text(), body))
            continue
        assert not path.exists(), f"{name} is in the repository; the guide's example needs another name"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
        new.append(name)
    return new


def with_additions(text: str, diff: str) -> str:
    """A text with the lines of a diff's + below the line that is shown before them."""
    anchor = ""
    for line in diff.splitlines():
        kind, content = line[:1], f"{line[1:]}\n"
        if kind == "+":
            assert text.count(anchor) == 1, f"the guide shows {anchor.strip()}, which is not there"
            text = text.replace(anchor, anchor + content)
            content = anchor + content
        anchor = content
    return text


def write_mask_folder(folder: Path) -> None:
    """What the guide's data set reads."""
    for name in ("photos", "masks"):
        (folder / name).mkdir(parents=True)
    for i, (image, truth) in enumerate(ShapesDataset(2, (64, 96))[k] for k in range(2)):
        numbers = np.zeros(truth.size, np.uint8)
        for number, rle in enumerate(truth.rles, start=1):
            numbers[decode(rle)] = number
        Image.fromarray(image).save(folder / "photos" / f"{i}.png")
        Image.fromarray(numbers).save(folder / "masks" / f"{i}.png")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with everything that the guide adds."""
    folder = tmp_path_factory.mktemp("contributing") / "repository"
    folder.mkdir()
    for name in ("conf", "mobilesamv2", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        shutil.copy(path, folder)
    write_mask_folder(folder / "data")
    (folder / "new.txt").write_text("\n".join(write_examples(folder)))
    return folder


def run(repository: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=repository, env=environment
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def is_slow(command: list[str]) -> bool:
    """A sweep, a training, or a larger backbone."""
    return "convnext" in str(command) or "experiment=" in str(command)


def run_commands(repository: Path, commands: list[list[str]]) -> None:
    """Runs commands of the guide, each with a folder that has its number in the guide, unless it names one."""
    lines = []
    for command in commands:
        program, *given = command[1:]
        folder = f"output_dir=outputs/{COMMANDS.index(command)}"
        lines.append([program, *given, *QUIET, *([] if "output_dir=" in str(given) else [folder])])
    run(repository, "-c", RUN, json.dumps(lines))


def test_the_examples_keep_the_rules(repository: Path) -> None:
    new = [name for name in (repository / "new.txt").read_text().splitlines() if name.endswith(".py")]
    changed = [head.removeprefix("# ") for language, head, _ in FILES if language == "diff"]
    run(repository, "-m", "ruff", "check", *new, *changed)
    run(repository, "-m", "ruff", "format", "--check", *new, *changed)


def test_evaluations_of_the_guide_run(repository: Path) -> None:
    """An encoder, a sampler, a data set, a detector and a metric, each for the first time."""
    commands = [command for command in COMMANDS if not is_slow(command)]
    run_commands(repository, commands)
    folders = [repository / "outputs" / str(COMMANDS.index(command)) for command in commands]
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    encoder, sampler, dataset, detector, metric = results
    assert encoder["run"]["model"]["encoder"] == "plain_conv"
    assert sampler["protocol"]["sampler"] == "RandomPoints"
    assert sampler["protocol"]["mean_prompts_decoded"] == 16
    assert dataset["protocol"]["annotations"] == "data/masks"
    assert dataset["n_gt"]["all"] > 0
    assert detector["run"]["detector"]["smallest"] == 16
    assert metric["protocol"]["metric"]["predicted_iou"] == 0
    low, high = metric["interval"]["coverage"]
    assert 0 < low <= metric["metrics"]["coverage"] <= high <= 1
    assert metric["ms"]["total"] > 0


@pytest.mark.slow
def test_experiments_of_the_guide_run(repository: Path) -> None:
    commands = [command for command in COMMANDS if is_slow(command)]
    assert len(commands) == 3
    run_commands(repository, commands)
    assert len(list(repository.glob("outputs/*/plain_sam.safetensors"))) == 1
    assert len(list(repository.glob("outputs/random_points/*/results.json"))) == 2


@pytest.mark.slow
def test_the_tests_take_the_examples_in(repository: Path) -> None:
    """Each new file is the parameter of a test that was there, or a test itself."""
    new = [Path(name).stem for name in (repository / "new.txt").read_text().splitlines()]
    files = [f"tests/test_{name}.py" for name in ("plain_sam", "conf", "architecture", "models")]
    files.append("tests/test_downloads.py::test_released_files_have_addresses_and_checksums")
    chosen = " or ".join([*new, "defaults", "downloads"])
    printed = run(repository, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-k", chosen, *files)
    for name in new:
        assert re.search(rf"^PASSED .*{name}", printed, flags=re.MULTILINE), name


@pytest.mark.slow
def test_the_examples_are_typed(repository: Path) -> None:
    names = [name for name in (repository / "new.txt").read_text().splitlines() if name.startswith("mobilesamv2")]
    run(repository, "-m", "pyright", "--pythonpath", sys.executable, *names)


def test_every_kind_of_the_table_has_its_example() -> None:
    anchors = set(re.findall(r"\(#([\w-]+)\)", GUIDE))
    titles = re.findall(r"^## (.+)$", GUIDE, flags=re.MULTILINE)
    assert anchors <= {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
