"""Callbacks that a user adds to a run, and what a run starts from."""

import json
from pathlib import Path

import pytest
from support.runs import SMALL, train


def test_early_stopping_by_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopping = "{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/loss, min_delta: 100, patience: 1}"
    given = ["dataset.limit=6", "validation_images=2", "teacher.cache=off", "trainer.max_epochs=9"]
    train(*SMALL, *given, f"+trainer.callbacks=[{stopping}]", f"output_dir={tmp_path}")
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["result"]["steps"] == 4  # two epochs of two steps: no improvement by 100
    assert "model starts from random weights" in capsys.readouterr().out


def test_a_student_of_another_size_and_the_source_of_its_backbone_by_settings(tmp_path: Path) -> None:
    given = ["dataset.limit=6", "validation_images=2", "model.image_size=128", "trainer.max_epochs=1"]
    train(*SMALL, *given, f"output_dir={tmp_path}")
    identity = json.loads((tmp_path / "run.json").read_text())["identity"]
    assert identity["model.image_size"] == 128
    missing = ["model.backbone_checkpoint=none.pth", f"output_dir={tmp_path / 'other'}"]
    with pytest.raises(SystemExit, match=r"There is no weight file none\.pth"):
        train(*SMALL, *given, *missing)
