"""Validation and what hangs on it: it is not skipped by a stop or a kill, and the best one keeps its weights."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from support.training import STEPS, distilling, fit, logged, trainer

from mobilesamv2.callbacks.checkpoint import EMA, StepAlignedCheckpoint
from mobilesamv2.callbacks.resumable import require_resumable
from mobilesamv2.callbacks.validation import KeepBest


class Told(pl.Callback):
    """Sends this process a signal amid the step after so many."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_before_optimizer_step(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == self.steps:
            os.kill(os.getpid(), signal.SIGTERM)


class Killed(pl.Callback):
    """Ends at the beginning of the first validation, as a kill does."""

    def on_validation_epoch_start(self, trainer: pl.Trainer, *args: object) -> None:
        if not trainer.sanity_checking:
            raise RuntimeError("killed")


@pytest.mark.parametrize("done", [3, *(pytest.param(done, marks=pytest.mark.slow) for done in (STEPS, 2 * STEPS))])
def test_a_stopped_run_logs_and_validates_what_one_that_was_not_does(done: int, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    with pytest.raises(SystemExit):
        fit(tmp_path / "stopped", more=(Told(done - 1),))
    steps, validates_first = require_resumable(tmp_path / "stopped" / "stopped.ckpt", distilling()[0], None)
    assert (steps, validates_first) == (done, done % STEPS == 0)
    assert logged(tmp_path / "stopped") == logged(tmp_path / "whole")[: len(logged(tmp_path / "stopped"))]
    assert logged(tmp_path / "stopped")[-1][1] == str(done - 1)  # the row of the step amid which it was told
    resumed = fit(tmp_path / "stopped", "stopped.ckpt")
    assert logged(tmp_path / "stopped") == logged(tmp_path / "whole")
    for (name, value), other in zip(
        whole.lightning_module.state_dict().items(), resumed.lightning_module.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


@pytest.mark.slow
def test_a_kill_amid_validation_does_not_skip_it(tmp_path: Path) -> None:
    def keeps() -> StepAlignedCheckpoint:
        return StepAlignedCheckpoint(tmp_path / "killed", "recent", every_n_train_steps=1, enable_version_counter=False)

    fit(tmp_path / "whole", max_epochs=1)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path / "killed", more=(keeps(), Killed()), max_epochs=1, enable_checkpointing=True)
    resumed = fit(tmp_path / "killed", "recent.ckpt", more=(keeps(),), max_epochs=1, enable_checkpointing=True)
    assert resumed.global_step == STEPS
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_checkpoint_leaves_the_rows_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before the checkpoint is there, and just after it."""
    whole, save = fit(tmp_path / "whole", max_epochs=1), pl.Trainer.save_checkpoint

    def keeps(moment: str) -> StepAlignedCheckpoint:
        return StepAlignedCheckpoint(tmp_path / moment, "recent", every_n_train_steps=1, enable_version_counter=False)

    def killed(trainer: pl.Trainer, path: Path, *args: Any) -> None:
        if trainer.global_step < 3 or "after" in str(path):
            save(trainer, path, *args)
        if trainer.global_step == 3:
            raise RuntimeError("killed")

    for moment in ("before", "after"):
        monkeypatch.setattr(pl.Trainer, "save_checkpoint", killed)
        with pytest.raises(RuntimeError, match="killed"):
            fit(tmp_path / moment, more=(keeps(moment),), max_epochs=1, enable_checkpointing=True)
        monkeypatch.undo()
        assert logged(tmp_path / moment) == logged(tmp_path / "whole")[:3]
        resumed = fit(tmp_path / moment, "recent.ckpt", more=(keeps(moment),), max_epochs=1, enable_checkpointing=True)
        assert resumed.global_step == whole.global_step == STEPS
        assert logged(tmp_path / moment) == logged(tmp_path / "whole")


@pytest.mark.slow
def test_the_best_validation_keeps_the_weights_that_were_validated(tmp_path: Path) -> None:
    """By hand: with scores 3, 1, -inf, nan, 1 the second validation is the best, and its weights are the average's."""
    scores = iter([3.0, 1.0, -float("inf"), float("nan"), 1.0])

    class Scores(pl.Callback):
        weights: dict[str, torch.Tensor]

        def on_validation_epoch_end(self, runner: pl.Trainer, task: pl.LightningModule) -> None:
            if not runner.sanity_checking:
                task.log("val/score", next(scores))

        def on_validation_batch_end(self, runner: pl.Trainer, task: pl.LightningModule, *args: object) -> None:
            if runner.current_epoch == 1:  # here the average is in the model
                self.weights = {name: value.clone() for name, value in task.state_dict().items()}

    task, data = distilling()
    average, noted = EMA(0.5), Scores()
    keeps = KeepBest(tmp_path / "best.pt", "val/score", "min", average)
    trainer(tmp_path, max_epochs=5, callbacks=[average, noted, keeps]).fit(task, datamodule=data)
    assert keeps.best == ("val/score", "min", 1.0, 1, 2 * STEPS)
    again, _ = distilling()
    other = KeepBest(tmp_path / "best.pt", "val/score", "min")
    assert other.read_best() == keeps.best
    other.load_into(again)
    assert all(torch.equal(value, noted.weights[name]) for name, value in again.state_dict().items())
    assert KeepBest(tmp_path / "best.pt", "val/score", "max").read_best() is None
    (tmp_path / "best.pt").write_bytes((tmp_path / "best.pt").read_bytes()[:999])
    with pytest.raises(ValueError, match=r"best\.pt can't be read .*; delete that file"):
        other.read_best()
    with pytest.raises(ValueError, match=r"best\.mode must be min or max, got low"):
        KeepBest(tmp_path / "best.pt", "val/score", "low")
