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


MONITORS = (
    r"%s of trainer\.callbacks monitors val/los, which is not logged\. Did you mean monitor: val/loss\? Logged are .*"
)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "[{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/loss, patiense: 3}]",
            r"There is no trainer\.callbacks\[0\]\.patiense\. Did you mean trainer\.callbacks\[0\]\.patience\? "
            "EarlyStopping has monitor, min_delta, ",
        ),
        (
            "{_target_: pytorch_lightning.callbacks.EarlyStopping, patience: many, monitor: val/loss}",
            r"trainer\.callbacks\.patience must be int for EarlyStopping, got 'many'\.",
        ),
        (
            "[{_target_: pytorch_lightning.callbacks.EarlyStopping}]",
            r"trainer\.callbacks\[0\], \S+EarlyStopping: .* missing 1 required positional argument: 'monitor'",
        ),
        (
            "[{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/loss, mode: low}]",
            r"trainer\.callbacks\[0\], \S+EarlyStopping: `mode` can be min, max, got low",
        ),
        (
            "[{_target_: pathlib.PurePath}]",
            r"trainer\.callbacks\[0\] must be a callback of Lightning, .* pathlib\.PurePath",
        ),
        (
            "[{_target_: pytorch_lightning.callbacks.EarlyStoping}]",
            r"No module named 'pytorch_lightning\S+EarlyStoping'",
        ),
    ],
)
def test_a_mistake_in_a_callback_is_a_sentence(given: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"^error: (Error .*\\n.*)?{message}"):
        train(*SMALL, "dataset.limit=6", "validation_images=2", f"+trainer.callbacks={given}", f"output_dir={tmp_path}")
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("name", ["EarlyStopping", "ModelCheckpoint"])
def test_a_metric_that_no_task_logs_is_named_with_those_that_it_does(name: str, tmp_path: Path) -> None:
    given = ["dataset.limit=4", "dataset.size=[64,64]", "validation_images=2", "teacher.cache=off"]
    callback = f"{{_target_: pytorch_lightning.callbacks.{name}, monitor: val/los}}"
    with pytest.raises(SystemExit, match=MONITORS % name + "val/cosine, val/loss"):
        train(*SMALL, *given, f"+trainer.callbacks=[{callback}]", f"output_dir={tmp_path}")


def test_a_student_of_another_size_and_the_source_of_its_backbone_by_settings(tmp_path: Path) -> None:
    given = ["dataset.limit=6", "validation_images=2", "model.image_size=128", "trainer.max_epochs=1"]
    train(*SMALL, *given, f"output_dir={tmp_path}")
    identity = json.loads((tmp_path / "run.json").read_text())["identity"]
    assert identity["model.image_size"] == 128
    missing = ["model.backbone_checkpoint=none.pth", f"output_dir={tmp_path / 'other'}"]
    with pytest.raises(SystemExit, match=r"There is no weight file none\.pth"):
        train(*SMALL, *given, *missing)
