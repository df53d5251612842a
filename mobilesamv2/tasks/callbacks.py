"""What a training run does beside training: it saves, stops when told to, and says how fast it is."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint


class CheckpointAfterSteps(ModelCheckpoint):
    """Saves between optimizer steps alone: amid an accumulation a run can't be resumed exactly."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Saves, unless gradients are being accumulated."""
        if not trainer.fit_loop._should_accumulate():
            super().on_train_batch_end(trainer, *args, **kwargs)


Handler = Callable[[int, Any], Any]

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)

STEPS_BETWEEN_AGREEMENTS = 10
"""Of several processes, which have to stop at the same step; to agree, they wait for each other."""


WAIT_FOR_THE_FIRST = 60
"""Seconds that the other processes give the first one to have the job queued again."""


class SaveAndRequeue(Callback):
    """On SIGTERM or SIGUSR2, saves after the step in progress, has the job queued again on Slurm, and ends the program.

    SIGUSR2 is what submitit has Slurm send before a job's time is over or it is preempted; submitit's own handler,
    which requeues, is called after the save. Without submitit, ``scontrol requeue`` is.

    Args:
        path: the checkpoint to write.
        requeue: have the job queued again; otherwise it only ends.
    """

    def __init__(self, path: Path, requeue: bool = True) -> None:
        self.path = path
        self.requeue = requeue
        self._received = 0
        self._earlier: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens, in the place of Lightning, whose handler of SIGTERM ends a run amid an accumulation too."""
        self._earlier = {number: signal.signal(number, self._note) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and ends, if a signal has come and a step is complete."""
        if trainer.fit_loop._should_accumulate():
            return
        if trainer.world_size > 1:
            if trainer.global_step % STEPS_BETWEEN_AGREEMENTS:
                return
            anyone = trainer.strategy.reduce_boolean_decision(bool(self._received), all=False)
            self._received = self._received or (SIGNALS[0] if anyone else 0)
        if self._received:
            trainer.save_checkpoint(self.path, weights_only=False)
            self._end(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the signals back."""
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _note(self, number: int, frame: Any) -> None:
        self._received = number

    def _end(self, trainer: pl.Trainer) -> None:
        name, submitit = signal.Signals(self._received).name, self._earlier.get(signal.SIGUSR2)
        if trainer.is_global_zero:
            print(f"\n{name}: saved {self.path} at step {trainer.global_step}; the same output_dir goes on from there.")
        if self.requeue and callable(submitit):
            submitit(signal.SIGUSR2, None)  # the first process requeues and ends in there
            time.sleep(WAIT_FOR_THE_FIRST)  # srun might end the job with the first process that ends
        elif self.requeue and trainer.is_global_zero and "SLURM_JOB_ID" in os.environ:
            done = subprocess.run(["scontrol", "requeue", _slurm_job()], check=False)
            print(f"scontrol requeue {_slurm_job()}: {'done' if done.returncode == 0 else 'failed'}")
        raise SystemExit(128 + self._received)


def _slurm_job() -> str:
    """Id of this job; of an array, of its task."""
    environ = os.environ
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]


class TrainingLog(Callback):
    """Logs the learning rate, images/s, the share of time spent waiting for data, and GPU memory.

    Of all processes' images, over the steps since the last time. Waiting is the time from the end of a step to the
    moment that the next batch is on its device; checkpoints and validation are left out. A GPU computes while its
    process waits, so that there a share of nearly one step's slack is no loss.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._begin = self._free_since = time.perf_counter()
        self._waited = 0.0
        self._batches = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Time between epochs counts for nothing."""
        self._forget()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nor does validation."""
        self._forget()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A batch has come."""
        self._waited += time.perf_counter() - self._free_since

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch is done."""
        self._batches += 1
        self._free_since = time.perf_counter()
        if trainer.fit_loop._should_accumulate() or trainer.global_step % trainer.log_every_n_steps:  # pyright: ignore
            return
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        passed = self._free_since - self._begin
        values: dict[str, float] = {
            "train/learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "train/images_per_second": self._batches * data.batches.batch_size * trainer.world_size / passed,
            "train/data_wait": self._waited / passed,
        }
        device = trainer.strategy.root_device
        if device.type == "cuda":
            values["train/gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        pl_module.log_dict(values, batch_size=data.batches.batch_size)
        self._forget()
