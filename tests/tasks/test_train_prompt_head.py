"""Training of a prompt head: it learns, the model stays, and the programs take what is written."""

import csv
import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from support.runs import evaluate_here, train
from support.training import ADAMW, trainer

from mobilesamv2 import build_sam
from mobilesamv2.cli.main import main
from mobilesamv2.data.box_samples import BoxSamples, object_boxes
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.pixels import PixelCache
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.masks import encode
from mobilesamv2.pretrained import load_pretrained
from mobilesamv2.prompt_heads import build_prompt_head, save_prompt_head
from mobilesamv2.structures import GroundTruth
from mobilesamv2.tasks.teacher import Teacher, teacher_identity
from mobilesamv2.tasks.train_prompt_head import TrainPromptHead
from mobilesamv2.transforms import ModelFrame

SMALL = ["experiment=prompt_head_synthetic", "model@teacher=mini", "detector.width=8", "dataset.limit=5"]
SMALL += ["validation_images=2", "trainer.max_epochs=1", "task.warmup_images=0"]


class OneScene(SyntheticDataset):
    """The first scene, again and again."""

    @property
    def image_ids(self) -> list[int]:
        return [0] * self.limit

    def __getitem__(self, index: int):
        return super().__getitem__(0)


def test_boxes_are_tight_in_the_models_frame() -> None:
    masks = np.zeros((5, 40, 80), dtype=bool)
    masks[0, 10:20, 30:50] = True
    masks[1, 12:20, 30:50] = masks[1, 10, 30] = True  # the box of the first
    masks[2, 0:40, 0:80] = True
    masks[3, 5, 5] = True  # .8 pixels of the model's input
    rles = encode(torch.from_numpy(masks).transpose(1, 2))
    truth = GroundTruth(1, (40, 80), rles, [1.0, 2.0, 3.0, 4.0, 5.0], [])
    boxes, areas = object_boxes(truth, ModelFrame((40, 80), 64))
    assert torch.allclose(boxes, torch.tensor([[24.0, 8, 40, 16], [0, 0, 64, 32]]))
    assert areas.tolist() == [1.0, 3.0]


def test_learns_one_scene_from_cached_embeddings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sam = build_sam("mini")
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    teacher = Teacher(sam, EmbeddingCache(tmp_path / "cache", teacher_identity(sam)))
    head = build_prompt_head(sam, width=16, finest_stride=4)
    task = TrainPromptHead(head, teacher, partial(torch.optim.AdamW, lr=1e-2))
    losses: list[float] = []
    watch = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda t, *args: losses.append(float(t.callback_metrics["train/loss"]))
    )
    data = TrainingData(
        BoxSamples(OneScene(3, (128, 128), seed=3), 256), batch_size=2, validation_images=1, embeddings=teacher.cache
    )
    runner = trainer(tmp_path, max_epochs=40, callbacks=[watch], check_val_every_n_epoch=40)
    runner.fit(task, datamodule=data)
    assert losses[-1] < 0.7 * losses[0]
    assert runner.callback_metrics["val/box_recall_50"] > 0.5
    assert teacher.images_encoded == 1  # by the first validation
    assert all(torch.equal(value, before[name]) for name, value in sam.state_dict().items())
    assert {name.split(".")[0] for name in task.state_dict()} == {"head"}
    rows = list(csv.DictReader((tmp_path / "calibration.csv").open()))
    falling = [float(row["box_recall_50"]) for row in rows]
    assert falling == sorted(falling, reverse=True)


def test_images_without_objects_train_too(tmp_path: Path) -> None:
    class Empty(SyntheticDataset):
        def __getitem__(self, index: int):
            image, truth = super().__getitem__(index)
            return image, type(truth)(truth.image_id, truth.size, [], [], [])

    sam = build_sam("mini")
    task = TrainPromptHead(build_prompt_head(sam, width=8), Teacher(sam), ADAMW)
    without_gradient: list[str] = []

    def look(trainer: pl.Trainer, task: pl.LightningModule) -> None:
        without_gradient.extend(name for name, p in task.named_parameters() if p.grad is None)

    runner = trainer(
        tmp_path, max_steps=1, max_epochs=-1, callbacks=[pl.callbacks.LambdaCallback(on_after_backward=look)]
    )
    runner.fit(task, datamodule=TrainingData(BoxSamples(Empty(4, (64, 96)), 256), 2, validation_images=2))
    assert torch.isfinite(runner.callback_metrics["train/loss"])
    assert without_gradient == []  # DDP would fail


def test_the_programs_take_what_was_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out, head = tmp_path / "out", tmp_path / "out" / "mini_prompt_head.safetensors"
    with caplog.at_level(logging.INFO):
        kept = [f"cache.folder={tmp_path / 'kept'}", "cache.pixels=raw"]
        train(*SMALL, "prompt_sampler=prompt_head", f"output_dir={out}", "prompt_sampler.confidence=0", *kept)
    assert len(PixelCache(tmp_path / "kept" / "pixels_256", 256, "raw")) == 4  # of two batches, one to validate
    printed = capsys.readouterr().out
    assert "mask AR@K of 2 validation images: 10 0." in printed
    assert f"next: mobilesamv2 segment IMAGE -o masks --model mini --sampler prompt_head --detector {head}" in printed
    assert (out / "best" / head.name).is_file()
    row = list(csv.DictReader((out / "metrics.csv").open()))
    for column in ("val/box_ar_100", "val/mask_ar_1000", "val/box_recall_s_50"):
        assert any(line[column] for line in row), column

    # the model's weights are random, of the same seed
    images = ["dataset=synthetic", "dataset.limit=2", "model=mini", "trainer.accelerator=cpu", "num_workers=0"]
    images += ["+trainer.enable_progress_bar=false", "detector=prompt_head", f"detector.checkpoint={head}"]
    evaluate_here("task=evaluate_detector", *images, f"output_dir={tmp_path / 'boxes'}")
    result = json.loads((tmp_path / "boxes" / "results.json").read_text())
    assert result["protocol"]["network"] == "prompt_head"
    assert result["run"]["model"]["name"] == "mini"
    assert result["run"]["detector"]["sha256"] != [None]
    evaluate_here(
        "prompt_sampler=prompt_head", "prompt_sampler.confidence=0", "prompt_sampler.max_prompts=8", *images,
        f"output_dir={tmp_path / 'masks'}",
    )  # fmt: skip
    result = json.loads((tmp_path / "masks" / "results.json").read_text())
    assert (result["protocol"]["sampler"], result["protocol"]["max_prompts"]) == ("PromptHeadBoxes", 8)


def test_segment_takes_a_prompt_head(tmp_path: Path) -> None:
    Image.fromarray(SyntheticDataset(1, (64, 96))[0][0]).save(tmp_path / "a.png")
    torch.manual_seed(0)
    save_prompt_head(build_prompt_head(load_pretrained("mini_conv"), width=8), tmp_path / "head.safetensors")
    given = ["segment", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--model", "mini_conv"]
    given += ["--sampler", "prompt_head", "--detector", str(tmp_path / "head.safetensors"), "--confidence", "0.0"]
    main(given)
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    assert record["made_by"]["sampler"] == "PromptHeadBoxes"
    assert len(record["annotations"]) > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["task=train_prompt_head", "detector=yolov8n"], "trains a prompt head: detector=prompt_head"),
        (["cache.store_padding=false"], "the head sees the padding when it is used"),
        (["prompt_sampler=grid"], "prompt_sampler must be prompt_head to measure"),
    ],
)
def test_what_does_not_fit_is_refused(given: list[str], message: str, tmp_path: Path) -> None:
    if "detector=yolov8n" in given:
        given = [*given, "dataset.limit=5"]
        small = ["model@teacher=mini", "~model", "dataset=synthetic", "detector.image_size=64"]
    else:
        small = SMALL
    with pytest.raises(SystemExit, match=message):
        train(*small, *given, f"output_dir={tmp_path / 'out'}")


def test_a_head_is_refused_where_a_yolo_is_trained(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="detector must be a YOLO for this task"):
        train("task=detect", "detector=prompt_head", "~model", "dataset=synthetic", f"output_dir={tmp_path / 'out'}")
    with pytest.raises(SystemExit, match="model must be chosen"):
        evaluate_here("task=evaluate_detector", "detector=prompt_head", "dataset=synthetic", "~model")
