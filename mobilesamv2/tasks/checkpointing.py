"""Checkpoints that are whole or not there, between steps, and when a job is told to end."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from mobilesamv2.whole_files import save_whole


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint under another name in its folder, and renames it.

    Lightning's own way copies from the system's temporary folder, and a job that is killed meanwhile leaves a part.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes it; ``storage_options`` are not read, as in the class above."""
        save_whole(checkpoint, path)


def require_same_model(path: Path, task: pl.LightningModule) -> None:
    """Nothing, if a checkpoint is of the model that a task trains.

    Raises:
        ValueError: it can't be read, or a weight is missing or of another shape.
    """
    way_out = "resume=null starts anew, and another output_dir leaves this run as it is."
    try:
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["state_dict"]
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The checkpoint {path} can't be read: {reason} {way_out}") from error
    shapes = {key: tuple(value.shape) for key, value in saved.items()}
    for key, value in task.state_dict().items():
        if shapes.get(key) != tuple(value.shape):
            then = shapes.get(key, "not there")
            raise ValueError(f"{path} is of another model: {key} is {then}, and {tuple(value.shape)} now. {way_out}")


class CheckpointAfterSteps(ModelCheckpoint):
    """Saves between optimizer steps alone: amid an accumulation a run can't be resumed exactly."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Saves, unless gradients are being accumulated."""
        if not trainer.fit_loop._should_accumulate():
            super().on_train_batch_end(trainer, *args, **kwargs)


class AveragedWeights(EMAWeightAveraging):
    """Lightning's, but a run that is resumed at its end has the average too."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning gives the average to the model after the last step, and does not if there is none."""
        self._copy_average_to_current(pl_module)


Handler = Callable[[int, Any], Any] | int | None

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)

WAIT_FOR_THE_FIRST = 60
"""Seconds that the other processes give the first one to have the job queued again."""


class SaveAndRequeue(Callback):
    """On SIGTERM, SIGUSR2 or Ctrl-C, saves after the step in progress and ends the program; on Slurm queues it again.

    SIGUSR2 is what submitit has Slurm send before a job's time is over or it is preempted; submitit's own handler,
    which requeues, is called after the save. Without submitit, ``scontrol requeue`` is. A job that was cancelled, or
    got Ctrl-C, is not queued again. A second Ctrl-C ends at once.

    Args:
        path: the checkpoint to write.
        requeue: have the job queued again; otherwise it only ends.
    """

    def __init__(self, path: Path, requeue: bool = True) -> None:
        self.path = path
        self.requeue = requeue
        self._received = 0
        self._earlier: dict[int, Handler] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens from now on; before, there is nothing to save."""
        self._listen()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens from now on."""
        self._listen()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and ends, if a signal has come to any process and a step is complete."""
        if trainer.fit_loop._should_accumulate() or not self._came_to_anyone(trainer):
            return
        trainer.save_checkpoint(self.path)
        self._end(trainer, f"saved {self.path} at step {trainer.global_step}; the same output_dir goes on from there")

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Ends, once what is pending is written; here processes don't wait for each other."""
        if self._received:
            pl_module.on_predict_end()
            self._end(trainer, "what was done is kept; the same command goes on")

    def _listen(self) -> None:
        """In the place of Lightning, which in the end restores what was there before it."""
        for number in SIGNALS:
            self._earlier[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if number == self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

    def _came_to_anyone(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(bool(self._received), all=False):
            self._received = self._received or signal.SIGTERM
        return bool(self._received)

    def _end(self, trainer: pl.Trainer, what: str) -> None:
        number, submitit = signal.Signals(self._received), self._earlier.get(signal.SIGUSR2)
        if trainer.is_global_zero:
            print(f"\n{number.name}: {what}.", flush=True)
        if self.requeue and number != signal.SIGINT and "SLURM_JOB_ID" in os.environ and not _is_cancelled():
            if callable(submitit):
                submitit(signal.SIGUSR2, None)  # the first process requeues and ends in there
                time.sleep(WAIT_FOR_THE_FIRST)  # srun might end the job with the first process that ends
            elif trainer.is_global_zero:
                _scontrol("requeue", _slurm_job())
        raise SystemExit(128 + number)


def _is_cancelled() -> bool:
    """Whether the user has cancelled this job: Slurm is ending it, and its time is not over."""
    told = dict(re.findall(r"(\w+)=(\S+)", _scontrol("show", "job", _slurm_job())))
    if told.get("JobState") not in ("COMPLETING", "CANCELLED"):
        return False
    passed, allowed = (_seconds(told.get(key, "")) for key in ("RunTime", "TimeLimit"))
    return passed is None or allowed is None or passed < allowed


def _seconds(duration: str) -> int | None:
    """Slurm's [days-]hours:minutes:seconds; None for UNLIMITED."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", duration)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _scontrol(*arguments: str) -> str:
    """What Slurm says; what goes wrong is printed."""
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        print(f"scontrol can't be run, and the job is not queued again: {error}")
        return ""
    if done.returncode:
        print(f"scontrol {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout


def _slurm_job() -> str:
    """Id of this job; of an array, of its task."""
    environ = os.environ
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]
