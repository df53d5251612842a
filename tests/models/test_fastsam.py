"""Masks without prompts: against ultralytics' own, by hand, and as a user evaluates them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import run_reference
from support.runs import evaluate_here
from torch import nn

from mobilesamv2 import masks as mask_ops
from mobilesamv2.cli.main import main as cli
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.writers import write_lvis
from mobilesamv2.models.fastsam import FastSam
from mobilesamv2.models.object_detector import ObjectDetector, build_detector, save_detector
from mobilesamv2.models.ultralytics_import import ultralytics_module
from mobilesamv2.models.yolo_masks import encode_prototype_masks
from mobilesamv2.structures import GroundTruth

SIZES = [(240, 320), (90, 130), (500, 77), (64, 64), (700, 1000)]


@torch.no_grad()
def network(classes: int = 1) -> ObjectDetector:
    """A small YOLO with random weights whose statistics fit a scene: confidences spread, and masks have edges."""
    torch.manual_seed(1)
    model = ultralytics_module("nn.tasks").SegmentationModel("yolov8n-seg.yaml", nc=classes, verbose=False)
    detector = ObjectDetector(model, image_size=320)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    detector.train()
    model(detector.letterbox([scene((240, 320))] * 2))
    return detector.eval()


def scene(size: tuple[int, int]) -> np.ndarray:
    return SyntheticDataset(1, size, layout="hard")[0][0]


@pytest.fixture(scope="module")
def detector() -> ObjectDetector:
    return network()


@pytest.fixture(scope="module")
def weights(detector: ObjectDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "network.pt"
    save_detector(detector, path)
    return path


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_those_of_ultralytics_own_functions(detector: ObjectDetector, size: tuple[int, int]) -> None:
    segmenter = FastSam(detector, confidence=1e-4, nms_iou=0.9, max_masks=100)
    output = segmenter.predict(scene(size))
    found = segmenter.masks(output)

    (rows,) = ultralytics_module("utils.nms").non_max_suppression(
        output.predictions.clone(), 1e-4, 0.9, agnostic=True, max_det=100, nc=1
    )
    ops = ultralytics_module("utils.ops")
    boxes = ops.scale_boxes(output.input_size, rows[:, :4], size)
    theirs = ops.process_mask_native(output.prototypes, rows[:, 6:], boxes, size).bool()
    kept = theirs.flatten(1).any(1)
    assert 70 < len(found.rles) == int(kept.sum()) <= 100
    assert torch.equal(found.boxes_xyxy, boxes[kept])
    assert torch.equal(found.scores, rows[kept, 4])
    ours = torch.from_numpy(np.stack([mask_ops.decode(rle) for rle in found.rles]))
    covered = int(theirs.sum())
    assert (boxes[kept, 2:] - boxes[kept, :2]).prod(1).sum() > 2 * covered  # masks that are not just their boxes
    assert int((ours != theirs[kept]).sum()) <= covered * 1e-6  # a logit of 0, rounded otherwise


@pytest.mark.parametrize("classes", [1, 3])
def test_masks_are_those_of_yolo_predict(classes: int, tmp_path: Path) -> None:
    """Classes play no part: ``agnostic_nms``. Both fold batch norms; random weights enlarge the last digits."""
    detector = network(classes)
    save_detector(detector, tmp_path / "network.pt")
    image = scene((90, 130))
    ours = build_detector(checkpoint=tmp_path / "network.pt", image_size=320).fuse_()
    found = FastSam(ours, 0.01, 0.7, 50)(image)
    from ultralytics import YOLO

    settings = {"imgsz": 320, "conf": 0.01, "iou": 0.7, "max_det": 50, "agnostic_nms": True, "retina_masks": True}
    theirs = YOLO(tmp_path / "network.pt").predict(image[..., ::-1], **settings, verbose=False)[0]
    assert 10 < len(found.rles) == len(theirs.boxes) <= 50
    assert torch.allclose(found.scores, theirs.boxes.conf, atol=1e-3)
    assert (found.scores.diff() <= 0).all()
    assert classes == 1 or len(theirs.boxes.cls.unique()) > 1
    masks = mask_ops.encode(theirs.masks.data.bool().transpose(1, 2))
    assert (mask_ops.iou(found.rles, masks).max(0) > 0.98).all()


def test_masks_by_hand() -> None:
    """Two cells side by side, 1 and -1, over 8 pixels: the logit falls below 0 between columns 3 and 4."""
    prototypes = torch.tensor([[[1.0, -1.0], [1.0, -1.0]]])
    wide, narrow = [1.2, 2, 6, 5.5], [1.2, 1, 1.9, 7]
    boxes = torch.tensor([wide, wide, [0, 0, 8, 8], [4, 0, 8, 8], [2, 2, 2, 7], narrow])
    coefficients = torch.tensor([[1.0], [-2.0], [0.5], [1.0], [1.0], [1.0]])
    rles = encode_prototype_masks(prototypes, coefficients, boxes, (8, 8))
    expected = torch.zeros(3, 8, 8, dtype=torch.bool)  # (D, W, H)
    expected[0, 2:4, 2:6] = True  # a pixel is in a box from its left edge up to its right one
    expected[1, 4:6, 2:6] = True
    expected[2, :4] = True
    assert rles[:3] == mask_ops.encode(expected)
    assert rles[3:] == [None, None, None]


def test_a_mask_of_a_part_is_encoded_as_one_of_the_image() -> None:
    generator = torch.Generator().manual_seed(0)
    for x, y, w, h in ((0, 0, 9, 7), (3, 0, 6, 7), (2, 3, 5, 4), (0, 2, 1, 3), (8, 6, 1, 1)):
        for share in (0.0, 0.3, 0.8, 1.0):
            part = torch.rand(w, h, generator=generator) < share
            whole = torch.zeros(1, 9, 7, dtype=torch.bool)
            whole[0, x : x + w, y : y + h] = part
            rle = mask_ops.encode_crop(part.numpy(), (x, y), (7, 9))
            assert rle == (mask_ops.encode(whole)[0] if part.any() else None)


def test_settings_are_read(detector: ObjectDetector) -> None:
    image = scene((90, 130))
    every = FastSam(detector, 0.01, 0.9, 60)(image)
    assert len(FastSam(detector, 0.01, 0.3, 60)(image).rles) < len(every.rles)
    few = FastSam(detector, 0.01, 0.9, 5)(image).rles  # boxes whose mask has no pixel count among the five
    assert 0 < len(few) <= 5
    assert few == every.rles[: len(few)]
    bound = float(every.scores[10])
    assert FastSam(detector, bound, 0.9, 60)(image).rles == every.rles[:10]
    none = FastSam(detector, confidence=1.0)(image)
    assert (none.rles, none.boxes_xyxy.shape, none.scores.shape) == ([], (0, 4), (0,))


def test_folding_batch_norms_changes_nothing_to_speak_of(weights: Path) -> None:
    plain, folded = (build_detector(checkpoint=weights, image_size=320) for _ in range(2))
    assert any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    folded.fuse_()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    pixels = plain.letterbox([scene((90, 130))])
    with torch.inference_mode():
        for ours, theirs in zip(plain.forward_raw(pixels, 10), folded.forward_raw(pixels, 10), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(ours.abs().max()))


@pytest.mark.slow
def test_fastsams_format_loads(tmp_path: Path) -> None:
    """Pickled by ultralytics 8.0, as FastSAM's weights are."""
    run_reference("object_aware_model.py", tmp_path)
    outputs = torch.load(tmp_path / "outputs.pt")
    detector = build_detector(checkpoint=tmp_path / "FastSAM-x.pt", image_size=320)
    with torch.inference_mode():
        predictions, prototypes = detector.forward_raw(outputs["images"], 10)
    assert torch.allclose(predictions, outputs["predictions"], atol=1e-3)
    assert torch.allclose(prototypes, outputs["prototypes"], atol=1e-5)
    assert detector.architecture == "yolov8n-seg"
    FastSam(detector.fuse_(), max_masks=5)(scene((90, 130)))
    with pytest.raises(ValueError, match="got one that predicts boxes only"):
        FastSam(build_detector(checkpoint=tmp_path / "ObjectAwareModel.pt"))


@pytest.mark.slow
def test_an_evaluation_stands_beside_that_of_a_sam(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objects are masks that the network finds, so that it finds them again, and K tells them apart."""
    segmenter = FastSam(build_detector(checkpoint=weights, image_size=160))
    drawn = SyntheticDataset(4, (64, 64), layout="hard")
    found = [segmenter(image).rles[:20] for image, _ in drawn]
    truths = [
        GroundTruth(i + 1, (64, 64), rles, mask_ops.areas(rles).tolist(), ["f"] * 20) for i, rles in enumerate(found)
    ]
    write_lvis(((drawn[i][0], truth) for i, truth in enumerate(truths)), tmp_path / "scenes")
    scenes = [f"dataset.annotations={tmp_path}/scenes/annotations.json", f"dataset.images={tmp_path}/scenes/images"]
    scenes += ["trainer.accelerator=cpu", "num_workers=0", "task.save_masks=true"]
    ours = [
        "task=evaluate_fastsam",
        "detector=by_name",
        "detector.architecture=yolov8n-seg",
        f"detector.checkpoint={weights}",
    ]
    ours += ["detector.image_size=160", "task.max_masks=200", *scenes, f"output_dir={tmp_path}/runs/network"]
    evaluate_here("model=mini", "prompt_sampler.points_per_side=4", *scenes, f"output_dir={tmp_path}/runs/sam")
    evaluate_here(*ours)
    printed = capsys.readouterr().out
    for words in ("AR@1000", "\nnetwork  ", "\npostprocessing  ", "0.0 prompts per image"):
        assert words in printed
    result = json.loads((tmp_path / "runs" / "network" / "results.json").read_text())
    protocol, of_sam = result["protocol"], json.loads((tmp_path / "runs" / "sam" / "results.json").read_text())
    assert result.keys() == of_sam.keys()
    assert result["metrics"].keys() == of_sam["metrics"].keys()
    assert result["n_gt"] == of_sam["n_gt"]
    assert result["metrics"]["AR@1000"] > 0.98 > 0.55 > result["metrics"]["AR@10"] > of_sam["metrics"]["AR@1000"]
    assert protocol["image_list_sha256"] == of_sam["protocol"]["image_list_sha256"]
    asked = {"network": "yolov8n-seg", "confidence": 0.001, "nms_iou": 0.9, "max_masks": 200, "k_caps": "masks"}
    assert asked.items() <= protocol.items()
    assert 0 < protocol["mean_proposals"] <= 200
    assert result["ms"].keys() == {"network", "postprocessing", "total"}
    assert all(ms > 0 for ms in result["ms"].values())
    assert result["run"]["model"] is None
    assert len(result["run"]["detector"]["sha256"][0]) == 64

    cli(["report", "compare", f"{tmp_path}/runs/sam", f"{tmp_path}/runs/network"])
    cli(["report", "table", f"SAM={tmp_path}/runs/sam", f"YOLO={tmp_path}/runs/network"])
    cli(["report", str(tmp_path / "runs"), "--baseline", "sam"])
    cli(["report", "picture", f"{tmp_path}/runs/sam", f"{tmp_path}/runs/network", "-o", f"{tmp_path}/masks.png"])
    printed = capsys.readouterr().out
    for words in ("4 images, 2000 resamples", "| YOLO", "| GridProposals |", " prompt-free |"):
        assert words in printed

    evaluate_here(*scenes[:2], f"predictions={tmp_path}/runs/network/masks", f"output_dir={tmp_path}/again")
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert all(again[key] == result[key] for key in ("metrics", "interval", "n_gt"))
    monkeypatch.setattr(FastSam, "predict", None)  # all images are done
    evaluate_here(*ours)
    assert json.loads((tmp_path / "runs" / "network" / "results.json").read_text()) == result


def test_an_evaluation_that_finds_nothing(weights: Path, tmp_path: Path) -> None:
    given = [
        "task=evaluate_fastsam",
        "dataset=synthetic",
        "dataset.limit=2",
        "dataset.size=[64,64]",
        "num_workers=0",
    ]
    given += [
        "detector=by_name",
        "detector.architecture=yolov8n-seg",
        f"detector.checkpoint={weights}",
        "detector.image_size=64",
        "task.confidence=1",
    ]
    evaluate_here(*given, "trainer.accelerator=cpu", f"output_dir={tmp_path}")
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["metrics"]["AR@1000"] == 0
    assert result["protocol"]["images_without_proposals"] == 2
    cli(["report", str(tmp_path)])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["detector=fastsam_x"], r"no weight file weights/FastSAM-x\.pt.*published at https://.*put it at weights"),
        (["detector=fastsam_s", "detector.checkpoint=FastSAM-s.pt"], r"no weight file FastSAM-s\.pt.*FastSAM-s\.pt"),
        (["~detector"], r"detector must be chosen for this run"),
        (["detector=yolov8n"], r"predicts boxes only.*detector=fastsam_x"),
        (["task.confidence=2"], r"task\.confidence must be between 0 and 1, got 2"),
        (["task.max_masks=0"], "max_masks must be at least 1, got 0"),
        (["compile=true"], "compile must not be set: FastSAM takes one image"),
        (["batch_size=2"], "batch_size must not be set"),
    ],
)
def test_errors_are_sentences(tmp_path: Path, overrides: list[str], message: str) -> None:
    given = [
        "task=evaluate_fastsam",
        "detector=by_name",
        "detector.architecture=yolov8n-seg",
        "dataset=synthetic",
        "dataset.limit=1",
    ]
    if "detector" in overrides[0]:
        given = [one for one in given if not one.startswith("detector")]
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        evaluate_here(*given, *overrides, f"output_dir={tmp_path}")
