"""Cells of a benchmark as they run: one that fails leaves the others alone, and one that was stopped resumes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import ROOT
from support.runs import evaluate_here
from support.small_lvis import write_small_lvis

from mobilesamv2.cli.benchmark import with_default_action
from mobilesamv2.cli.main import main
from mobilesamv2.recipes import benchmark, schema
from mobilesamv2.recipes.benchmark_cells import Cell
from mobilesamv2.recipes.sweep_cells import read_cells

schema.register()

RESULT = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1])
(folder / ".hydra").mkdir(parents=True, exist_ok=True)
(folder / ".hydra" / "overrides.yaml").write_text("[]")
(folder / ".hydra" / "config.yaml").write_text("{}")
(folder / "results.json").write_text('{"run": {}, "protocol": {}}')
"""


def cell(folder: Path, name: str) -> Cell:
    return Cell(name, "p", folder / name / "p", ())


def start_instead(programs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have other programs take the place of the evaluations; return the models in the order of their start."""
    started: list[str] = []

    def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
        folder = arguments[-1].removeprefix("output_dir=")
        started.append(Path(folder).parent.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-S", "-c", programs[started[-1]], folder]
        with log.open("wb") as file:
            return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    monkeypatch.setattr(benchmark, "start", start)
    return started


def test_a_cell_that_fails_is_named_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = "import os; os.kill(os.getpid(), 9)"
    programs = {"good": RESULT, "bad": "raise SystemExit('error: There is no weight file x.pt.')", "killed": killed}
    started = start_instead(programs, monkeypatch)
    cells = [cell(tmp_path, name) for name in ("bad", "killed", "good")]
    failed = benchmark.run_benchmark(cells, tmp_path, workers=2)
    assert started == ["bad", "killed", "good"]
    log = tmp_path / "logs" / "bad" / "p.log"
    assert failed == {
        "bad p": f"There is no weight file x.pt. Its log is {log}.",
        "killed p": f"It was ended by SIGKILL; its log is {tmp_path / 'logs' / 'killed' / 'p.log'}.",
    }
    assert "good p: done" in capsys.readouterr().err
    assert "3 of 3 cells" not in benchmark.describe_cells(cells)
    assert benchmark.describe_cells(cells).splitlines()[:3] == [
        "bad     p  to do", "killed  p  to do", "good    p  done",
    ]  # fmt: skip
    programs |= {"bad": RESULT, "killed": RESULT}
    assert benchmark.run_benchmark(cells, tmp_path) == {}
    assert started[3:] == ["bad", "killed"]  # what is done is not run again


def test_configurations_of_ones_own_reach_the_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conf, given = tmp_path / "conf", []
    (conf / "protocol").mkdir(parents=True)
    (conf / "protocol" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /task: evaluate_clicks\n"
    )
    command = ["benchmark", "--models", "mini", "--protocols", "mine", "-o", str(tmp_path), "--config-dir", str(conf)]
    main([*command, "dataset=synthetic", "--dry-run"])
    assert f"mobilesamv2 evaluate --config-dir {conf} model=mini protocol=mine" in capsys.readouterr().out

    def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
        given.append(arguments)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        return subprocess.Popen(["true"])

    monkeypatch.setattr(benchmark, "start", start)
    for more in ([], ["--launcher", "submitit_local"]):
        with pytest.raises(SystemExit):  # nothing was evaluated
            main([*command, "dataset=synthetic", *more])
    assert [arguments[:3] for arguments in given] == [["evaluate", "--config-dir", str(conf)]] * 2
    with pytest.raises(SystemExit, match=r"There is no folder .*none of configurations"):
        main([*command[:-1], str(tmp_path / "none")])


def test_a_cell_without_a_result_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_instead({"silent": "pass", "late": "print('queued again')"}, monkeypatch)
    failed = benchmark.run_benchmark([cell(tmp_path, "silent"), cell(tmp_path, "late")], tmp_path)
    assert failed["silent p"].startswith("It ended with status 0. Its log is ")
    assert failed["late p"].startswith("queued again Its log is ")


def test_a_cell_that_a_launcher_was_refused_has_its_own_reason(tmp_path: Path) -> None:
    log = tmp_path / "launcher.log"
    lines = [f"  {tmp_path / name / 'p'}: {name} holds another run (seed was 0 and is 1)." for name in ("a", "b")]
    log.write_text("\n".join(["2 of 3 jobs failed:", *lines]) + "\n")
    assert benchmark._listed_reason(cell(tmp_path, "a"), 1, log) == "a holds another run (seed was 0 and is 1)."


def test_a_list_of_cells_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    path.write_text('[["a=1"], ["b=2", "c=3"]]')
    assert read_cells(path) == [["a=1"], ["b=2", "c=3"]]
    path.write_text('[["a=1", 2]]')
    with pytest.raises(ValueError, match="must be a list of lists of overrides"):
        read_cells(path)


def test_settings_may_stand_anywhere() -> None:
    given = ["dataset=coco", "--models", "a=1", "--dry-run", "b=2", "-o", "x", "hydra.launcher.partition=gpu"]
    assert with_default_action(given) == [
        "run", "--models", "a=1", "--dry-run", "-o", "x", "dataset=coco", "b=2", "hydra.launcher.partition=gpu",
    ]  # fmt: skip
    assert with_default_action(["--models=a", "b=2", "--workers=2", "c=3", "-o", "d=4"]) == [
        "run", "--models=a", "--workers=2", "-o", "d=4", "b=2", "c=3",
    ]  # fmt: skip
    assert with_default_action(["submit", "x=y", "--by", "me"]) == ["submit", "x=y", "--by", "me"]
    assert with_default_action([]) == []


def test_arguments_that_make_no_sense_are_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["benchmark", "--models", "mini", "--protocols", "sam_hq"]
    for more, sentence in (
        (["--workers", "0"], "--workers must be at least 1, got 0."),
        (["hydra.launcher.partition=gpu"], "hydra.launcher.partition=gpu is of a launcher: --launcher slurm."),
        (["mini_conv"], "Settings must be KEY=VALUE, got mini_conv"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            main([*given, *more])
    for action in ([], ["run"], ["submit"]):
        with pytest.raises(SystemExit, match="0"):
            main(["benchmark", *action, "--help"])
        assert "usage: mobilesamv2 benchmark" in capsys.readouterr().out


@pytest.mark.slow
def test_a_benchmark_that_was_killed_resumes_by_another_launcher(tmp_path: Path, photo: np.ndarray) -> None:
    """Two models; killed within the first cell, resumed as a batch of submitit's; the metrics are those of one run."""
    dataset = write_small_lvis(tmp_path / "data", photo)
    data = ["dataset=lvis", f"dataset.annotations={dataset / 'lvis.json'}", f"dataset.images={dataset / 'images'}"]
    settings = [*data, "trainer.accelerator=cpu", "+trainer.enable_progress_bar=false", "num_workers=0"]
    folder = tmp_path / "benchmark"
    arguments = ["--models", "mini,mini_conv", "--protocols", "efficientsam3_box", *settings, "-o", str(folder)]
    command = [sys.executable, "-m", "mobilesamv2", "benchmark", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not (folder / "mini" / "efficientsam3_box" / "results.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not (folder / "report").exists()
    resumed = subprocess.run(
        [*command, "--launcher", "submitit_local"], env=environment, capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr + (folder / "logs" / "launcher.log").read_text()
    assert [len(jobs) for jobs in [read_cells(folder / "cells.json")]] == [1]  # the other one was done
    assert "With random weights, so that their metrics say nothing: mini." in resumed.stdout
    for model in ("mini", "mini_conv"):
        evaluate_here(f"model={model}", "protocol=efficientsam3_box", *settings, f"output_dir={tmp_path / model}")
        alone = json.loads((tmp_path / model / "results.json").read_text())
        cell = json.loads((folder / model / "efficientsam3_box" / "results.json").read_text())
        assert [cell[key] for key in ("metrics", "interval", "n_gt")] == [
            alone[key] for key in ("metrics", "interval", "n_gt")
        ]
    with (folder / "report" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["mini", "mini_conv"]
    assert rows[1]["efficientsam3_box: mIoU box"].startswith(f"{100 * alone['metrics']['mIoU box']:.1f} [")
