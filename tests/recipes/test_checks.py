"""What is checked before a run begins."""

import re
from pathlib import Path

import pytest
from support.runs import SMALL, evaluate_here, train

from mobilesamv2.recipes.checks import require_folder_of

EVALUATING = ["dataset=synthetic", "dataset.limit=2", "model=mini", "task=evaluate_prompts"]


def write(path: Path, text: str = "{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("record", ["run.json", ".hydra/hydra.yaml"])
def test_an_evaluation_in_a_trainings_folder_is_refused_and_changes_nothing(tmp_path: Path, record: str) -> None:
    write(tmp_path / record, "hydra: {job: {config_name: train}}")
    before = contents(tmp_path)
    masks = tmp_path.parent / "masks.json"
    write(masks, "[]")
    for more in ([], ["task=evaluate_proposals", f"predictions={masks}"]):
        said = f"{tmp_path} holds a training, and an evaluation would replace .*: name another output_dir, .*evaluate"
        with pytest.raises(SystemExit, match=f"error: {said}"):
            evaluate_here(*EVALUATING, *more, f"output_dir={tmp_path}")
        assert contents(tmp_path) == before


@pytest.mark.parametrize("record", ["results.json", "progress/identity.json", ".hydra/hydra.yaml"])
def test_a_training_in_an_evaluations_folder_is_refused_and_changes_nothing(tmp_path: Path, record: str) -> None:
    write(tmp_path / record, "hydra: {job: {config_name: evaluate}}")
    before = contents(tmp_path)
    with pytest.raises(
        SystemExit, match=f"error: {re.escape(str(tmp_path))} holds an evaluation, and a training would"
    ):
        train(*SMALL, "dataset.limit=8", f"output_dir={tmp_path}")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "record",
    ["[", "- 1", "hydra: 1", "", "hydra: {job: {config_name: mine}}", "hydra: {job: {config_name: [1]}}", "\0"],
)
def test_a_folder_of_ones_own_or_with_a_damaged_record_is_none_of_a_run(tmp_path: Path, record: str) -> None:
    write(tmp_path / ".hydra" / "hydra.yaml", record)
    for program in ("train", "evaluate"):
        require_folder_of(program, tmp_path)
        require_folder_of(program, tmp_path / "new")


def test_a_training_whose_record_an_evaluation_replaced_is_still_one(tmp_path: Path) -> None:
    """As earlier versions let happen; it can still resume."""
    write(tmp_path / "run.json")
    write(tmp_path / ".hydra" / "hydra.yaml", "hydra: {job: {config_name: evaluate}}")
    require_folder_of("train", tmp_path)
    with pytest.raises(ValueError, match="holds a training"):
        require_folder_of("evaluate", tmp_path)
