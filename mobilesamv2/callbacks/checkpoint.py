"""Checkpoints that are written atomically, aligned with optimizer steps, and saved when a job is signalled to end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, WeightAveraging
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor
from typing_extensions import override

from mobilesamv2.files import check_archive, torch_save_atomic


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file in its folder, and renames that.

    Lightning's own class copies from the system's temporary folder, and a job that is killed meanwhile leaves a partial
    file. ``storage_options`` are not read, as in that class.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        torch_save_atomic(checkpoint, path)


def require_resumable(path: Path, task: pl.LightningModule, max_steps: int | None) -> int:
    """Check that a checkpoint is of the model that a task trains, and not beyond the end of the run; return its steps.

    Args:
        path: of the checkpoint.
        task: that would load it.
        max_steps: optimizer steps of the run; None for no limit.

    Raises:
        ValueError: if the checkpoint can't be read, lacks a weight or has it in another shape, or has more steps.
    """
    way_out = "resume=null starts over, and another output_dir leaves this run as it is."
    try:
        check_archive(path)
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        shapes = {key: tuple(value.shape) for key, value in checkpoint["state_dict"].items()}
        steps = int(checkpoint["global_step"])
    except Exception as error:  # a damaged file raises any of a dozen types, as in checkpoints.py
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"The checkpoint {path} can't be read: {reason} {way_out}") from error
    if max_steps is not None and max_steps < steps:
        raise ValueError(
            f"trainer.max_epochs and max_steps must be at least what was trained: {steps} steps are in {path}, the run "
            f"would have {max_steps}; {way_out}"
        )
    for key, value in task.state_dict().items():
        if key not in shapes:
            raise ValueError(f"{path} is of another model, missing key(s): {key}. {way_out}")
        if shapes[key] != tuple(value.shape):
            raise ValueError(
                f"{path} is of another model, size mismatch for {key}: {shapes[key]} in the checkpoint, "
                f"{tuple(value.shape)} in the model. {way_out}"
            )
    return steps


class StepAlignedCheckpoint(ModelCheckpoint):
    """Saves only between optimizer steps: amid an accumulation of gradients a run can't be resumed exactly."""

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            super().on_train_batch_end(trainer, *args, **kwargs)


class EMA(WeightAveraging):
    """Exponential moving average of the weights, with a decay that rises: min(decay, (1 + steps) / (10 + steps)).

    So the first steps, whose weights are far from the last ones', soon leave the average. A run that is resumed at its
    end has the average too, unlike with Lightning's own class.

    Args:
        decay: decay of the average once it has risen.

    Source: Polyak averaging with the warm-up of TensorFlow's ExponentialMovingAverage(num_updates).
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
            risen = min(decay, (1 + float(num_averaged)) / (10 + float(num_averaged)))
            return averaged * risen + current * (1 - risen)

        super().__init__(avg_fn=average)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning copies the average into the model after the last step, but not if no step is left to run.
        self._copy_average_to_current(pl_module)


Handler = Callable[[int, Any], Any] | int | None

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)

REQUEUE_GRACE_S = 60
"""Seconds that the other processes wait while the first one requeues the job."""


class SaveAndRequeue(Callback):
    """On SIGTERM, SIGUSR2 or Ctrl-C, saves after the step or image in progress and ends; on Slurm requeues the job.

    submitit has Slurm send SIGUSR2 before a job's time is over or it is preempted; submitit's own handler, which
    requeues, is called after the save. Without submitit, ``scontrol requeue`` is called. A job that was cancelled, or
    received Ctrl-C, is not requeued. A second Ctrl-C ends the program at once.

    Args:
        path: the checkpoint to write; None for an evaluation, which has none.
        requeue: requeue the job; otherwise it only ends.
    """

    def __init__(self, path: Path | None, requeue: bool = True) -> None:
        self.path = path
        self.requeue = requeue
        self._received = 0
        self._previous_handlers: dict[int, Handler] = {}

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install_handlers()  # not earlier: before, there is nothing to save

    @override
    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install_handlers()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate() or not self._any_rank_signalled(trainer):
            return
        assert self.path is not None
        trainer.save_checkpoint(self.path)
        self._end(trainer, f"saved {self.path} at step {trainer.global_step}; the same output_dir resumes there")

    @override
    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._received:  # of this process only: in prediction processes don't wait for each other
            pl_module.on_predict_end()  # writes what is pending
            self._end(trainer, "finished batches are kept; the same command resumes")

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install_handlers()

    @override
    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._received:
            kept = pl_module.flush_results()  # pyright: ignore[reportCallIssue]
            self._end(trainer, f"the results of {kept} images are kept; the same output_dir resumes there")

    def _install_handlers(self) -> None:
        """Replace Lightning's handlers; at the end Lightning restores those from before its own."""
        for number in SIGNALS:
            self._previous_handlers[number] = signal.signal(number, self._record)

    def _record(self, number: int, frame: Any) -> None:
        if number == self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

    def _any_rank_signalled(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(bool(self._received), all=False):
            self._received = self._received or signal.SIGTERM
        return bool(self._received)

    def _end(self, trainer: pl.Trainer, outcome: str) -> None:
        number, submitit = signal.Signals(self._received), self._previous_handlers.get(signal.SIGUSR2)
        if trainer.is_global_zero:
            print(f"\n{number.name}: {outcome}.", flush=True)
        if self.requeue and number != signal.SIGINT and "SLURM_JOB_ID" in os.environ and not _is_cancelled():
            if callable(submitit):
                submitit(signal.SIGUSR2, None)  # in the first process it requeues and exits
                time.sleep(REQUEUE_GRACE_S)  # srun might end the job with the first process that ends
            elif trainer.is_global_zero:
                _scontrol("requeue", _slurm_job())
        raise SystemExit(128 + number)


def _is_cancelled() -> bool:
    """Return whether the user cancelled this job: Slurm is ending it, and its time is not over."""
    job = dict(re.findall(r"(\w+)=(\S+)", _scontrol("show", "job", _slurm_job())))
    if job.get("JobState") not in ("COMPLETING", "CANCELLED"):
        return False
    elapsed_s, limit_s = (_seconds(job.get(key, "")) for key in ("RunTime", "TimeLimit"))
    return elapsed_s is None or limit_s is None or elapsed_s < limit_s


def _seconds(duration: str) -> int | None:
    """Parse Slurm's [days-]hours:minutes:seconds; None for UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", duration)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _scontrol(*arguments: str) -> str:
    """Return scontrol's output; a failure is printed."""
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        print(f"scontrol can't be run, and the job is not requeued: {error}")
        return ""
    if done.returncode:
        print(f"scontrol {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout


def _slurm_job() -> str:
    """Return the id of this job, or of this task of a job array."""
    environ = os.environ
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]
