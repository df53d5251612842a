"""A run that diverges stops at once, and neither its checkpoints nor the best weights are of a later moment."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from support.runs import SMALL, train
from support.training import distilling, trainer

from mobilesamv2.callbacks.checkpoint import StepAlignedCheckpoint
from mobilesamv2.callbacks.divergence import StopOnDivergence
from mobilesamv2.callbacks.resumable import steps_of
from mobilesamv2.callbacks.validation import KeepBest
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.samples import EncoderSamples
from mobilesamv2.data.synthetic.dataset import SyntheticDataset


class Fills(pl.Callback):
    """Fills a weight with a value in the second epoch: before its first step, or before its validation."""

    def __init__(self, value: float, before: str) -> None:
        self.value, self.before = value, before

    def _fill(self, runner: pl.Trainer, task: pl.LightningModule, before: str) -> None:
        if before == self.before and runner.current_epoch == 1:
            with torch.no_grad():
                next(task.parameters()).fill_(self.value)

    def on_train_epoch_start(self, runner: pl.Trainer, task: pl.LightningModule) -> None:
        self._fill(runner, task, "step")

    def on_validation_start(self, runner: pl.Trainer, task: pl.LightningModule) -> None:
        self._fill(runner, task, "validation")


class LogsNaN(pl.Callback):
    """Logs a metric that is NaN, as a recall without objects can be."""

    def on_validation_epoch_end(self, runner: pl.Trainer, task: pl.LightningModule) -> None:
        task.log("val/recall", float("nan"))


def fit(folder: Path, fills: Fills) -> KeepBest:
    """Distil, two steps an epoch, with the checkpoints and best weights of a run; raise what ends it."""
    keeps = folder / "checkpoints"
    named = {"auto_insert_metric_name": False, "enable_version_counter": False}
    best = KeepBest(keeps / "best.pt", "val/loss", "max")
    callbacks = [StopOnDivergence(folder), LogsNaN(), fills, best]
    callbacks += [pl.callbacks.ModelCheckpoint(keeps, "epoch{epoch}-step{step}", save_last=True, **named)]
    callbacks += [StepAlignedCheckpoint(keeps, "recent", every_n_train_steps=2, **named)]
    task, _ = distilling()
    data = TrainingData(EncoderSamples(SyntheticDataset(6, (64, 64)), 256), 2, validation_images=2)
    trainer(folder, max_epochs=4, callbacks=callbacks, enable_checkpointing=True).fit(task, datamodule=data)
    return best


@pytest.mark.parametrize(
    ("fills", "said"),
    [
        pytest.param(Fills(float("nan"), "step"), "the loss of step 3 is NaN or infinite", marks=pytest.mark.slow),
        (Fills(1e30, "validation"), "val/loss after step 4 is NaN or infinite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_stops_and_names_its_last_sound_checkpoint(fills: Fills, said: str, tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=rf"^The run diverged: {said}; the last sound checkpoint is {last}\. Lower"):
        fit(tmp_path, fills)
    assert {path.name for path in last.parent.iterdir()} == {"best.pt", "epoch0-step2.ckpt", "last.ckpt", "recent.ckpt"}
    assert steps_of(last) == 2
    best = KeepBest(last.parent / "best.pt", "val/loss", "max").read_best()
    assert best is not None
    assert best.epoch == 0


def test_weights_that_are_not_finite_are_in_no_checkpoint(tmp_path: Path) -> None:
    task, _ = distilling()
    checks = StopOnDivergence(tmp_path)
    checks.on_save_checkpoint(trainer(tmp_path), task, {})
    with torch.no_grad():
        next(task.parameters()).fill_(float("inf"))
    said = "^The run diverged: the weights after step 0 are NaN or infinite; there is no checkpoint before"
    with pytest.raises(ValueError, match=said):
        checks.on_save_checkpoint(trainer(tmp_path), task, {})
    (tmp_path / "damaged.ckpt").write_text("")
    assert steps_of(tmp_path / "damaged.ckpt") is None


def test_weights_that_a_first_step_ruins_are_kept_nowhere(tmp_path: Path) -> None:
    given = ["dataset.limit=8", "dataset.size=[64,64]", "validation_images=2", "teacher.cache=off"]
    given += ["trainer.max_epochs=2", "+trainer.limit_train_batches=1", "optimizer.lr=1e30", "task.warmup_images=0"]
    with pytest.raises(
        SystemExit, match=r"error: The run diverged: val/loss after step 1 is .* there is no checkpoint"
    ):
        train(*SMALL, *given, f"output_dir={tmp_path}")
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("*.pt"))
    assert not list(tmp_path.rglob("*.safetensors"))
