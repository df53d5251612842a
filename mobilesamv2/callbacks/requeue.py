"""A job that is signalled to end saves first, and is queued again."""

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
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from mobilesamv2.callbacks.checkpoint import follows, validating_first

Handler = Callable[[int, Any], Any] | int | None

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)

REQUEUE_GRACE_S = 60
"""Seconds that the other processes wait while the first one requeues the job."""


class SaveAndRequeue(Callback):
    """On SIGTERM, SIGUSR2 or Ctrl-C, saves after the step or image in progress and ends; on Slurm requeues the job.

    submitit has Slurm send SIGUSR2 before a job's time is over or it is preempted; submitit's own handler, which
    requeues, is called after the save. Without submitit, ``scontrol requeue`` is called. A job that was cancelled, or
    received Ctrl-C, is not requeued. A second Ctrl-C ends the program at once. In the validation before the first step
    there is nothing to save, and it ends after that.

    It is to be the last callback, so that the step's row of the log is complete. An epoch without validation ends
    before its last step counts, and a run ends by itself after its last step.

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
    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install_handlers(trainer)

    @override
    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._any_rank_signalled(trainer):
            self._end(trainer, "no step is done yet, and nothing to save; the same command starts again")

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install_handlers(trainer)

    @override
    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install_handlers(trainer)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if follows(trainer) == "step" and self._any_rank_signalled(trainer):
            # The step's row of the log, which Lightning writes after this hook.
            trainer._logger_connector.on_batch_end()
            trainer._logger_connector.update_train_step_metrics()
            self._save_and_end(trainer)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        is_resumable = self.path is not None and not trainer.sanity_checking and follows(trainer) == "validation"
        if is_resumable and self._any_rank_signalled(trainer):
            with validating_first(trainer):
                self._save_and_end(trainer)

    def _save_and_end(self, trainer: pl.Trainer) -> None:
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
        self._install_handlers(trainer)

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

    def _install_handlers(self, trainer: pl.Trainer) -> None:
        """Replace Lightning's handlers, with which the program would end at once with status 0.

        What those have noted already is taken over. At the end Lightning restores the handlers from before its own.
        """
        for number in SIGNALS:
            previous = signal.signal(number, self._record)
            if previous != self._record:  # else they were installed for the validation before the first step
                self._previous_handlers[number] = previous
        if trainer.received_sigterm:
            trainer._signal_connector.received_sigterm = False
            self._received = self._received or signal.SIGTERM

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
