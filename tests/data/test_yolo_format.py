"""Export to ultralytics' layout, read by ultralytics."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mobilesamv2.cli.main import main
from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.sa1b import SA1BDataset
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.writers import write_lvis, write_sa1b_tar
from mobilesamv2.data.yolo_format import outline
from mobilesamv2.masks import boxes_from_rles, decode
from mobilesamv2.models.ultralytics_import import ultralytics_module


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


def save_of_every_kind(folder: Path) -> list[str]:
    """Write images (60, 80) of 12 bits, floats, other formats and other names; return their names."""
    colour = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    deep = np.linspace(0, 4095, 4800).reshape(60, 80)
    image = Image.fromarray(colour)
    exif = Image.Exif()
    exif[0x0112] = 3
    for name in ("a.jpeg", "b.jfif", "c.gif", "d.ppm", "e.bmp", "f.png", "g.tif", "h.jp2"):
        image.save(folder / name)
    image.save(folder / "i.png", "JPEG")
    image.convert("CMYK").save(folder / "j.jpg")
    image.save(folder / "k.tif", exif=exif)
    Image.fromarray(deep.astype(np.uint16)).save(folder / "l.png")
    Image.fromarray((deep / 4095).astype(np.float32)).save(folder / "m.tif")
    cv2.imwrite(str(folder / "n.png"), np.stack([deep] * 3, -1).astype(np.uint16))
    return sorted(path.name for path in folder.iterdir())


def coco_of(names: list[str]) -> dict[str, Any]:
    box = [10, 20, 40, 20, 40, 50, 10, 50]
    return {
        "images": [{"id": i, "file_name": name, "height": 60, "width": 80} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "area": 900, "segmentation": [box]} for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "o"}],
    }


def test_ultralytics_reads_the_pixels_that_are_read_here(tmp_path: Path) -> None:
    """12 bits were 0 to 15 there, and floats and some formats no image."""
    folder, out = tmp_path / "in", tmp_path / "yolo"
    folder.mkdir()
    names = save_of_every_kind(folder)
    (tmp_path / "a.json").write_text(json.dumps(coco_of(names)))
    given = ["--annotations", str(tmp_path / "a.json"), "--images", str(folder)]
    main(["yolo-data", str(out), *given])
    files = {int(path.stem): path for path in (out / "images" / "train").iterdir()}
    copied = {
        names[i]: path.suffix for i, path in files.items() if path.read_bytes() == (folder / names[i]).read_bytes()
    }
    assert copied == {"a.jpeg": ".jpeg", "b.jfif": ".jpg", "e.bmp": ".bmp", "f.png": ".png", "i.png": ".jpg"}
    labels = read(out, "train", "segment")
    assert [int(Path(label["im_file"]).stem) for label in labels] == list(range(len(names)))
    dataset = CocoDataset(tmp_path / "a.json", folder)
    imread = ultralytics_module("utils.patches").imread
    for i, path in files.items():
        seen = np.broadcast_to(imread(str(path))[:, :, ::-1], (60, 80, 3)).astype(int)
        difference = np.abs(seen - dataset.load_image(i))
        assert difference.max() <= (3 if names[i] in ("a.jpeg", "b.jfif", "i.png") else 0), names[i]  # of JPEG decoders
    main(["yolo-data", str(out), *given, "--value-range", "0", "8190", "--upright", "never"])
    again = {names[i]: np.asarray(Image.open(path)) for i, path in files.items()}
    assert again["l.png"].max() == 128
    assert (again["k.tif"] == again["g.tif"]).all()
    with pytest.raises(SystemExit, match=r"c\.gif can't be decoded: it has 80 x 60 pixels, more than max_pixels=4799"):
        main(["yolo-data", str(out), *given, "--max-pixels", "4799"])


def test_what_makes_no_sense_is_refused(tar: Path, tmp_path: Path) -> None:
    for given, message in (
        (["--annotations", "x.json"], "--annotations FILE and --images FOLDER must be given together"),
        (["--tars", str(tar), "--val", "4"], "must be at least 0 and leave images to train on, got 4 of 4"),
        (["--tars", str(tmp_path / "none.tar")], "no tar or folder of tars"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["yolo-data", str(tmp_path / "out"), *given])
