"""CONTRIBUTING.md: its examples are copied to where it says in a copy of the repository, and its commands run there."""

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
from PIL import Image
from support import ROOT

from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.masks import decode

GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)
LINES = [
    shlex.split(line, comments=True)
    for language, body in BLOCKS
    if not language
    for line in body.replace("\\\n", " ").splitlines()
    if line.strip()
]
COPIES = [(source, line[-1]) for line in LINES if line[0] == "cp" for source in line[1:-1]]
NEW = [f"{folder}{Path(source).name}" for source, folder in COPIES]
COMMANDS = [line for line in LINES if line[0] == "python"]
EXCERPTS = [(*body.split("\n", 1),) for language, body in BLOCKS if language in ("python", "yaml")]
DIFFS = [
    (path, lines)
    for language, body in BLOCKS
    if language == "diff"
    for path, lines in re.findall(r"^# (\S+)\n((?:[ +].*\n)+)", body, flags=re.MULTILINE)
]
QUIET = ["trainer.accelerator=cpu", "+trainer.enable_progress_bar=false", "num_workers=0"]
# Imports are most of a short run's time: one process runs all commands.
RUN = """
import json, runpy, sys
for program, *arguments in json.loads(sys.argv[1]):
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")
"""


def copy_examples(folder: Path) -> None:
    """Copy every example to where the guide's ``cp`` commands put it, and add the lines of its diffs."""
    for source, target in COPIES:
        assert (folder / target).is_dir(), f"the guide copies to {target}, which is not there"
        path = folder / target / Path(source).name
        assert not path.exists(), f"{path} is in the repository; the guide's example needs another name"
        shutil.copy(folder / source, path)
    for name, lines in DIFFS:
        path = folder / name
        path.write_text(with_additions(path.read_text(), lines))


def with_additions(text: str, diff: str) -> str:
    """Return a text with the + lines of a diff below the line that is shown before them."""
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
    """Write what the guide's data set reads."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i, (image, truth) in enumerate(SyntheticDataset(2, (64, 96))[k] for k in range(2)):
        numbers = np.zeros(truth.size, np.uint8)
        for number, rle in enumerate(truth.rles, start=1):
            numbers[decode(rle)] = number
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        Image.fromarray(numbers).save(folder / "masks" / f"{i}.png")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the repository with everything that the guide adds."""
    folder = tmp_path_factory.mktemp("contributing") / "repository"
    folder.mkdir()
    for name in ("conf", "examples", "mobilesamv2", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        shutil.copy(path, folder)
    write_mask_folder(folder / "data")
    copy_examples(folder)
    return folder


def run(repository: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=repository, env=environment
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def is_slow(command: list[str]) -> bool:
    """Return whether a command is a sweep, a training of an experiment, or has a larger backbone."""
    return "convnext" in str(command) or "experiment=" in str(command)


def run_commands(repository: Path, commands: list[list[str]]) -> list[Path]:
    """Run commands of the guide, each in a folder named after its number in the guide unless it names one."""
    lines, folders = [], []
    for command in commands:
        program, *given = command[1:]
        folder = f"outputs/{COMMANDS.index(command)}"
        named = "output_dir=" in str(given)
        lines.append([program, *given, *QUIET, *([] if named else [f"output_dir={folder}"])])
        folders.append(repository / folder)
    run(repository, "-c", RUN, json.dumps(lines))
    return folders


def test_every_example_is_copied_and_every_excerpt_is_of_its_file() -> None:
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "examples").rglob("*.*") if path.suffix != ".pyc"}
    assert {source for source, _ in COPIES} == files
    for head, body in EXCERPTS:
        rest = (ROOT / head.removeprefix("# ")).read_text()
        parts = re.split(r"^ *\.\.\.\n", body, flags=re.MULTILINE)
        for part in parts:
            before, found, rest = rest.partition(part)
            assert found, f"{head} does not have, in this order:\n{part}"
            assert not before or before.endswith("\n")


def test_the_examples_keep_the_rules(repository: Path) -> None:
    changed = [name for name in (*NEW, *dict.fromkeys(name for name, _ in DIFFS)) if name.endswith(".py")]
    run(repository, "-m", "ruff", "check", *changed)
    run(repository, "-m", "ruff", "format", "--check", *changed)


@pytest.mark.slow
def test_commands_of_the_guide_run(repository: Path) -> None:
    """An encoder, a sampler, a data set, a detector, a metric and a task, each for the first time."""
    *evaluations, training = run_commands(repository, [command for command in COMMANDS if not is_slow(command)])
    results = [json.loads((folder / "results.json").read_text()) for folder in evaluations]
    encoder, sampler, dataset, detector, metric = results
    assert encoder["run"]["model"]["encoder"] == "plain_conv"
    assert sampler["protocol"]["sampler"] == "RandomPoints"
    assert sampler["protocol"]["nms_iou"] == 0.9
    assert sampler["protocol"]["mean_prompts_decoded"] == 16
    assert dataset["protocol"]["annotations"] == "data/masks"
    assert dataset["n_gt"]["all"] > 0
    assert detector["run"]["detector"]["min_area"] == 16
    assert metric["protocol"]["metric"]["min_score"] == 0
    low, high = metric["interval"]["coverage"]
    assert 0 < low <= metric["metrics"]["coverage"] <= high <= 1
    assert metric["ms"]["total"] > 0
    assert (training / "mini.safetensors").is_file()


@pytest.mark.slow
def test_experiments_of_the_guide_run(repository: Path) -> None:
    timm, distilled, _ = run_commands(repository, [command for command in COMMANDS if is_slow(command)])
    assert json.loads((timm / "results.json").read_text())["run"]["model"]["encoder"] == "timm/convnext_atto"
    assert (distilled / "micro_conv.safetensors").is_file()
    assert len(list(repository.glob("outputs/random_points/*/results.json"))) == 2


@pytest.mark.slow
def test_the_tests_take_the_examples_in(repository: Path) -> None:
    """Each new file is the parameter of a test that was there, or a test itself."""
    new = [Path(name).stem for name in NEW]
    names = ("plain_sam", "conf", "architecture", "models")
    files = [str(path) for name in names for path in repository.glob(f"tests/**/test_{name}.py")]
    (zoo,) = repository.glob("tests/**/test_model_zoo.py")
    files.append(f"{zoo}::test_published_files_have_addresses_and_checksums")
    chosen = " or ".join([*new, "defaults", "model_zoo"])
    printed = run(repository, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-k", chosen, *files)
    for name in new:
        assert re.search(rf"^PASSED .*{name}", printed, flags=re.MULTILINE), name


@pytest.mark.slow
def test_the_examples_are_typed(repository: Path) -> None:
    names = [name for name in NEW if name.startswith("mobilesamv2") and name.endswith(".py")]
    run(repository, "-m", "pyright", "--pythonpath", sys.executable, *names)


def test_every_kind_of_the_table_has_its_example() -> None:
    anchors = set(re.findall(r"\(#([\w-]+)\)", GUIDE))
    titles = re.findall(r"^## (.+)$", GUIDE, flags=re.MULTILINE)
    assert anchors <= {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
