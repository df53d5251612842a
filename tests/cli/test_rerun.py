"""A run is made anew from its own record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from mobilesamv2.cli import rerun
from mobilesamv2.cli.main import main


def record(folder: Path, program: str = "train") -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "hydra.yaml").write_text(f"hydra: {{job: {{config_name: {program}}}}}")
    overrides = ["experiment=distill_tinyvit", "+trainer.x=1", "optimizer.lr=1e-3", "output_dir=there", "resume=null"]
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    (folder / "run.json").write_text(json.dumps({"environments": [{"versions": {"torch": "2.0"}, "commit": "abc"}]}))


def test_the_recorded_command_with_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "run")
    ran: list[list[str]] = []
    monkeypatch.setattr("mobilesamv2.cli.main._run_hydra", ran.append)
    main(["rerun", str(tmp_path / "run"), "optimizer.lr=2e-3", "output_dir=new"])
    assert ran == [["train", "experiment=distill_tinyvit", "+trainer.x=1", "optimizer.lr=2e-3", "output_dir=new"]]
    printed = capsys.readouterr().out
    assert "torch was 2.0 and is " in printed
    assert "commit was abc and is " in printed
    with pytest.raises(SystemExit, match=r"error: output_dir must be another folder than "):
        main(["rerun", str(tmp_path / "run"), f"output_dir={tmp_path / 'run'}"])


def test_folders_that_record_no_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: There is no .*hydra\.yaml, so that .* is no folder of a training"):
        main(["rerun", str(tmp_path)])
    record(tmp_path / "other", "mine")
    with pytest.raises(SystemExit, match=r"must name the program train or evaluate, got mine"):
        main(["rerun", str(tmp_path / "other")])
    (tmp_path / "other" / ".hydra" / "hydra.yaml").write_text("[")
    with pytest.raises(SystemExit, match=r"\.hydra/hydra\.yaml can't be read: "):
        main(["rerun", str(tmp_path / "other")])
    assert rerun.recorded_environment(tmp_path) == {}


@pytest.mark.slow
def test_an_evaluation_is_made_anew_with_the_same_result(tmp_path: Path) -> None:
    def mobilesamv2(*arguments: str) -> str:
        command = [sys.executable, "-m", "mobilesamv2", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    first, second = tmp_path / "first", tmp_path / "second"
    given = ["dataset=synthetic", "dataset.limit=2", "model=mini_conv", "prompt_sampler=grid_proposals"]
    given += ["prompt_sampler.points_per_side=4", "num_workers=0", f"output_dir={first}"]
    mobilesamv2("evaluate", *given)
    assert "dataset.limit=2" in mobilesamv2("rerun", str(first), f"output_dir={second}")
    results = [json.loads((folder / "results.json").read_text()) for folder in (first, second)]
    assert results[0]["metrics"] == results[1]["metrics"]
