"""A run from its first step to its end: schedule, averages, signals, log, and going on."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from safetensors.torch import load_file
from support import ROOT
from support.runs import SMALL, train
from support.training import StopsAt, distilling, trainer
from torch import nn

from mobilesamv2 import build_sam
from mobilesamv2.callbacks import checkpoint as checkpoints
from mobilesamv2.callbacks import requeue
from mobilesamv2.callbacks.checkpoint import EMA
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.pixels import PixelCache
from mobilesamv2.data.samples import EncoderSamples
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.writers import write_sa1b_tar
from mobilesamv2.tasks.schedule import decay_groups


class Rates(pl.Callback):
    """The learning rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, *args: object) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize(("accumulated", "warmup_steps"), [pytest.param(1, 4, marks=pytest.mark.slow), (2, 2)])
def test_the_learning_rate_rises_over_images(accumulated: int, warmup_steps: int, tmp_path: Path) -> None:
    task, data = distilling()  # batches of 2
    task._warmup_images = 8
    rates = Rates()
    trainer(tmp_path, max_epochs=4, accumulate_grad_batches=accumulated, callbacks=[rates]).fit(task, datamodule=data)
    peak = 2e-3
    rising = [peak * (i + 1) / warmup_steps for i in range(warmup_steps)]
    assert rates.rates[:warmup_steps] == pytest.approx(rising)
    falling = rates.rates[warmup_steps:]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == pytest.approx(peak)
    assert 0 < falling[-1] < peak / 20


def test_biases_norms_and_tables_of_positions_do_not_decay() -> None:
    sam = build_sam("mini")
    names = {p: name for name, p in sam.image_encoder.named_parameters()}
    decayed, others = ({names[p] for p in group["params"]} for group in decay_groups(sam.image_encoder))
    assert decayed | others == set(names.values())
    assert all(name.endswith("weight") for name in decayed)
    assert not any("norm" in name or ".bn." in name for name in decayed)
    assert any(name.endswith("attention_biases") for name in others)
    assert [group.get("weight_decay") for group in decay_groups(sam.image_encoder)] == [None, 0.0]
    optimizer = partial(torch.optim.AdamW, lr=1.0, weight_decay=0.1)(decay_groups(sam.image_encoder))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    with pytest.raises(ValueError, match="At least one parameter must be trainable"):
        decay_groups(nn.Linear(1, 1).requires_grad_(False))


@pytest.mark.slow
def test_an_averaged_run_resumes_exactly_and_averages_the_student_alone(tmp_path: Path) -> None:
    def fit(folder: Path, stop: int | None = None, resume: bool = False) -> pl.LightningModule:
        task, data = distilling()
        keeps = pl.callbacks.ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)
        average = EMA(decay=0.5)
        callbacks = [keeps, average, *([StopsAt(stop, at_the_end=False)] if stop else [])]
        runner = trainer(tmp_path, callbacks=callbacks, max_epochs=2, enable_checkpointing=True)
        path = folder / "last.ckpt" if resume else None
        with pytest.raises(RuntimeError, match="stopped") if stop else nullcontext():
            runner.fit(task, datamodule=data, ckpt_path=path, weights_only=True)
        copied = average._average_model.module
        assert copied.teacher is task.teacher
        assert {name.split(".")[0] for name in copied.state_dict()} == {"student"}
        return task

    whole = fit(tmp_path / "whole").state_dict()
    fit(tmp_path / "parts", stop=7)
    resumed = fit(tmp_path / "parts", resume=True).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    task, data = distilling()
    trainer(tmp_path, max_epochs=2).fit(task, datamodule=data)
    name = "student.image_encoder.neck.0.weight"
    assert not torch.equal(task.state_dict()[name], whole[name])


def test_the_decay_of_the_average_rises(tmp_path: Path) -> None:
    """The average of a weight that is 1, 2, 3, 4 after the steps, with decays computed by hand."""

    class Ramp(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def training_step(self, batch: object, batch_idx: int) -> torch.Tensor:
            return -self.weight

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    for decay, second, third in ((0.9, 3 / 12, 4 / 13), (0.2, 0.2, 0.2)):
        task = Ramp()
        trainer(tmp_path, max_steps=4, callbacks=[EMA(decay)]).fit(task, [[0]] * 4)
        average = 2 / 11 * 1 + 9 / 11 * 2
        average = second * average + (1 - second) * 3
        assert task.weight.item() == pytest.approx(third * average + (1 - third) * 4)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_saves_requeues_and_the_same_command_goes_on(number: int, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked\necho JobState=RUNNING\n")
    scontrol.chmod(0o755)
    job = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "9"}
    environ = os.environ | job | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    environ |= {"PYTHONPATH": str(ROOT / "tests")}
    given = [*SMALL, "dataset.limit=18", "validation_images=2", "teacher.cache=off", "batch_size=2", "num_workers=0"]
    given += ["trainer.accelerator=cpu", "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "ema=0.9"]
    given += ["+trainer.callbacks=[{_target_: support.telling.TellsSteps}]"]

    def command(name: str) -> list[str]:
        return [sys.executable, str(ROOT / "train.py"), *given, f"output_dir={tmp_path / name}"]

    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(command("stopped"), stdout=log, stderr=log, env=environ)
        for _ in range(1200):
            if "a step is done" in (tmp_path / "log").read_text() or run.poll() is not None:
                break
            time.sleep(0.1)
        run.send_signal(number)
        run.wait(timeout=120)
    text = (tmp_path / "log").read_text()
    assert run.returncode == 128 + number, text
    assert f"{signal.Signals(number).name}: saved {tmp_path / 'stopped' / 'checkpoints' / 'stopped.ckpt'}" in text
    assert (tmp_path / "asked").read_text() == "show job 7_2\nrequeue 7_2\n"
    steps = torch.load(tmp_path / "stopped" / "checkpoints" / "stopped.ckpt", weights_only=True)["global_step"]
    assert 0 < steps < 16
    for name in ("stopped", "whole"):
        done = subprocess.run(command(name), capture_output=True, text=True, check=False, timeout=300, env=environ)
        assert done.returncode == 0, done.stderr
        assert ("resuming from" in done.stdout) == (name == "stopped")
    stopped, whole = (load_file(tmp_path / name / "mini.safetensors") for name in ("stopped", "whole"))
    assert all(torch.equal(stopped[key], whole[key]) for key in whole)


class Told(pl.Callback):
    """Sends this process a signal amid a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_before_optimizer_step(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def test_a_signal_to_all_processes_of_a_job_leaves_the_workers_to_the_first(tmp_path: Path) -> None:
    class ToldAll(pl.Callback):
        def on_before_optimizer_step(self, runner: pl.Trainer, *args: object) -> None:
            if runner.global_step == 1:
                for process in [*multiprocessing.active_children(), multiprocessing.current_process()]:
                    os.kill(process.pid or 0, signal.SIGTERM)

    task, _ = distilling()
    data = TrainingData(EncoderSamples(SyntheticDataset(16, (64, 96)), 256), 2, num_workers=2)
    callbacks = [requeue.SaveAndRequeue(tmp_path / "stopped.ckpt", requeue=False), ToldAll()]
    with pytest.raises(SystemExit) as stopped:
        trainer(tmp_path, callbacks=callbacks, max_epochs=2, plugins=[LightningEnvironment()]).fit(
            task, datamodule=data
        )
    assert stopped.value.code == 128 + signal.SIGTERM
    assert torch.load(tmp_path / "stopped.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("moment", ["before", "amid", "after"])
def test_a_signal_before_the_first_step_ends_the_run_with_its_status(
    moment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before the validation that precedes it, amid that, or just after it: the status is no success."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(requeue, "_scontrol", lambda *args: asked.append(args) or "JobState=RUNNING")
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    told: list[str] = []

    class TellsAt(pl.Callback):
        def on_sanity_check_start(self, *args: object) -> None:
            self._tell("before")

        def on_validation_batch_start(self, *args: object) -> None:
            self._tell("amid")

        def on_train_start(self, *args: object) -> None:
            self._tell("after")

        def _tell(self, here: str) -> None:
            if here == moment and not told:
                told.append(here)
                os.kill(os.getpid(), signal.SIGTERM)

    earlier = signal.getsignal(signal.SIGTERM)
    task, data = distilling()
    callbacks = [TellsAt(), requeue.SaveAndRequeue(tmp_path / "stopped.ckpt")]
    with pytest.raises(SystemExit) as stopped:
        trainer(tmp_path, callbacks=callbacks, max_epochs=2, plugins=[LightningEnvironment()]).fit(
            task, datamodule=data
        )
    assert stopped.value.code == 128 + signal.SIGTERM
    assert ("requeue", "9") in asked
    assert signal.getsignal(signal.SIGTERM) == earlier
    has_step = moment == "after"
    assert ("SIGTERM: no step is done yet" in capsys.readouterr().out) != has_step
    assert (tmp_path / "stopped.ckpt").exists() == has_step


@pytest.mark.parametrize(
    ("number", "state", "requeued"),
    [
        (signal.SIGUSR2, "JobState=RUNNING Reason=None RunTime=00:03:00 TimeLimit=1-00:00:00", True),
        (signal.SIGTERM, "JobState=COMPLETING RunTime=00:03:00 TimeLimit=00:03:00", True),
        (signal.SIGTERM, "JobState=COMPLETING RunTime=00:03:00 TimeLimit=1-00:00:00", False),
        pytest.param(signal.SIGTERM, "JobState=COMPLETING TimeLimit=UNLIMITED", False, marks=pytest.mark.slow),
        (signal.SIGINT, "JobState=RUNNING", False),
    ],
)
def test_a_stopped_run_is_saved_after_the_step_and_queued_again_if_it_should(
    number: int, state: str, requeued: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(requeue, "_scontrol", lambda *args: asked.append(args) or state)
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    earlier = signal.getsignal(signal.SIGTERM)
    task, data = distilling()
    callbacks = [requeue.SaveAndRequeue(tmp_path / "stopped.ckpt"), Told(2, number)]
    settings = {"max_epochs": 2, "accumulate_grad_batches": 2, "plugins": [LightningEnvironment()]}
    runner = trainer(tmp_path, callbacks=callbacks, **settings)
    with pytest.raises(SystemExit) as stopped:
        runner.fit(task, datamodule=data)
    assert stopped.value.code == 128 + number
    assert torch.load(tmp_path / "stopped.ckpt", weights_only=True)["global_step"] == 3
    assert (("requeue", "9") in asked) == requeued
    assert signal.getsignal(signal.SIGTERM) == earlier


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = checkpoints.AtomicCheckpointIO()
    files.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")

    def breaks(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", breaks)
    with pytest.raises(OSError, match="No space left"):
        files.save_checkpoint({"step": 2}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_a_finished_run_is_the_same_when_it_is_run_again(tmp_path: Path) -> None:
    given = [*SMALL, "dataset.limit=8", "validation_images=2", "teacher.cache=off", f"output_dir={tmp_path}"]
    given += ["ema=0.5", "trainer.max_epochs=1", "trainer.log_every_n_steps=1"]
    train(*given)
    first = load_file(tmp_path / "mini.safetensors"), (tmp_path / "metrics.csv").read_text()
    (tmp_path / "mini.safetensors").unlink()  # otherwise it returns at once
    train(*given)
    assert all(torch.equal(value, first[0][key]) for key, value in load_file(tmp_path / "mini.safetensors").items())
    assert (tmp_path / "metrics.csv").read_text() == first[1]
    train(*given[:-2], "trainer.max_epochs=2", "trainer.log_every_n_steps=1")
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(6))
    train(*given, "resume=null")
    assert (tmp_path / "metrics.csv").read_text().count("\n") == first[1].count("\n")
    assert len(list(tmp_path.glob("earlier.*/checkpoints"))) == len(list(tmp_path.glob("earlier.*/metrics.csv"))) == 1


@pytest.mark.slow
def test_a_run_of_no_step_writes_the_weights_that_it_starts_from(tmp_path: Path) -> None:
    given = [*SMALL, "dataset.limit=8", "validation_images=2", "teacher.cache=off"]
    found = []
    for length in ("max_steps", "max_epochs"):
        train(*given, f"trainer.{length}=0", f"output_dir={tmp_path / length}")
        assert json.loads((tmp_path / length / "run.json").read_text())["result"]["steps"] == 0
        found.append(load_file(tmp_path / length / "mini.safetensors"))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_the_log_says_how_fast_it_was(tmp_path: Path) -> None:
    given = [*SMALL, "dataset.limit=10", "validation_images=2", "teacher.cache=off", "trainer.max_epochs=1"]
    train(*given, "trainer.log_every_n_steps=2", "logger=tensorboard", f"output_dir={tmp_path}")
    rows = [row for row in csv.DictReader((tmp_path / "metrics.csv").open()) if row["train/images_per_second"]]
    assert len(rows) == 2
    for row in rows:
        assert float(row["train/loss"]) > 0
        assert -1 <= float(row["train/cosine"]) <= 1
        assert float(row["train/images_per_second"]) > 0
        assert 0 <= float(row["train/data_wait"]) <= 1
        assert 0 < float(row["train/learning_rate"]) <= 1e-3
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_many_jobs_share_the_teachers_pass_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = SyntheticDataset(9, (60, 90))
    for tar, part in (("a.tar", range(5)), ("b.tar", range(5, 9))):
        write_sa1b_tar((scenes[i] for i in part), tmp_path / tar)
    folder = f"cache.folder={tmp_path / 'cache'}"
    teacher = ["model@teacher=by_name", "teacher.name=sam_vit_mini", folder, f"output_dir={tmp_path / 'jobs'}"]
    passes = ["experiment=cache_teacher", *teacher, "task.largest_batch=4"]
    train(*passes, f"dataset.tars={tmp_path / 'a.tar'}")
    assert "5 images encoded" in capsys.readouterr().out
    both = [*passes, f"dataset.tars={tmp_path}", "cache.pixels=raw", "task.parts=2"]
    for run, encoded in enumerate((2, 2, 0)):  # of images 6, 8 and 5, 7, which others have not cached
        train(*both, f"task.part={run % 2}")
        assert f"{encoded} images encoded" in (printed := capsys.readouterr().out)
        assert f"  pixels of {(5, 9, 9)[run]} images, in {tmp_path / 'cache' / 'pixels_256'}" in printed
        assert ("100% of SA-1B: " in printed) == bool(encoded)
    with pytest.raises(SystemExit, match=r"task\.part must be below task\.parts=2, the number of jobs, got 2\."):
        train(*both, "task.part=2")
    pixels = PixelCache(tmp_path / "cache" / "pixels_256", 256, "raw")
    assert len(pixels) == 9  # those of the images whose embeddings were cached before, too
    next(pixels.folder.glob("*.safetensors")).unlink()
    given = ["experiment=distill_tinyvit", "model=mini", f"dataset.tars={tmp_path}", "validation_images=1", *teacher]
    train(*given, "trainer.max_epochs=1", "cache.pixels=raw", "batch_size=4")
    assert len(PixelCache(pixels.folder, 256, "raw")) == 9  # what was missing is written, short shards too
    rows = list(csv.DictReader((tmp_path / "jobs" / "metrics.csv").open()))
    assert [float(row["train/teacher_images"]) for row in rows if row["train/teacher_images"]] == [0.0]


def test_a_pass_of_the_teacher_takes_any_number_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["task=cache_teacher", "~model", "model@teacher=by_name", "teacher.name=sam_vit_mini"]
    given += ["dataset=synthetic", "dataset.limit=1", f"cache.folder={tmp_path / 'cache'}", "task.largest_batch=2"]
    train(*given, f"output_dir={tmp_path / 'run'}")  # fewer than batch_size and validation_images
    assert "1 images encoded" in capsys.readouterr().out


@pytest.mark.slow
def test_compiled_and_channels_last_it_trains_the_same(tmp_path: Path) -> None:
    given = [*SMALL, "dataset.limit=6", "validation_images=2", "teacher.cache=off", "trainer.max_epochs=2"]
    losses = []
    for name, more in (("plain", []), ("fast", ["compile=true", "channels_last=true"])):
        train(*given, *more, "trainer.log_every_n_steps=1", f"output_dir={tmp_path / name}")
        rows = csv.DictReader((tmp_path / name / "metrics.csv").open())
        losses.append([float(row["train/loss"]) for row in rows if row["train/loss"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    plain, fast = (load_file(tmp_path / name / "mini.safetensors") for name in ("plain", "fast"))
    assert {k: v.shape for k, v in plain.items()} == {k: v.shape for k, v in fast.items()}


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    for given, message in (
        (["trainer.precision=bf16-true"], "use 32-true or bf16-mixed"),
        (["trainer.max_epochs=-1", "teacher.cache=off"], "set trainer.max_epochs or max_steps"),
        (["recipe=boxes"], "train.py does not run the recipe boxes; evaluate.py does"),
        (["experiment=pretrain_mini", "task=distill"], "This task requires a teacher"),
        (["teacher.cache=yes"], "teacher.cache must be on or off, got"),
        (["teacher.precision=half"], "teacher.precision must be one of fp32, bf16, fp16, got half"),
        (["cache.dtype=int4"], "cache.dtype must be fp16 or int8, got int4"),
        (["cache.store_padding=false"], "cache.store_padding must be true, got false: the loss includes the padding"),
        (["cache.store_padding=false", "task=distill_coupled"], "masks are decoded from full embeddings"),
        (["recipe=none"], "recipe must be a module of mobilesamv2.recipes"),
        (
            ["experiment=cache_teacher", "teacher.cache=off", "model@teacher=mini", "dataset=synthetic"],
            "teacher.cache must be on for task=cache_teacher",
        ),
    ):
        small = [] if given[0].startswith("experiment") else SMALL
        with pytest.raises(SystemExit, match=message):
            train(*small, f"cache.folder={tmp_path}", *given, f"output_dir={tmp_path}")
