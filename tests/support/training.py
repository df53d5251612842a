"""Trainers, tasks and settings that several tests train with."""

from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch

from mobilesamv2 import build_sam
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
