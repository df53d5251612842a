"""A job of a sweep that fails is named at the end, and the others run."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig
from support import ROOT

from mobilesamv2.recipes.build import output_folder
from mobilesamv2.recipes.sweeps import JobFailedError, JobFailure, run_job

PROGRAM = """
value: 1
objective: value
output_dir: sweep
hydra:
  output_subdir: null
  callbacks: {failed_jobs: {_target_: mobilesamv2.recipes.sweeps.NameFailedJobs}}
  sweep: {dir: "${output_dir}", subdir: "${hydra.job.num}"}
"""
SEARCH = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")


def run(cfg: DictConfig) -> float:
    """A run with the shape of the true ones: its folder records its value, and another one is refused."""
    folder = output_folder(cfg)
    record = folder / "run.json"
    if record.is_file() and json.loads(record.read_text()) != cfg.value:
        raise ValueError(f"{folder} holds another run")
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").unlink(missing_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text(f"[value={cfg.value}]")
    record.write_text(json.dumps(cfg.value))
    if cfg.value < 0:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return cfg.value


Sweep = Callable[..., int | str | None]


@pytest.fixture
def small_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Runs a sweep of ``run`` in this process, and returns the status that it ends with."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "train.yaml").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)

    def sweep(*overrides: str) -> int | str | None:
        program = hydra.main(config_path=str(tmp_path / "conf"), config_name="train", version_base="1.3")
        monkeypatch.setattr(sys, "argv", ["train", "-m", *overrides])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        try:
            program(lambda cfg: run_job(run, cfg))()
        except SystemExit as error:
            return error.code
        return 0

    return sweep


def files_of(folder: Path) -> dict[str, bytes]:
    """All but logs."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_sweep_that_is_refused_changes_nothing(
    small_sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small_sweep("value=1,2") == 0
    before = files_of(tmp_path / "sweep")
    assert {"0/run.json", "multirun.yaml"} <= before.keys()
    assert small_sweep("value=3,2") == 1
    assert "\n1 of 2 jobs failed:\n  sweep/0: " in capsys.readouterr().err
    assert files_of(tmp_path / "sweep") == before
    assert small_sweep("value=1,2,4") == 0
    assert "value=1,2,4" in (tmp_path / "sweep" / "multirun.yaml").read_text()


def test_a_sweep_that_can_not_be_composed_changes_nothing(small_sweep: Sweep, tmp_path: Path) -> None:
    assert small_sweep("value=1,2") == 0
    before = files_of(tmp_path / "sweep")
    with pytest.raises(ConfigCompositionException):
        small_sweep("value=1,2", "valeu=3")
    with pytest.raises(HydraException):
        small_sweep("value=interval(1,2)")
    assert files_of(tmp_path / "sweep") == before


def test_failures_of_other_sweeps_do_not_count(small_sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "sweep" / "other").mkdir(parents=True)
    (tmp_path / "sweep" / "other" / "error.txt").write_text("It failed.")
    assert small_sweep("value=1,2") == 0


def test_an_error_that_is_no_mistake_of_the_user_does_not_end_a_sweep(
    small_sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small_sweep("value=1,-1,2") == 1
    error = "RuntimeError: CUDA error: an illegal memory access was encountered (traceback in "
    printed = capsys.readouterr().err
    assert f"\n1 of 3 jobs failed:\n  sweep/1: {error}" in printed
    assert (tmp_path / "sweep" / "1" / "error.txt").read_text().startswith(error)
    [log] = (tmp_path / "sweep" / "1").glob("*.log")
    assert "Traceback (most recent call last)" in log.read_text()
    assert (tmp_path / "sweep" / "2" / "run.json").is_file()
    assert not (tmp_path / "sweep" / "0" / "error.txt").exists()


@pytest.mark.slow
def test_a_search_that_is_run_again_requires_a_seed(small_sweep: Sweep) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    given = [*SEARCH, "value=interval(1.0,2.0)"]
    assert small_sweep(*given, "output_dir=seedless") == 0
    assert "hydra.sweeper.sampler.seed is null. Name another output_dir" in str(
        small_sweep(*given, "output_dir=seedless")
    )
    given.append("hydra.sweeper.sampler.seed=0")
    assert small_sweep(*given) == 0
    assert small_sweep(*given) == 0
    assert "Optuna's grid is in random order" in str(small_sweep(*SEARCH, "hydra/sweeper/sampler=grid", "value=1,2"))
    assert "objective=val/loss" in str(small_sweep(*given, "objective=null"))


def test_why_a_job_failed_reaches_the_process_that_started_it() -> None:
    failure = JobFailure("sweep/1", "It diverged.")
    error = pickle.loads(pickle.dumps(JobFailedError(failure)))
    assert (error.failure, str(error)) == (failure, "It diverged.")


def test_a_search_without_a_result_ends_in_a_sentence(
    small_sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    given = [*SEARCH, "hydra.sweeper.sampler.seed=0", "value=interval(-2.0,-1.0)"]
    assert small_sweep(*given, "hydra.sweeper.max_failure_rate=1.0") == 1
    printed = capsys.readouterr().err
    assert "\n3 of 3 jobs failed:\n  sweep/0: RuntimeError: CUDA error" in printed
    assert printed.endswith("No trial has a value, so that the search has no result.\n")
    assert small_sweep(*given, "output_dir=strict") == 1
    printed = capsys.readouterr().err
    assert "\n1 of 1 jobs failed:\n  strict/0: " in printed
    assert printed.endswith("The search ended here, since hydra.sweeper.max_failure_rate is 0.0.\n")
    assert not (tmp_path / "sweep" / "optimization_results.yaml").exists()


def sweep(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    small = ["experiment=distill_tinyvit", "model=mini", "model@teacher=by_name", "teacher.name=sam_vit_mini"]
    small += [
        "dataset=synthetic",
        "dataset.limit=8",
        "dataset.size=[64,64]",
        "validation_images=2",
        "teacher.cache=off",
    ]
    small += ["batch_size=2", "num_workers=0", "trainer.accelerator=cpu", "trainer.max_epochs=1", "objective=val/loss"]
    command = [sys.executable, "train.py", "-m", *small, "+trainer.enable_progress_bar=false", f"output_dir={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
    return subprocess.run(
        [*command, *overrides], capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=300
    )


@pytest.mark.slow
def test_a_sweep_goes_on_past_a_job_that_fails_and_resumes(tmp_path: Path) -> None:
    first = sweep(tmp_path, "optimizer.lr=1e-3,1e30,2e-3", "task.warmup_images=0", "trainer.log_every_n_steps=1")
    assert first.returncode == 1
    assert "Traceback" not in first.stderr
    assert f"1 of 3 jobs failed:\n  {tmp_path / '1'}: The run diverged: the loss of step " in first.stderr
    assert [(tmp_path / str(i) / "mini.safetensors").is_file() for i in range(3)] == [True, False, True]
    learned = {json.loads((tmp_path / i / "run.json").read_text())["identity"]["optimizer.lr"] for i in ("0", "2")}
    assert learned == {1e-3, 2e-3}
    again = sweep(tmp_path, "optimizer.lr=1e-3,5e-4,2e-3", "task.warmup_images=0", "trainer.log_every_n_steps=1")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is done: val/loss is ") == 2
    before = {path: content for path, content in files_of(tmp_path).items() if path.startswith(("0", "multirun"))}
    other = sweep(tmp_path, "optimizer.lr=3e-2,5e-4", "task.warmup_images=0", "trainer.log_every_n_steps=1")
    assert other.returncode == 1
    assert f"{tmp_path / '0'}: {tmp_path / '0'} holds another run (optimizer.lr was 0.001 and is 0.03)" in other.stderr
    assert before.items() <= files_of(tmp_path).items()
    assert not (tmp_path / "0" / "error.txt").exists()


@pytest.mark.slow
def test_a_sweep_of_submitit_goes_on_past_a_job_that_is_killed(tmp_path: Path) -> None:
    """Such a job leaves no result and no reason, of which submitit makes an error of its own."""
    killed = ["hydra/launcher=submitit_local", "dataset._target_=support.killed_run.KilledRun", "dataset.seed=0,1,2"]
    done = sweep(tmp_path, *killed, "task.warmup_images=0")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "1 of 3 jobs failed:\n  job 1: Job " in done.stderr
    assert "; its output is " in done.stderr
    assert [(tmp_path / str(i) / "mini.safetensors").is_file() for i in range(3)] == [True, False, True]


@pytest.mark.slow
def test_a_search_counts_a_trial_that_fails(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    given = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "task.warmup_images=0"]
    given += ["hydra/sweeper/sampler=grid", "hydra.sweeper.max_failure_rate=1.0", "trainer.log_every_n_steps=1"]
    done = sweep(tmp_path, *given, "optimizer.lr=choice(1e-3,1e30,2e-3)")
    assert done.returncode == 1
    assert "1 of 3 jobs failed:" in done.stderr
    assert "best_value" in (tmp_path / "optimization_results.yaml").read_text()
