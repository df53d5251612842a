"""The detector against ultralytics' own predictor, border snapping, and files of others."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support import run_reference

from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.model_zoo import PACKAGE_WEIGHTS
from mobilesamv2.models.object_detector import ObjectDetector, build_detector, save_detector, snap_to_border


@pytest.fixture(scope="module")
def detector() -> ObjectDetector:
    torch.manual_seed(0)
    detector = build_detector("yolov8n", image_size=320)
    with torch.no_grad():  # untrained, every confidence is below .02
        for branch in detector.model.model[-1].cv3:
            branch[-1].weight.mul_(30)
            branch[-1].bias.add_(4)
    return detector


@pytest.mark.parametrize("size", [(240, 320), (90, 130), (500, 77)])
@pytest.mark.parametrize("head", ["yolov8n", "yolov8n-seg"])
def test_boxes_are_those_of_ultralytics(size: tuple[int, int], head: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    ours = build_detector(head, image_size=320)
    ours.model.args, ours.model.task = {}, "segment" if head.endswith("-seg") else "detect"
    torch.save({"model": ours.model, "train_args": {}}, tmp_path / "detector.pt")
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    boxes, confidence = build_detector(checkpoint=tmp_path / "detector.pt", image_size=320).detect(
        image, confidence=0.001, nms_iou=0.9, max_boxes=50, snap=0
    )

    from ultralytics import YOLO

    bgr = image[..., ::-1]
    theirs = YOLO(tmp_path / "detector.pt").predict(bgr, imgsz=320, conf=0.001, iou=0.9, max_det=50, verbose=False)[0]
    assert len(boxes) == 50
    if head.endswith("-seg"):  # theirs drops a box whose mask is empty, and a prompt needs no mask
        rows = set(map(tuple, torch.cat([boxes, confidence[:, None]], 1).tolist()))
        assert rows >= set(map(tuple, torch.cat([theirs.boxes.xyxy, theirs.boxes.conf[:, None]], 1).tolist()))
        assert len(theirs.boxes) > 0
    else:
        assert torch.equal(boxes, theirs.boxes.xyxy)
        assert torch.equal(confidence, theirs.boxes.conf)


@pytest.mark.parametrize("head", ["yolov8n", "yolo11n", "yolo26n"])
def test_batches_are_those_of_ultralytics(head: str, tmp_path: Path, photo: np.ndarray) -> None:
    """Images of one size, and of unlike sizes, which both pad to a square."""
    torch.manual_seed(1)
    save_detector(build_detector(head, image_size=160), tmp_path / "detector.pt")
    ours = build_detector(checkpoint=tmp_path / "detector.pt", image_size=160)
    settings = {"confidence": 1e-4, "nms_iou": 0.9, "max_boxes": 20, "snap": 0}
    from ultralytics import YOLO

    yolo = YOLO(tmp_path / "detector.pt")
    yolo.model.fuse = lambda *args, **kwargs: yolo.model  # its own fusion moves the last digits
    for images in ([photo, photo[::-1].copy()], [photo, photo[:, :40], photo[20:70, 20:60]]):
        bgr = [image[..., ::-1] for image in images]
        theirs = yolo.predict(bgr, imgsz=160, conf=1e-4, iou=0.9, max_det=20, verbose=False)
        found = ours.detect_batch(images, **settings)
        assert len(found) == len(images)
        for (boxes, confidence), expected in zip(found, theirs, strict=True):
            assert len(boxes) == 20
            assert torch.equal(boxes, expected.boxes.xyxy)
            assert torch.equal(confidence, expected.boxes.conf)
    for image, (boxes, _) in zip(images[:1] * 2, ours.detect_batch(images[:1] * 2, **settings), strict=True):
        assert torch.allclose(boxes, ours.detect(image, **settings)[0], atol=1e-3)
    assert ours.detect_batch([]) == []


def test_boxes_at_the_demos_settings_are_those_of_ultralytics(detector: ObjectDetector, tmp_path: Path) -> None:
    """1024 pixels, confidence .4, NMS .9, at most 320 boxes, which are reached."""
    save_detector(detector, tmp_path / "detector.pt")
    ours = build_detector(checkpoint=tmp_path / "detector.pt", image_size=1024)
    image = SyntheticDataset(1, (700, 900))[0][0]
    boxes, confidence = ours.detect(image, snap=0)
    from ultralytics import YOLO

    yolo = YOLO(tmp_path / "detector.pt")
    theirs = yolo.predict(image[..., ::-1], imgsz=1024, conf=0.4, iou=0.9, max_det=320, verbose=False)[0].boxes
    assert len(boxes) == 320
    assert torch.equal(boxes, theirs.xyxy)
    assert torch.equal(confidence, theirs.conf)
    assert len(ours.detect(image, snap=0, max_boxes=64)[0]) == 64


def test_a_head_that_needs_no_nms_reaches_the_cap(photo: np.ndarray) -> None:
    """ultralytics' own cap of 300 would go unnoticed."""
    detector = build_detector("yolo26n", image_size=320)
    detector.model.end2end = True
    assert len(detector.detect(photo, confidence=0.0, max_boxes=320)[0]) == 320
    assert len(detector.detect(photo, confidence=0.0, max_boxes=7)[0]) == 7


def test_settings_are_read(detector: ObjectDetector, photo: np.ndarray) -> None:
    boxes, confidence = detector.detect(photo, confidence=0.3, nms_iou=0.9, max_boxes=40, snap=0)
    assert 1 < len(boxes) <= 40
    assert (confidence.diff() <= 0).all()
    assert (confidence >= 0.3).all()
    fewer, _ = detector.detect(photo, confidence=0.3, nms_iou=0.9, max_boxes=3, snap=0)
    assert torch.equal(fewer, boxes[:3])
    assert len(detector.detect(photo, confidence=0.3, nms_iou=0.1, max_boxes=40, snap=0)[0]) < len(boxes)
    assert len(detector.detect(photo, confidence=1.0)[0]) == 0
    snapped, _ = detector.detect(photo, confidence=0.3, nms_iou=0.9, max_boxes=40, snap=320)
    height, width = photo.shape[:2]
    assert torch.equal(snapped, torch.tensor([[0.0, 0, width, height]]).expand(len(boxes), 4))


def test_border_snapping_by_hand() -> None:
    """Nearer than 20 px moves onto the border; exactly 20 px stays."""
    boxes = torch.tensor([[19.9, 20.0, 80.1, 60.0], [50.0, 3.0, 79.9, 60.1], [-4.0, 30.0, 104.0, 90.0]])
    expected = torch.tensor([[0.0, 20.0, 100.0, 60.0], [50.0, 0.0, 79.9, 80.0], [0.0, 30.0, 100.0, 80.0]])
    assert torch.equal(snap_to_border(boxes, (80, 100), 20), expected)
    assert torch.equal(snap_to_border(boxes[:2], (80, 100), 0), boxes[:2])


@pytest.mark.slow
def test_the_released_detectors_format_loads(tmp_path: Path, photo: np.ndarray) -> None:
    """Pickled by ultralytics 8.0, with a segmentation head that has no prototypes."""
    run_reference("object_aware_model.py", tmp_path)
    outputs = torch.load(tmp_path / "outputs.pt")
    detector = build_detector(checkpoint=tmp_path / "ObjectAwareModel.pt", image_size=320)
    with torch.inference_mode():
        predicted = detector.model(outputs["images"])
    predicted = predicted if isinstance(predicted, torch.Tensor) else predicted[0]
    assert torch.allclose(predicted[:, :5], outputs["predictions"][:, :5], atol=1e-3)


def test_a_detector_has_the_size_that_it_was_trained_with(detector: ObjectDetector, tmp_path: Path) -> None:
    """Published files keep that of their demos, whatever they say."""
    for name in ("mine.pt", "ObjectAwareModel.pt"):
        save_detector(detector, tmp_path / name)
    assert build_detector(checkpoint=tmp_path / "mine.pt").image_size == 320
    assert build_detector(checkpoint=tmp_path / "mine.pt", image_size=64).image_size == 64
    assert build_detector(checkpoint=PACKAGE_WEIGHTS / "mini_detector.pt").image_size == 384
    assert build_detector(checkpoint=tmp_path / "ObjectAwareModel.pt").image_size == 1024
    assert build_detector("yolov8n").image_size == 1024
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        build_detector(checkpoint=tmp_path / "mine.pt", image_size=0)
    torch.save({"model": detector.model}, tmp_path / "silent.pt")
    assert build_detector(checkpoint=tmp_path / "silent.pt").image_size == 1024
    torch.save({"model": detector.model, "train_args": {"imgsz": "wide"}}, tmp_path / "odd.pt")
    assert build_detector(checkpoint=tmp_path / "odd.pt", image_size=64).image_size == 64
    for given, size in (([640, 512], 640), (640.0, 640), (None, 1024)):
        torch.save({"model": detector.model, "train_args": {"imgsz": given}}, tmp_path / "other.pt")
        assert build_detector(checkpoint=tmp_path / "other.pt").image_size == size
    with pytest.raises(ValueError, match=r"imgsz in the train_args of .*odd\.pt must be a number of pixels, got .*N\."):
        build_detector(checkpoint=tmp_path / "odd.pt")


class Payload:
    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_unsafe_and_missing_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "executed"
    payloads = [Payload(print, "executed"), Payload(os.system, f"touch {marker}"), Payload(marker.touch)]
    payloads += [
        Payload(eval, f"open({str(marker)!r}, 'w')"),
        Payload(torch.hub.download_url_to_file, "x", str(marker)),
    ]
    for payload in payloads:
        torch.save({"model": payload}, tmp_path / "evil.pt")
        with pytest.raises(ValueError, match=r"evil\.pt is not an ultralytics checkpoint that can be loaded safely"):
            build_detector(checkpoint=tmp_path / "evil.pt")
    assert "executed" not in capsys.readouterr().out
    assert not marker.exists()
    (tmp_path / "broken.pt").write_bytes(b"no")
    torch.save({"model": None}, tmp_path / "empty.pt")
    for name in ("broken.pt", "empty.pt"):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            build_detector(checkpoint=tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"ObjectAwareModel\.pt.*published at"):
        build_detector(checkpoint=tmp_path / "ObjectAwareModel.pt")


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        (
            "yolov99",
            r"name of an ultralytics model, .* got 'yolov99'\. Did you mean .* Supported, .*yolo11\[nsmlx\],",
        ),
        ("yolo8n", r"Did you mean 'yolov8n'\?"),
        ("YOLOv11n", r"Did you mean 'yolo11n'\?"),
        ("weights/my.pt", r"got the weight file 'weights/my\.pt': .* detector\.checkpoint=weights/my\.pt"),
        ("yolov8-world", r"yolov8-world must be one of Detect, .* got WorldDetect, .*yolov8\[nsmlx\]"),
        ("yoloe-11s", "yoloe-11s must be one of Detect, .* got YOLOEDetect"),
        ("yolov8n-pose", "got Pose"),
        ("yolov8", "size of yolov8: one of yolov8n, yolov8s, yolov8m, yolov8l, yolov8x"),
        ("yolo11-seg", "one of yolo11n-seg, "),
    ],
)
def test_an_architecture_that_is_no_detector_is_a_sentence(architecture: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_detector(architecture)


def test_an_architecture_of_one_size_needs_no_letter() -> None:
    assert build_detector("yolov9t").architecture == "yolov9t"
