"""metrics.csv: what a kill, a new column and a resumed run leave of it."""

from pathlib import Path
from typing import Any

import pytest

from mobilesamv2.callbacks.csv_log import ResumableCSVLogger, trim_metrics


def logger(folder: Path) -> ResumableCSVLogger:
    return ResumableCSVLogger(str(folder), name="", version="")


def log(folder: Path, step: int, **values: Any) -> None:
    """What a process of its own logs, with no word at its end."""
    written = logger(folder)
    written.log_metrics(values, step)
    written.save()


def test_a_log_loses_what_a_run_logs_again_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    trim_metrics(path, 3)
    assert not path.exists()
    path.write_text("epoch,step,train/loss\n0,0,1.5\n0,2,1.25\n0,3,1.0\n0,4,")
    trim_metrics(path, 3)  # the next step is number 3
    assert path.read_text() == "epoch,step,train/loss\n0,0,1.5\n0,2,1.25\n"
    path.write_text("epoch,step,train/loss\n0,0,1.5\n0,")
    trim_metrics(path, 3)
    assert path.read_text() == "epoch,step,train/loss\n0,0,1.5\n"
    path.write_text("")
    trim_metrics(path, 3)


def test_a_run_that_validates_first_logs_the_validation_of_its_last_step_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,val/loss\n0,3,\n0,,9\n1,2,\n1,,8\n2,1,\n")
    trim_metrics(path, 2, validates_first=True)
    assert path.read_text() == "step,train/loss,val/loss\n0,3,\n0,,9\n1,2,\n"
    trim_metrics(path, 2)
    assert path.read_text() == "step,train/loss,val/loss\n0,3,\n0,,9\n1,2,\n"


def test_a_row_that_repeats_the_one_before_is_left_out(tmp_path: Path) -> None:
    written = logger(tmp_path)
    for step, loss in ((0, 1.0), (0, 1.0), (1, 1.0), (1, 2.0), (1, 2.0)):
        written.log_metrics({"loss": loss}, step)
        written.save()
    assert (tmp_path / "metrics.csv").read_text() == "loss,step\n1.0,0\n1.0,1\n2.0,1\n"


def test_a_second_process_and_new_columns_keep_the_rows(tmp_path: Path) -> None:
    log(tmp_path, 0, b=1.0)
    log(tmp_path, 1, b=2.0)
    log(tmp_path, 1, a=3.0)
    assert (tmp_path / "metrics.csv").read_text() == "a,b,step\n,1.0,0\n,2.0,1\n3.0,,1\n"
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4.0,")  # killed amid a line
    log(tmp_path, 2, a=5.0)
    assert (tmp_path / "metrics.csv").read_text() == "a,b,step\n,1.0,0\n,2.0,1\n3.0,,1\n5.0,,2\n"


def test_a_kill_amid_a_new_column_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(tmp_path, 0, b=1.0)

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        log(tmp_path, 1, a=3.0)
    assert (tmp_path / "metrics.csv").read_text() == "b,step\n1.0,0\n"


def test_a_logger_that_has_logged_nothing_touches_no_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("b,step\n1.0,0\n")
    assert logger(tmp_path).experiment.metrics_keys == ["b", "step"]
    assert (tmp_path / "metrics.csv").read_text() == "b,step\n1.0,0\n"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
