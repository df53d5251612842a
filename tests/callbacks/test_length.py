"""A run that is stopped, or is given another length, goes on as if it had had that length from the beginning."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
from support.training import STEPS, fit, logged


class Notes(pl.Callback):
    """Epoch, images and learning rate of each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, list[int], float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: dict, index: int) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.steps.append((trainer.current_epoch, batch["image_id"].tolist(), rate))


class Dies(pl.Callback):
    """Ends at the beginning of the second epoch, as a kill does."""

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("killed")


def part(folder: Path, resume: str | None = None, *more: pl.Callback, max_steps: int = -1) -> Notes:
    last = pl.callbacks.ModelCheckpoint(folder, "epoch{epoch}", save_last=True, auto_insert_metric_name=False)
    notes = Notes()
    fit(folder, resume, (notes, last, *more), max_steps=max_steps, enable_checkpointing=True)
    return notes


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(3, -1), (3, 8), (STEPS, -1)])
def test_a_longer_run_follows_the_schedule_of_its_new_length(first: int, second: int, tmp_path: Path) -> None:
    whole = part(tmp_path / "whole", max_steps=second)
    assert len(whole.steps) == (2 * STEPS if second < 0 else second)
    short = part(tmp_path / "long", max_steps=first)
    assert [step[:2] for step in short.steps] == [step[:2] for step in whole.steps[:first]]
    assert [row[1] for row in logged(tmp_path / "long") if row[3]] == [str(first - 1)]  # validated at its end
    assert part(tmp_path / "long", "last.ckpt", max_steps=first).steps == []
    assert part(tmp_path / "long", "last.ckpt", max_steps=second).steps == whole.steps[first:]


@pytest.mark.slow
def test_a_run_with_max_steps_that_is_killed_between_epochs_reaches_its_end(tmp_path: Path) -> None:
    whole = part(tmp_path / "whole", max_steps=8)
    with pytest.raises(RuntimeError, match="killed"):
        part(tmp_path / "killed", None, Dies(), max_steps=8)
    assert part(tmp_path / "killed", "last.ckpt", max_steps=8).steps == whole.steps[STEPS:]
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
