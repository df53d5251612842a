"""Runs that are limited, how they end, and what they leave beside the last weights."""

import json
from itertools import chain
from pathlib import Path

import pytest
import pytorch_lightning as pl
from safetensors.torch import load_file
from support.runs import SMALL, train
from support.training import distilling, trainer

from mobilesamv2 import build_sam
from mobilesamv2.checkpoints import load_weights


class Notes(pl.Callback):
    """The learning rate and the images of each step, by epoch."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.image_ids: dict[int, list[int]] = {}

    def on_train_batch_start(self, runner: pl.Trainer, module: pl.LightningModule, batch: dict, index: int) -> None:
        self.rates.append(runner.optimizers[0].param_groups[0]["lr"])
        self.image_ids.setdefault(runner.current_epoch, []).extend(batch["image_id"].tolist())


@pytest.mark.slow
def test_limited_epochs_are_full_and_end_with_the_schedule(tmp_path: Path) -> None:
    """Five batches of two, two of them in an epoch: each epoch begins an order of its own."""
    task, data = distilling()
    notes = Notes()
    runner = trainer(tmp_path, max_epochs=4, limit_train_batches=2, callbacks=[notes])
    runner.fit(task, datamodule=data)
    assert runner.global_step == 8
    assert [len(images) for images in notes.image_ids.values()] == [4] * 4
    assert notes.rates[-1] < notes.rates[2] / 8  # a cosine that falls from step 2 to 8
    orders = []
    for epoch in range(4):
        data.batches.first_step = 2 * epoch
        data.trainer = trainer(tmp_path, limit_train_batches=2)
        orders.append([index for _, index in chain(*data.batches)])
    images = data.samples.samples.images.image_ids
    assert [[images[i] for i in order] for order in orders] == list(notes.image_ids.values())
    data.trainer = trainer(tmp_path, limit_train_batches=0.1)
    with pytest.raises(ValueError, match=r"trainer\.limit_train_batches must leave at least one of the 5 batches, got"):
        list(data.batches)


def test_limits_that_leave_a_run_unfinished_are_refused(tmp_path: Path) -> None:
    given = [*SMALL, "dataset.limit=8", "validation_images=2", "teacher.cache=off", f"output_dir={tmp_path}"]
    for setting, said in (
        ("+trainer.overfit_batches=1", r"trainer\.overfit_batches can't be used: .*dataset\.limit=N"),
        ("+trainer.fast_dev_run=true", r"trainer\.fast_dev_run can't be used: .*limit_train_batches=2"),
        ("+trainer.max_time=00:00:01:00", r"trainer\.max_time can't be used: .*timeout -s TERM 1h COMMAND"),
        ("+trainer.enable_checkpointing=false", r"error: trainer: .*enable_checkpointing"),
        ("+trainer.limit_val_batches=0.01", r"error: trainer: .*limit_val_batches"),
    ):
        with pytest.raises(SystemExit, match=said):
            train(*given, setting)


@pytest.mark.slow
def test_the_best_weights_are_written_and_survive_a_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An epoch of five batches, two a step: three steps, the last of one batch."""
    given = [*SMALL, "dataset.limit=12", "validation_images=2", "teacher.cache=off", f"output_dir={tmp_path}"]
    given += ["trainer.accumulate_grad_batches=2", "task.warmup_images=0", "optimizer.lr=1e-3"]
    with pytest.raises(SystemExit, match=r"best\.metric must be a logged metric, one of .*val/loss.*, got val/los\."):
        train(*given, "best.metric=val/los", "trainer.max_epochs=1")
    train(*given, "trainer.max_epochs=1", "resume=null")
    first = json.loads((tmp_path / "run.json").read_text())["result"]
    assert first["best"] == {"metric": "val/loss", "mode": "min", "value": first["metrics"]["val/loss"]} | {
        "epoch": 0,
        "step": 3,
    }
    assert f"best: val/loss {first['best']['value']:.4g} in epoch 0, at step 3: {tmp_path}/best/mini.safetensors" in (
        capsys.readouterr().out
    )
    best, last = (load_file(tmp_path / name / "mini.safetensors") for name in ("best", "."))
    assert all(bool((best[key] == last[key]).all()) for key in last)
    assert load_weights(build_sam("mini"), tmp_path / "best" / "mini.safetensors")
    # As if it had been killed before its end was recorded: the same again, with the metrics of its checkpoint.
    record = json.loads((tmp_path / "run.json").read_text())
    del record["result"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    train(*given, "trainer.max_epochs=1")
    again = json.loads((tmp_path / "run.json").read_text())["result"]
    assert {key: again[key] for key in ("steps", "total_steps", "metrics", "best")} == {
        key: first[key] for key in ("steps", "total_steps", "metrics", "best")
    }
    train(*given, "trainer.max_epochs=2")
    second = json.loads((tmp_path / "run.json").read_text())["result"]
    assert second["steps"] == 6
    assert second["best"]["value"] == min(first["metrics"]["val/loss"], second["metrics"]["val/loss"])
    assert not [path for path in tmp_path.rglob("*") if "=" in path.name]
