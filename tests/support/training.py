"""Trainers, tasks and settings that several tests train with."""

import csv
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment

from mobilesamv2 import build_sam
from mobilesamv2.callbacks.checkpoint import EMA
from mobilesamv2.callbacks.csv_log import ResumableCSVLogger, trim_metrics
from mobilesamv2.callbacks.length import RunLength
from mobilesamv2.callbacks.requeue import SaveAndRequeue
from mobilesamv2.callbacks.resumable import require_resumable
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.samples import EncoderSamples
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.tasks.distill import DistillDecoupled
from mobilesamv2.tasks.teacher import Teacher

ADAMW = partial(torch.optim.AdamW, lr=2e-3)
STILL = dict.fromkeys(("mosaic", "scale", "translate", "flip", "hue", "saturation", "brightness"), 0.0)


def trainer(folder: Path, **settings) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, **(quiet | {"enable_checkpointing": False} | settings))


class StopsAt(pl.Callback):
    """Raises in the middle of a step, or at its end."""

    def __init__(self, step: int, at_the_end: bool) -> None:
        self.step, self.at_the_end = step, at_the_end

    def on_before_optimizer_step(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == self.step and not self.at_the_end:
            raise RuntimeError("stopped")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == self.step and self.at_the_end:
            raise RuntimeError("stopped")


def distilling() -> tuple[pl.LightningModule, TrainingData]:
    torch.manual_seed(0)
    task = DistillDecoupled(build_sam("mini"), Teacher(build_sam("sam_vit_mini")), ADAMW, warmup_images=4)
    return task, TrainingData(EncoderSamples(SyntheticDataset(12, (64, 96)), 256), 2, validation_images=2, seed=1)


STEPS = 5
"""Optimizer steps of an epoch of ``distilling``."""


def fit(
    folder: Path, resume: str | None = None, more: tuple[pl.Callback, ...] = (), max_steps: int = -1, **settings
) -> pl.Trainer:
    """Distil for two epochs, with a log and the callbacks of a run, from a checkpoint of the folder if one is named."""
    task, data = distilling()
    data.max_steps = max_steps
    path = None if resume is None else folder / resume
    if path is not None:
        checkpoint = require_resumable(path, task, None)
        trim_metrics(folder / "metrics.csv", checkpoint.steps, checkpoint.validates_first)
    stops = SaveAndRequeue(folder / "stopped.ckpt", requeue=False)
    log = ResumableCSVLogger(str(folder), name="", version="")
    given = {"max_epochs": 2, "plugins": [LightningEnvironment()], "logger": log, "log_every_n_steps": 1}
    runner = trainer(folder, **(given | settings), callbacks=[EMA(0.5), RunLength(data.max_steps), *more, stops])
    runner.fit(task, datamodule=data, ckpt_path=path, weights_only=True)
    return runner


def logged(folder: Path) -> list[tuple[str, ...]]:
    """The rows of metrics.csv, without columns that hold no number of the training."""
    rows = csv.DictReader((folder / "metrics.csv").open())
    return [tuple(row.get(name, "") for name in ("epoch", "step", "train/loss", "val/loss")) for row in rows]
