"""A job of a sweep that fails is named at the end, and the others run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT


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
    other = sweep(tmp_path, "optimizer.lr=3e-2,5e-4", "task.warmup_images=0", "trainer.log_every_n_steps=1")
    assert other.returncode == 1
    assert f"{tmp_path / '0'}: {tmp_path / '0'} holds another run (optimizer.lr was 0.001 and is 0.03)" in other.stderr


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
