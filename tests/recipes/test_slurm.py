"""Jobs of a real Slurm of two nodes, started on loopback where slurm-wlm and munge are installed and we are root."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support import ROOT
from support.runs import evaluate_here

from mobilesamv2.cli.main import main as cli

pytestmark = pytest.mark.slow
PROGRAMS = ("slurmctld", "slurmd", "munged", "sinfo", "scontrol")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
NodeName=node[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[16818-16819] CPUs=1 State=UNKNOWN
PartitionName=test Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def wait_for(what: Callable[[], object], seconds: float, message: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, message()
        time.sleep(0.3)


def said(*command: str, env: dict[str, str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False).stdout


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands find a cluster of two nodes, both of them this machine."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"a Slurm of our own wants root, slurm-wlm and munge; missing: {', '.join(missing) or 'root'}")
    folder = tmp_path_factory.mktemp("slurm")
    host = socket.gethostname().split(".")[0]
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder))
    # the nodes' names are no host's, so that the first process can't be found by its node's
    env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}
    subprocess.run(["service", "munge", "start"], capture_output=True, check=False)
    commands = (["slurmctld", "-D"], ["slurmd", "-D", "-N", "node1"], ["slurmd", "-D", "-N", "node2"])
    daemons = [subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) for command in commands]
    try:
        logs = lambda: "\n".join(log.read_text()[-2000:] for log in folder.glob("*.log"))  # noqa: E731
        wait_for(lambda: said("sinfo", "-h", "-N", "-o", "%t", env=env).split() == ["idle"] * 2, 60, logs)
        yield env
    finally:
        subprocess.run(["scancel", "--user=root"], env=env, check=False)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=30)


def test_a_sweep_of_which_a_job_is_killed_and_queued_again(slurm: dict[str, str], tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    cli(["synthesize", str(scenes), "--scenes", "64", "--size", "64", "--workers", "0"])
    given = ["dataset=lvis", f"dataset.annotations={scenes / 'annotations.json'}", f"dataset.images={scenes}/images"]
    given += [
        "model=mini",
        "prompt_sampler=grid",
        "prompt_sampler.points_per_side=14,6,4",
        "prompt_sampler.stability_score_thresh=0",
    ]
    given += ["prompt_sampler.pred_iou_thresh=0", "trainer.accelerator=cpu", "num_workers=0", "seed=3"]
    cluster = ["gpus_per_node=null", "cpus_per_task=1", "timeout_min=30", "partition=test"]
    cluster = ["hydra/launcher=slurm", *(f"hydra.launcher.{option}" for option in cluster)]
    command = [sys.executable, str(ROOT / "evaluate.py"), "-m", *cluster, *given, "output_dir=sweep"]
    with (tmp_path / "log").open("w") as log:
        sweep = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=slurm, cwd=tmp_path)
    logs = lambda: (tmp_path / "log").read_text()[-3000:] + said("squeue", env=slurm)  # noqa: E731

    # the longest job is killed once half of its images are done and kept
    wait_for(lambda: list((tmp_path / "sweep" / "0" / "progress").glob("*.npz")), 400, logs)
    assert not (tmp_path / "sweep" / "0" / "results.json").exists()
    [job] = {path.name.split("_")[0] for path in (tmp_path / "sweep" / ".submitit").iterdir() if path.is_dir()}
    subprocess.run(["scontrol", "requeue", f"{job}_0"], env=slurm, check=True)
    assert sweep.wait(timeout=900) == 0, logs()

    printed = "".join(path.read_text() for path in (tmp_path / "sweep" / ".submitit").rglob("*_0_log.out"))
    assert "of 64 images were done before; resuming with" in printed
    results = [json.loads((tmp_path / "sweep" / name / "results.json").read_text()) for name in ("0", "1", "2")]
    assert [result["protocol"]["points_per_side"] for result in results] == [14, 6, 4]
    assert {result["protocol"]["num_images"] for result in results} == {64}
    cli(["report", str(tmp_path / "sweep"), "--baseline", "0"])

    # the same without a cluster or a kill
    alone = [override.replace("=14,6,4", "=14") for override in given]
    command = [sys.executable, str(ROOT / "evaluate.py"), *alone, "output_dir=alone"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    whole = json.loads((tmp_path / "alone" / "results.json").read_text())
    for key in ("metrics", "interval", "n_gt"):
        assert whole[key] == results[0][key]


def test_a_job_of_a_sweep_that_fails_is_named_at_the_end(slurm: dict[str, str], tmp_path: Path) -> None:
    given = ["experiment=distill_tinyvit", "model=mini", "model@teacher=by_name", "teacher.name=sam_vit_mini"]
    given += ["dataset=synthetic", "dataset.limit=8", "dataset.size=[64,64]", "validation_images=2", "batch_size=2"]
    given += ["teacher.cache=off", "num_workers=0", "trainer.accelerator=cpu", "trainer.max_epochs=1"]
    given += ["task.warmup_images=0", "trainer.log_every_n_steps=1", "optimizer.lr=1e-3,1e30,2e-3", "output_dir=sweep"]
    cluster = ["gpus_per_node=null", "cpus_per_task=1", "timeout_min=30", "partition=test"]
    cluster = ["-m", "hydra/launcher=slurm", *(f"hydra.launcher.{option}" for option in cluster)]
    command = [sys.executable, str(ROOT / "train.py"), *cluster, *given]
    done = subprocess.run(command, capture_output=True, text=True, env=slurm, cwd=tmp_path, timeout=900, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 of 3 jobs failed:\n  sweep/1: The run diverged: the loss of step " in done.stderr
    assert "Traceback" not in done.stderr
    assert "UncompletedJobError" not in done.stderr
    assert [(tmp_path / "sweep" / str(i) / "mini.safetensors").is_file() for i in range(3)] == [True, False, True]


def test_the_cells_of_a_benchmark_are_an_array_of_jobs(slurm: dict[str, str], tmp_path: Path) -> None:
    """Two models under two protocols, on both nodes; the table has the numbers that the same commands give alone."""
    scenes, folder = tmp_path / "scenes", tmp_path / "benchmark"
    cli(["synthesize", str(scenes), "--scenes", "4", "--size", "64", "--workers", "0"])
    given = ["dataset=lvis", f"dataset.annotations={scenes / 'annotations.json'}", f"dataset.images={scenes}/images"]
    given += ["trainer.accelerator=cpu", "num_workers=0"]
    models, protocols = ("mini", "mini_conv"), ("efficientsam3_box", "sam_points_random")
    cluster = [f"hydra.launcher.{option}" for option in ("gpus_per_node=null", "cpus_per_task=1", "partition=test")]
    command = [sys.executable, "-m", "mobilesamv2", "benchmark", "--models", ",".join(models)]
    command += ["--protocols", ",".join(protocols), *given, "-o", str(folder), "--launcher", "slurm", *cluster]
    env = slurm | {"PYTHONPATH": str(ROOT)}
    logs = list(Path(slurm["SLURM_CONF"]).parent.glob("slurmd-*.log"))
    before = [log.read_text().count("Launching batch job") for log in logs]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=900, check=False)
    assert done.returncode == 0, done.stderr + (folder / "logs" / "launcher.log").read_text()
    jobs = {path.name.partition("_")[::2] for path in (folder / ".submitit").glob("[0-9]*_*")}
    [array] = {job for job, _ in jobs}
    assert jobs == {(array, str(task)) for task in range(4)}
    assert all(log.read_text().count("Launching batch job") > number for log, number in zip(logs, before, strict=True))

    with (folder / "report" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == list(models)
    for row in rows:
        alone_in = tmp_path / row["model"]
        evaluate_here(f"model={row['model']}", "protocol=efficientsam3_box", *given, f"output_dir={alone_in}")
        alone = json.loads((alone_in / "results.json").read_text())
        cell = json.loads((folder / row["model"] / "efficientsam3_box" / "results.json").read_text())
        assert [cell[key] for key in ("metrics", "n_gt")] == [alone[key] for key in ("metrics", "n_gt")]
        assert row["efficientsam3_box: mIoU box"].startswith(f"{100 * alone['metrics']['mIoU box']:.1f} [")
        assert row["sam_points_random: mIoU@1"]
    assert f"| {models[1]} " in done.stdout


def test_a_job_of_two_nodes_trains_what_one_process_does(slurm: dict[str, str], tmp_path: Path) -> None:
    given = [
        "experiment=distill_tinyvit",
        "model=by_name",
        "model.name=sam_vit_mini",
        "model@teacher=mini",
        "dataset=synthetic",
        "batch_size=2",
    ]
    given += ["dataset.limit=10", "validation_images=2", "task.warmup_images=0", "num_workers=0", "teacher.cache=off"]
    given += ["trainer.max_epochs=1", "trainer.accelerator=cpu"]
    cluster = ["gpus_per_node=null", "cpus_per_task=1", "timeout_min=30", "partition=test", "nodes=2"]
    cluster = ["-m", "hydra/launcher=slurm", *(f"hydra.launcher.{option}" for option in cluster)]
    several = [*cluster, "trainer.num_nodes=2", "output_dir=two"]
    for more in (several, ["trainer.accumulate_grad_batches=2", "output_dir=one"]):
        command = [sys.executable, str(ROOT / "train.py"), *more, *given]
        done = subprocess.run(
            command, capture_output=True, text=True, env=slurm, cwd=tmp_path, timeout=900, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    printed = "".join(path.read_text() for path in (tmp_path / "two" / ".submitit").rglob("*_log.*"))
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in printed
    two, one = (load_file(tmp_path / name / "sam_vit_mini.safetensors") for name in ("two/0", "one"))
    assert max((two[key] - one[key]).abs().max().item() for key in one) < 1e-5
