"""The record of a run over all images."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.runs import evaluate_here

from mobilesamv2.evaluation import shards
from mobilesamv2.recipes import evaluation, records

GIVEN = (
    "task=evaluate_prompts", "task.kinds=[box]", "dataset=synthetic", "dataset.limit=2", "model=mini", "num_workers=0",
    "trainer.accelerator=cpu", "+trainer.enable_progress_bar=false",
)  # fmt: skip


def run_on(machine: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The record of an evaluation on a machine of that name, with packages of its own."""
    monkeypatch.setattr(evaluation, "device_name", lambda trainer: machine)
    monkeypatch.setattr(records, "version", lambda package: f"{package} of {machine}")
    evaluate_here(*GIVEN, f"output_dir={folder}")
    return json.loads((folder / "results.json").read_text())["run"]


def test_a_result_names_the_machine_that_evaluated_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that found all of them done, by a part that was killed before it wrote the result."""
    first = run_on("cpu", tmp_path, monkeypatch)
    (tmp_path / "results.json").unlink()
    second = run_on("Tesla", tmp_path, monkeypatch)
    assert (second["device"], second["earlier_environments"]) == ("cpu", [])
    for key in ("versions", "code_sha256", "peak_memory", "seed"):
        assert second[key] == first[key]
    assert "torch of cpu" in str(second["versions"])


def test_an_earlier_part_on_this_machine_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SECONDS_AT_RISK", 0.0)
    run_on("cpu", tmp_path, monkeypatch)
    next((tmp_path / "progress").glob("*.npz")).unlink()  # of one of two images
    assert run_on("Tesla", tmp_path, monkeypatch)["device"] == "Tesla"
    third = run_on("cpu", tmp_path, monkeypatch)
    assert third["device"] == "Tesla"
    assert [earlier["device"] for earlier in third["earlier_environments"]] == ["cpu"]
