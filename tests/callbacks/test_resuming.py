"""A run that is stopped and resumed is the run that was not; two processes are one that accumulates."""

import csv
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from support import ROOT
from support.training import ADAMW, StopsAt, distilling, trainer

from mobilesamv2 import build_sam
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.samples import PromptSamples
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.tasks.train_prompted_masks import TrainPromptedMasks


class Notes(pl.Callback):
    """The images of each batch."""

    def __init__(self) -> None:
        self.image_ids: list[list[int]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: dict, index: int) -> None:
        self.image_ids.append(batch["image_id"].tolist())


def finetuning(num_workers: int = 0) -> tuple[pl.LightningModule, TrainingData]:
    torch.manual_seed(0)
    task = TrainPromptedMasks(build_sam("mini"), ADAMW, warmup_images=4, image_encoder="full")
    samples = PromptSamples(SyntheticDataset(12, (64, 96)), 256, prompts_per_image=2)
    return task, TrainingData(samples, 2, validation_images=2, num_workers=num_workers, seed=1)


@pytest.mark.parametrize(
    ("build", "accumulated", "at_the_end"),
    [
        (finetuning, 1, False),
        (distilling, 2, True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (partial(finetuning, num_workers=2), 1, False),
                (finetuning, 1, True),
                (finetuning, 2, False),
                (finetuning, 2, True),
                (distilling, 1, False),
                (distilling, 1, True),
                (distilling, 2, False),
            ]
        ),
    ],
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(
    build: Callable, accumulated: int, at_the_end: bool, tmp_path: Path
) -> None:
    settings = {"max_epochs": 2, "accumulate_grad_batches": accumulated, "enable_checkpointing": True}
    steps = 5 if accumulated == 1 else 3  # an epoch
    whole_notes, notes = Notes(), Notes()
    whole, data = build()
    trainer(tmp_path, callbacks=[whole_notes], **settings).fit(whole, datamodule=data)

    for stop in (2, steps + 1):
        stopped, data = build()
        folder = tmp_path / f"at {stop}"
        keeps = pl.callbacks.ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)
        killed = trainer(tmp_path, callbacks=[keeps, StopsAt(stop, at_the_end)], **settings)
        with pytest.raises(RuntimeError, match="stopped"):
            killed.fit(stopped, datamodule=data)
        resumed, data = build()
        for parameter in resumed.parameters():
            parameter.data.mul_(0.5)  # the checkpoint has to bring them all
        keeps = pl.callbacks.ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)
        notes = Notes()
        goes_on = trainer(tmp_path, callbacks=[keeps, notes], **settings)
        goes_on.fit(resumed, datamodule=data, ckpt_path=folder / "last.ckpt", weights_only=True)
        assert goes_on.global_step == 2 * steps
        assert notes.image_ids == whole_notes.image_ids[-len(notes.image_ids) :]
        for (name, expected), value in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
            assert torch.equal(expected, value), name


def test_epochs_differ_and_cover_every_image() -> None:
    task, data = distilling()
    notes = Notes()
    trainer(Path("."), max_epochs=2, callbacks=[notes]).fit(task, datamodule=data)
    first, second = (list(chain(*epoch)) for epoch in (notes.image_ids[:5], notes.image_ids[5:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_processes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two processes see in a step are two batches of the one process, and no image comes twice."""
    from mobilesamv2.data import datamodule

    _, data = distilling()
    one = list(data.batches)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(datamodule, "_rank", lambda trainer, rank=rank: (rank, 2))
        assert len(data.batches) == 2
        shares.append(list(data.batches))
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == one[:4]
    assert list(data.val_dataloader().sampler) == [(datamodule.VALIDATION, 11)]


def run_train(folder: Path, *given: str) -> Path:
    """train.py in a process of its own: a student without BatchNorm, whose statistics are each process's own.

    12 images make three steps of four; two more are for validation.
    """
    small = [
        "experiment=distill_tinyvit",
        "model=by_name",
        "model.name=sam_vit_mini",
        "model@teacher=mini",
        "dataset=synthetic",
    ]
    small += ["dataset.limit=14", "validation_images=2", "task.warmup_images=0", "batch_size=2", "num_workers=0"]
    small += ["trainer.max_epochs=2", "trainer.accelerator=cpu", "+trainer.enable_progress_bar=false"]
    command = [sys.executable, str(ROOT / "train.py"), *small, *given, f"output_dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_two_processes_train_what_one_that_accumulates_does(tmp_path: Path) -> None:
    one = run_train(tmp_path / "one", "teacher.cache=off", "trainer.accumulate_grad_batches=2")
    two = run_train(tmp_path / "two", "teacher.cache=off", "trainer.devices=2")
    weights, theirs = (load_file(folder / "sam_vit_mini.safetensors") for folder in (one, two))
    assert max((weights[key] - theirs[key]).abs().max().item() for key in weights) < 1e-5
    torch.manual_seed(0)
    build_sam("mini")  # the teacher, which is built first
    untrained = build_sam("sam_vit_mini").image_encoder.neck[0].weight
    assert not torch.equal(weights["image_encoder.neck.0.weight"], untrained)


@pytest.mark.slow
def test_two_processes_read_each_others_embeddings(tmp_path: Path) -> None:
    folder = run_train(tmp_path, "trainer.devices=2", f"cache.folder={tmp_path / 'cache'}")
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [float(row["train/teacher_images"]) for row in rows if row["train/teacher_images"]] == [14.0, 14.0]
