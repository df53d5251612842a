"""Export to ultralytics' layout, read by ultralytics."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mobilesamv2.cli.main import main
from mobilesamv2.data.sa1b import SA1BDataset
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.writers import write_lvis, write_sa1b_tar
from mobilesamv2.data.yolo_format import outline
from mobilesamv2.masks import boxes_from_rles, decode
from mobilesamv2.models.object_detector import ultralytics_module


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    scenes = SyntheticDataset(4, (90, 120))
    write_sa1b_tar((scenes[i] for i in range(4)), tmp_path / "sa_000000.tar")
    return tmp_path / "sa_000000.tar"


def read(folder: Path, split: str, task: str) -> list[dict]:
    """The labels as ``yolo train`` reads them, in the order of the images' ids."""
    data = ultralytics_module("data.utils").check_det_dataset(str(folder / "data.yaml"), autodownload=False)
    assert data["names"] == {0: "object"}
    dataset = ultralytics_module("data.dataset").YOLODataset(img_path=data[split], data=data, task=task, augment=False)
    return sorted(dataset.labels, key=lambda label: int(Path(label["im_file"]).stem))


@pytest.mark.parametrize("boxes", [False, True])
def test_ultralytics_reads_what_was_converted(
    boxes: bool, tar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "yolo"
    main(["yolo-data", str(out), "--tars", str(tar), "--val", "1", *(["--boxes"] if boxes else [])])
    assert "train: 3 images" in capsys.readouterr().out
    dataset = SA1BDataset(tar)
    assert (out / "images" / "val" / "3.jpg").read_bytes() == dataset.stored_image(3)[1]
    labels = [
        *read(out, "train", "detect" if boxes else "segment"),
        *read(out, "val", "detect" if boxes else "segment"),
    ]
    compared = 0
    for label, (_, truth) in zip(labels, (dataset[i] for i in range(4)), strict=True):
        assert label["shape"] == truth.size
        corners = boxes_from_rles(truth.rles) + torch.tensor([0, 0, 1, 1.0])
        expected = {tuple(box.int().tolist()): rle for box, rle in zip(corners, truth.rles, strict=True)}
        assert len(label["bboxes"]) == len(expected)
        assert (label["cls"] == 0).all()
        centres, sizes = label["bboxes"][:, :2] * (120, 90), label["bboxes"][:, 2:] * (120, 90)
        found = np.concatenate([centres - sizes / 2, centres + sizes / 2], 1)
        for i, box in enumerate(found):
            rle = expected[tuple(np.round(box).astype(int).tolist())]
            assert np.abs(box - np.round(box)).max() < 0.01
            if not boxes:
                polygon = label["segments"][i] * (120, 90)
                mask = decode(rle)
                inside = [
                    cv2.pointPolygonTest(polygon.astype(np.float32)[:, None], (x + 0.5, y + 0.5), False) > 0
                    for y, x in np.argwhere(mask).tolist()
                ]
                compared += len(inside)
                assert np.mean(inside) > 0.9  # an outline cuts the inner corners
    assert boxes or compared > 1000


def test_outlines_by_hand() -> None:
    square = np.ones((2, 3), dtype=bool)
    assert {tuple(p) for p in outline(square).tolist()} == {(0, 0), (3, 0), (3, 2), (0, 2)}
    assert {tuple(p) for p in outline(np.ones((1, 1), dtype=bool)).tolist()} == {(0, 0), (1, 0), (1, 1), (0, 1)}
    parts = np.zeros((3, 11), dtype=bool)
    parts[:, :2], parts[:2, 5:7], parts[2, 10] = True, True, True
    polygon = outline(parts)
    assert (polygon.min(0).tolist(), polygon.max(0).tolist()) == ([0, 0], [11, 3])
    area = cv2.contourArea(polygon.astype(np.float32)[:, None])
    assert area == parts.sum()  # lines there and back enclose nothing
    ring = np.ones((5, 5), dtype=bool)
    ring[2, 2] = False
    assert cv2.contourArea(outline(ring).astype(np.float32)[:, None]) == 25


def test_from_cocos_layout(tmp_path: Path) -> None:
    scenes = SyntheticDataset(2, (60, 80))
    write_lvis((scenes[i] for i in range(2)), tmp_path / "in")
    annotations = tmp_path / "in" / "annotations.json"
    content = json.loads(annotations.read_text())
    content["images"] = [image | {"file_name": f"{image['id']}.jpg"} for image in content["images"]]
    found = next(iter((tmp_path / "in" / "images").rglob("*.*")))
    for image in content["images"]:
        (tmp_path / image["file_name"]).write_bytes(found.read_bytes())
    annotations.write_text(json.dumps(content))
    main(["yolo-data", str(tmp_path / "out"), "--annotations", str(annotations), "--images", str(tmp_path)])
    assert len(list((tmp_path / "out" / "images" / "train").iterdir())) == 2
    assert "val: images/train" in (tmp_path / "out" / "data.yaml").read_text()


def test_what_makes_no_sense_is_refused(tar: Path, tmp_path: Path) -> None:
    for given, message in (
        (["--annotations", "x.json"], "--annotations FILE and --images FOLDER must be given together"),
        (["--tars", str(tar), "--val", "4"], "must be at least 0 and leave images to train on, got 4 of 4"),
        (["--tars", str(tmp_path / "none.tar")], "no tar or folder of tars"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["yolo-data", str(tmp_path / "out"), *given])
