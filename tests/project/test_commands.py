"""The commands of README and docs: every one is accepted, and those that need no data run in miniature."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from support import ROOT
from support.runs import QUIET, composed, evaluate_here, train

from mobilesamv2.cli.benchmark import with_default_action
from mobilesamv2.cli.main import COMMANDS, build_parser, main
from mobilesamv2.cli.report import with_default_report
from mobilesamv2.model_zoo import WEIGHT_FILES
from mobilesamv2.recipes import schema
from mobilesamv2.recipes.checks import check_networks_are_read

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()
OTHERS = {"cd", "source", "rm", "npm", "git", "pip", "make", "export"}
PROGRAMS = {"train": "build", "evaluate": "evaluate"}
"""Hydra's programs, and the function of their recipes."""

schema.register()


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's blocks, with its variables filled in and without comments."""
    found, variables = [], {}
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for block in (body for language, body in blocks if language in ("", "bash") and not body.startswith("from ")):
        for line in block.replace("\\\n", " ").splitlines():
            if assigned := re.fullmatch(r'(\w+)="(.*?)"\s*(#.*)?', line):
                variables[f"${assigned[1]}"] = assigned[2]
                continue
            for name, value in variables.items():
                line = line.replace(name, value)
            found += [shlex.split(part, comments=True) for part in line.split(" && ") if part.strip()]
    return [words for words in found if words]


ALL = [(page, words) for page in PAGES for words in commands(page)]
HYDRA, OWN, REST = [], [], []
for page, words in ALL:
    while re.fullmatch(r"[A-Z_]+=\S+", words[0]):  # OMP_NUM_THREADS=2
        words = words[1:]
    if words[0] == "python" and words[1] in ("train.py", "evaluate.py"):
        words = ["mobilesamv2", words[1].removesuffix(".py"), *words[2:]]
    kind = REST if words[0] != "mobilesamv2" else HYDRA if words[1] in PROGRAMS else OWN
    kind.append((page.stem, words[1:] if kind is not REST else words))


def ids(value: object) -> str:
    return " ".join(value)[:90] if isinstance(value, list) else str(value)


@pytest.mark.parametrize(("page", "words"), HYDRA, ids=ids)
def test_a_training_or_an_evaluation_composes(page: str, words: list[str]) -> None:
    """Its keys and values are those of conf/ and of the classes that they are for; of a sweep, the first job's."""
    program, *arguments = words
    if "--config-dir" in arguments or "..." in arguments:
        return  # settings of one's own: test_contributing.py
    given = [each for each in arguments if each != "-m" and not each.startswith(("hydra/", "hydra."))]
    if "-m" in arguments:
        given = [f"{key}={value.split(',')[0]}" for key, _, value in (each.partition("=") for each in given)]
    cfg = composed(*given, primary=program)
    recipe = schema.find_recipe(cfg, PROGRAMS[program], program)
    schema.require_settings(cfg, [], recipe.OPTIONS)
    if program == "train":
        check_networks_are_read(given, recipe)


@pytest.mark.parametrize(("page", "words"), OWN, ids=ids)
def test_a_command_is_parsed(page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "max_prompts").mkdir(parents=True)  # a folder is the report's when it is there
    name, *arguments = words
    arguments = {"report": with_default_report, "benchmark": with_default_action}.get(name, list)(arguments)
    assert name in {command.name for command in COMMANDS}
    build_parser(name).parse_args([name, *arguments])


def test_the_other_commands_name_what_there_is() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for page, words in REST:
        if words[0] == "python":
            assert words[1] == "-m" or (ROOT / words[1]).is_file(), (page, words)
        elif words[0] == "make":
            assert words[1] in targets, (page, words)
        else:
            assert words[0] in OTHERS, (page, words)
        for named in re.findall(r"\[([\w,]+)\]", " ".join(words)) if words[0] == "pip" else ():
            assert set(named.split(",")) <= set(extras), (page, words)


def test_the_sizes_of_downloads_are_those_of_the_files() -> None:
    [size] = {int(number) for number in re.findall(r"(\d+) MB", README)}
    nbytes = WEIGHT_FILES["mobile_sam.pt"].nbytes
    assert nbytes is not None
    assert size == round(nbytes / 1e6)


def readme_command(start: str) -> list[str]:
    """The words of README's command after ``mobilesamv2``."""
    [words] = [words for page, words in (*HYDRA, *OWN) if page == "README" and " ".join(words).startswith(start)]
    return words


@pytest.mark.slow
def test_the_first_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand: masks of a photo, scenes, and masks of these, offline."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    main(readme_command("segment notebooks"))
    assert len(json.loads((tmp_path / "masks" / "coffee.json").read_text())["annotations"]) > 5
    main(readme_command("synthesize"))
    main(readme_command("segment scenes"))
    assert len(list((tmp_path / "scenes" / "images").glob("*.png"))) == 4
    assert len(list((tmp_path / "scene_masks").glob("?.png"))) == 4


@pytest.mark.slow
def test_the_offline_training_and_evaluation_run(tmp_path: Path) -> None:
    _, *training = readme_command("train experiment=distill_micro_conv_synthetic")
    small = ["dataset.limit=4", "validation_images=2", "trainer.max_epochs=1", f"output_dir={tmp_path / 'student'}"]
    train(*training, *small)
    assert list((tmp_path / "student").glob("*.safetensors"))
    _, *evaluation = readme_command("evaluate dataset=synthetic")
    small = ["dataset.limit=2", "prompt_sampler.points_per_side=4", f"output_dir={tmp_path / 'evaluation'}"]
    evaluate_here(*(each for each in evaluation if not each.startswith("dataset.limit")), *small, *QUIET)
    assert (tmp_path / "evaluation" / "results.json").is_file()
