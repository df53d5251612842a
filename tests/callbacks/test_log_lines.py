"""What a log file shows of a run."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.runs import composed
from support.training import distilling, trainer

from mobilesamv2.callbacks.log_lines import LogLines
from mobilesamv2.recipes.build import progress_bars


@pytest.mark.slow
@pytest.mark.parametrize("every_s", [0.0, 60.0])
def test_a_line_a_minute_and_a_line_a_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], every_s: float
) -> None:
    task, data = distilling()
    shown = {"enable_progress_bar": True, "enable_checkpointing": True, "max_epochs": 2}
    trainer(tmp_path, callbacks=[LogLines(every_s)], **shown).fit(task, datamodule=data)
    lines = capsys.readouterr().err.splitlines()
    validated = [line for line in lines if line.startswith("validated at step ")]
    assert len(validated) == 2
    assert re.fullmatch(
        r"validated at step \d+ of \d+, epoch 0, \d:\d\d:\d\d left: val/loss [\d.e-]+.*; checkpoints in .*",
        validated[0],
    )
    steps = [line for line in lines if re.match(r"step \d+ of \d+, epoch \d", line)]
    assert bool(steps) == (every_s == 0)
    assert not any("%" in line and "it/s" in line for line in lines)


def test_terminals_and_notebooks_have_bars_and_a_file_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = composed().trainer
    for is_terminal, name in ((True, "TQDMProgressBar"), (False, "LogLines")):
        monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda answer=is_terminal: answer))
        assert [type(bar).__name__ for bar in progress_bars(cfg)] == [name]
    for shell, name in ((SimpleNamespace(kernel=object()), "TQDMProgressBar"), (SimpleNamespace(), "LogLines")):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert [type(bar).__name__ for bar in progress_bars(cfg)] == [name]
