"""Training of the detector: heads, stages, weights of others, and what a run leaves behind."""

import csv
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from support import ROOT, run_reference
from support.runs import evaluate_here, train
from support.training import ADAMW, STILL, StopsAt, trainer
from torch.utils.data import ConcatDataset

from mobilesamv2 import build_sam
from mobilesamv2.callbacks.mask_recall import MaskRecallAtEnd
from mobilesamv2.data.augment import Augmentation
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.detection_samples import DetectionSamples
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.models.object_detector import build_detector, mask_parameters, save_detector
from mobilesamv2.models.ultralytics_import import ultralytics_module
from mobilesamv2.prompts import ObjectAware
from mobilesamv2.tasks.detect import DetectObjects


def detecting(
    architecture: str = "yolov8n", masks: bool = False, augmentation: Augmentation | None = None, **settings
) -> tuple[DetectObjects, TrainingData]:
    torch.manual_seed(0)
    samples = DetectionSamples(SyntheticDataset(8, (64, 96)), 64, augmentation or Augmentation(), masks)
    task = DetectObjects(build_detector(architecture, image_size=64), ADAMW, masks=masks, **settings)
    return task, TrainingData(samples, batch_size=2, validation_images=2, seed=1)


def without_gradient(task: DetectObjects) -> list[str]:
    """Parameters that are to be trained, and that a step leaves without a gradient: DDP would fail."""
    return [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]


class LooksAtGradients(pl.Callback):
    """Notes what has no gradient after each backward pass."""

    def __init__(self) -> None:
        self.missing: list[list[str]] = []

    def on_after_backward(self, trainer: pl.Trainer, module: DetectObjects) -> None:
        self.missing.append(without_gradient(module))


@pytest.mark.parametrize(
    ("architecture", "masks"),
    [
        ("yolov8n", False),
        ("yolov8n-seg", True),
        ("yolov8n-seg", False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("yolo11n", False),
                ("yolo12n", False),
                ("yolov9t", False),
                ("yolov10n", False),
                ("yolo26n", False),
                ("yolo26n-seg", True),
                ("yolo26n-seg", False),
                ("yolo11n-seg", True),
            ]
        ),
    ],
)
def test_heads_train_save_and_load(architecture: str, masks: bool, tmp_path: Path) -> None:
    task, data = detecting(architecture, masks)
    before = {name: p.clone() for name, p in task.named_parameters()}
    gradients = LooksAtGradients()
    runner = trainer(tmp_path, max_steps=3, max_epochs=-1, callbacks=[gradients])
    runner.fit(task, datamodule=data)
    assert gradients.missing == [[]] * 3
    frozen = {id(p) for p in mask_parameters(task.detector.model)} if not masks else set()
    for name, parameter in task.named_parameters():
        fixed = id(parameter) in frozen or ".dfl." in name
        assert parameter.requires_grad != fixed, name
        assert not fixed or torch.equal(parameter, before[name]), name
    assert torch.isfinite(runner.callback_metrics["train/loss"])
    assert ("train/seg_loss" in runner.callback_metrics) == masks

    save_detector(task.detector, tmp_path / "detector.pt")
    image = SyntheticDataset(1, (64, 96))[0][0]
    again = build_detector(checkpoint=tmp_path / "detector.pt", image_size=64)
    settings = {"confidence": 1e-4, "nms_iou": 0.9, "max_boxes": 30, "snap": 0}
    mine, theirs = (d.eval().detect(image, **settings) for d in (task.detector, again))
    assert len(mine[0]) == 30
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    from ultralytics import YOLO

    yolo = YOLO(tmp_path / "detector.pt")
    assert yolo.names == {0: "object"}
    if not architecture.endswith("-seg"):  # there YOLO.predict drops boxes whose mask is empty
        found = yolo.predict(image[..., ::-1], imgsz=64, conf=1e-4, iou=0.9, max_det=30, verbose=False)[0].boxes
        assert torch.allclose(found.conf, mine[1], rtol=1e-2)  # theirs is fused, and untrained confidences are close
        assert (torch.cdist(found.xyxy, mine[0]).amin(1) < 0.1).sum() >= 24


@pytest.mark.slow
def test_learns_one_scene(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = build_detector("yolov8n", image_size=128)
    scene = SyntheticDataset(1, (128, 128), seed=3, layout="hard")
    task = DetectObjects(detector, ADAMW, batchnorm_momentum=0.2)
    losses: list[float] = []
    watch = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda t, *args: losses.append(float(t.callback_metrics["train/loss"]))
    )
    runner = trainer(tmp_path, max_epochs=30, callbacks=[watch])
    data = TrainingData(DetectionSamples(ConcatDataset([scene] * 5), 128), batch_size=4, validation_images=1)
    runner.fit(task, datamodule=data)
    assert losses[-1] < 0.6 * losses[0]
    assert runner.callback_metrics["val/box_recall_50"] > 0
    assert runner.callback_metrics["val/box_ar_320"] > 0
    rows = list(csv.DictReader((tmp_path / "calibration.csv").open()))
    assert [row["confidence"] for row in rows][:2] == ["0.05", "0.1"]
    for column in ("boxes_per_image", "box_recall_50"):
        falling = [float(row[column]) for row in rows]
        assert falling == sorted(falling, reverse=True)
    assert len(detector.eval().detect(scene[0][0], confidence=0.01)[0]) > 0


def test_images_without_objects_train_too(tmp_path: Path) -> None:
    class Empty(SyntheticDataset):
        def __getitem__(self, index: int):
            image, truth = super().__getitem__(index)
            return image, type(truth)(truth.image_id, truth.size, [], [], [])

    for architecture, masks in (("yolov8n", False), ("yolov8n-seg", True)):
        task = DetectObjects(build_detector(architecture, image_size=64), ADAMW, masks=masks)
        samples = DetectionSamples(Empty(4, (64, 96)), 64, Augmentation(), masks)
        gradients = LooksAtGradients()
        runner = trainer(tmp_path, max_steps=1, max_epochs=-1, callbacks=[gradients])
        runner.fit(task, datamodule=TrainingData(samples, batch_size=2, validation_images=2))
        assert gradients.missing == [[]]
        assert torch.isfinite(runner.callback_metrics["train/loss"])


@pytest.mark.slow
def test_a_mosaic_run_resumes_exactly(tmp_path: Path) -> None:
    def fit(stop: int | None = None, resume: bool = False) -> dict[str, torch.Tensor]:
        task, data = detecting()
        keeps = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
        stops = [] if stop is None else [StopsAt(stop, at_the_end=False)]
        runner = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[keeps, *stops])
        path = tmp_path / "last.ckpt" if resume else None
        try:
            runner.fit(task, datamodule=data, ckpt_path=path, weights_only=True)
        except RuntimeError as error:
            assert str(error) == "stopped"  # noqa: PT017
        return {name: value.clone() for name, value in task.state_dict().items()}

    whole = fit()
    for checkpoint in tmp_path.glob("*.ckpt"):
        checkpoint.unlink()
    fit(stop=4)
    resumed = fit(resume=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_the_loss_is_ultralytics_own() -> None:
    """Box loss alone with a segmentation head is that of a detection head; the masks' gain scales their part alone."""
    task, data = detecting("yolov8n-seg", masks=True, augmentation=Augmentation(**STILL), mask_gain=15.0)
    task.trainer = trainer(Path("."), max_steps=1)
    model, batch = task.detector.model.train(), next(iter(data.train_dataloader()))
    model.args = task._gains
    task._loss = model.init_criterion()
    task.log = task.log_dict = lambda *args, **kwargs: None
    with torch.no_grad():
        loss = task.training_step(batch, 0)
        predictions = model(batch["img"].float() / 255)
        of_all, parts = task._loss(predictions, batch)
        of_boxes, _ = ultralytics_module("nn.tasks").DetectionModel.init_criterion(model)(predictions, batch)
    assert list(parts) == ["box_loss", "seg_loss", "cls_loss", "dfl_loss", "sem_loss"]
    assert loss.item() == pytest.approx((of_all.sum() + of_all[1]).item() / 2, rel=1e-4)
    assert of_all[[0, 2, 3]].sum().item() == pytest.approx(of_boxes.sum().item(), rel=1e-5)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    detector = build_detector("yolov8n", image_size=64)
    with pytest.raises(ValueError, match=r"requires a segmentation head: set detector.architecture=yolov8x-seg"):
        DetectObjects(detector, ADAMW, masks=True)
    detector.image_size = 100
    with pytest.raises(ValueError, match=r"must be a multiple of the model's stride 32, got 100"):
        DetectObjects(detector, ADAMW)
    for name in ("rtdetr-l", "yolov8n-cls", "yolov8n-pose"):
        with pytest.raises(ValueError, match=rf"The head of ultralytics' {name} must be one of Detect, .*, got \w+"):
            build_detector(name)


def test_weights_of_eighty_classes_become_a_detector_of_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    theirs = ultralytics_module("nn.tasks").DetectionModel("yolov8n.yaml", nc=80, verbose=False)
    theirs.args = {}
    for parameter in theirs.parameters():
        parameter.requires_grad = False  # as ultralytics publishes them
    torch.save({"model": theirs.half(), "train_args": {}}, tmp_path / "yolov8n.pt")
    eighty = build_detector(checkpoint=tmp_path / "yolov8n.pt", image_size=64)
    with pytest.raises(ValueError, match=r"must have one class, got 80. Set detector.one_class=true"):
        DetectObjects(eighty, ADAMW)
    with caplog.at_level(logging.WARNING):
        one = build_detector(checkpoint=tmp_path / "yolov8n.pt", image_size=64, one_class=True)
    assert "6 of 355 tensors are re-initialized: model.22.cv3.0.2.weight" in caplog.text
    anew = [name for name, value in one.model.state_dict().items() if name not in caplog.text]
    assert all(torch.equal(one.model.state_dict()[name], eighty.model.state_dict()[name]) for name in anew)
    DetectObjects(one, ADAMW)
    assert {name for name, p in one.model.named_parameters() if not p.requires_grad} == {"model.22.dfl.conv.weight"}


@pytest.mark.slow
def test_the_released_detector_trains_on(tmp_path: Path) -> None:
    run_reference("object_aware_model.py", tmp_path)
    detector = build_detector(checkpoint=tmp_path / "ObjectAwareModel.pt", image_size=64, one_class=True)
    _, before = detector.eval().detect(SyntheticDataset(1)[0][0], confidence=1e-4, max_boxes=5)
    task = DetectObjects(detector, ADAMW)
    _, data = detecting()
    gradients = LooksAtGradients()
    trainer(tmp_path, max_steps=2, max_epochs=-1, callbacks=[gradients]).fit(task, datamodule=data)
    unused = {name for names in gradients.missing for name in names}
    assert unused == set()
    save_detector(detector, tmp_path / "detector.pt")
    trained = build_detector(checkpoint=tmp_path / "detector.pt")  # at 64 pixels too
    _, after = trained.detect(SyntheticDataset(1)[0][0], confidence=1e-4, max_boxes=5)
    assert not torch.equal(before, after)
    from ultralytics import YOLO

    assert YOLO(tmp_path / "detector.pt").task == "detect"


def test_a_run_ends_with_masks_of_a_given_sam(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["experiment=detect_yolov8n_synthetic", "detector.image_size=64", "dataset.limit=6", "validation_images=2"]
    given += ["model=mini", "prompt_sampler.confidence=0.0001", "prompt_sampler.max_prompts=20"]
    record = tmp_path / "run.json"
    for _ in ("once", "again, as after a kill while the masks were measured"):
        train(*given, f"output_dir={tmp_path}", "trainer.max_epochs=1", "samples.augmentation.mosaic=1")
        printed = capsys.readouterr().out
        assert "mask AR@K of 2 validation images: 10 0." in printed
        content = json.loads(record.read_text())
        assert content.pop("result")["steps"] > 0
        record.write_text(json.dumps(content))
    [command] = [line.partition("next: mobilesamv2 evaluate ")[2] for line in printed.splitlines() if "next: " in line]
    measured = tmp_path / "measured"
    evaluate_here(*command.split(), "dataset.limit=2", "trainer.accelerator=cpu", f"output_dir={measured}")
    assert json.loads((measured / "results.json").read_text())["protocol"]["num_images"] == 2
    assert (tmp_path / "best" / "detector.pt").is_file()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    for column in ("val/mask_ar_10", "val/mask_ar_1000", "val/box_ar_s_320", "val/box_recall_75", "val/boxes_conf_40"):
        assert [float(row[column]) >= 0 for row in rows if row[column]] == [True], column
    assert [float(row["train/boxes_merged"]) for row in rows if row["train/boxes_merged"]] == [0.0]
    with pytest.raises(SystemExit, match="prompt_sampler must be object_aware"):
        train(*given[:4], "model=mini", "prompt_sampler=grid", f"output_dir={tmp_path / 'other'}")


def test_mask_recall_is_of_the_images_of_validation(tmp_path: Path) -> None:
    """With the objects' own masks, found in the images of validation alone, it is 1."""
    task, data = detecting()
    at_the_end = MaskRecallAtEnd(build_sam("mini"), ObjectAware(task.detector))
    truths = {image.tobytes(): truth for image, truth in (SyntheticDataset(8, (64, 96))[i] for i in data.validation)}

    def perfect(image: np.ndarray) -> SimpleNamespace:
        rles = truths[image.tobytes()].rles
        return SimpleNamespace(rles=rles, scores=torch.ones(len(rles)))

    at_the_end.segevery = perfect  # pyright: ignore
    perfect.segany = SimpleNamespace(sam=build_sam("mini"))
    noted = CSVLogger(tmp_path, name="", version="")
    trainer(tmp_path, max_epochs=1, callbacks=[at_the_end], logger=noted).fit(task, datamodule=data)
    last = list(csv.DictReader((tmp_path / "metrics.csv").open()))[-1]
    assert float(last["val/mask_ar_1000"]) == 1.0
    assert int(at_the_end.recall.n_gt[0]) == sum(len(truth.rles) for truth in truths.values())


def test_boxes_left_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Twice(SyntheticDataset):
        def __getitem__(self, index: int):
            image, truth = super().__getitem__(index)
            both = (truth.rles * 2, truth.areas * 2, truth.frequencies * 2)
            return image, type(truth)(truth.image_id, truth.size, *both)

    scenes = Twice(6, (64, 64))
    task = DetectObjects(build_detector("yolov8n", image_size=64), ADAMW)
    runner = trainer(tmp_path, max_epochs=1)
    with caplog.at_level(logging.INFO):
        runner.fit(task, datamodule=TrainingData(DetectionSamples(scenes, 64), batch_size=2, validation_images=2))
    merged = sum(len(scenes[i][1].rles) // 2 for i in range(4))
    assert runner.callback_metrics["train/boxes_merged"] == merged
    assert f"0 boxes of less than a pixel dropped, {merged} duplicates merged" in caplog.text
    assert np.isfinite(float(runner.callback_metrics["train/loss"]))


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    """Nothing is learnt, so that the weights are the same; one image at a time, so that the digits are."""
    given = ["experiment=detect_yolov8n_synthetic", "detector.image_size=256", "dataset.limit=9", "validation_images=5"]
    given += ["optimizer.lr=0", "task.batchnorm_momentum=0.0", "batch_size=1", "num_workers=0", "model=mini"]
    given += ["trainer.accelerator=cpu", "trainer.max_epochs=1", "+trainer.enable_progress_bar=false"]
    given += ["prompt_sampler.max_prompts=20", f"detector.checkpoint={tmp_path / 'confident.pt'}"]
    torch.manual_seed(0)
    confident = build_detector("yolov8n", image_size=256)
    with torch.no_grad():  # untrained, every confidence is below that of a box
        for branch in confident.model.model[-1].cv3:
            branch[-1].weight.mul_(30)
            branch[-1].bias.add_(4)
        for branch in confident.model.model[-1].cv2:  # and its boxes span fifteen strides; here it is four
            branch[-1].bias.copy_(-(torch.arange(16) - 2.0).square().repeat(4))
    save_detector(confident, tmp_path / "confident.pt")
    values = []
    for devices in (1, 2):
        out = tmp_path / str(devices)
        command = [sys.executable, str(ROOT / "train.py"), *given, f"trainer.devices={devices}", f"output_dir={out}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        rows = list(csv.DictReader((out / "metrics.csv").open()))
        found = {name: row[name] for row in rows for name in row if row[name] and name.startswith("val/")}
        values.append(found | {"calibration": (out / "calibration.csv").read_text()})
    assert values[0] == values[1]
    assert "val/mask_ar_1000" in values[0]
    assert float(values[0]["val/box_ar_320"]) > 0


def test_the_first_layers_may_stay_as_they_are(tmp_path: Path) -> None:
    task, data = detecting(freeze=10)
    before = {key: value.clone() for key, value in task.detector.state_dict().items()}
    trainer(tmp_path, max_steps=1).fit(task, datamodule=data)
    state = task.detector.state_dict()
    changed = {int(key.split(".")[2]) for key, value in state.items() if not torch.equal(value, before[key])}
    assert min(changed) >= 10  # statistics of batch norms included
    with pytest.raises(ValueError, match=r"task\.freeze must be below the detector's 23 layers, got 23"):
        detecting(freeze=23)
