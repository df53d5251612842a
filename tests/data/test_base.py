"""A data set is told from one with the same ids, without its images being read."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilesamv2.data import base
from mobilesamv2.data.base import ImageDataset
from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.photos import PhotosDataset
from mobilesamv2.data.sa1b import SA1BDataset
from mobilesamv2.data.synthetic.dataset import SyntheticDataset


def write_coco(folder: Path, shift: int = 0, noise: int = 0, bad: bool = False) -> None:
    """Four images with a square each."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 1 + noise, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": 32, "width": 48})
        x, y = 4 + shift, 5
        square = [[x, y, x + 9, y, x + 9, y + 9, x, y + 9]]
        annotations.append({"id": i + 1, "image_id": i + 1, "category_id": 1, "area": 81, "segmentation": square})
    if bad:
        annotations[0]["segmentation"] = [[1]]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (folder / "file.json").write_text(json.dumps(content))


def coco(folder: Path, **settings) -> CocoDataset:
    return CocoDataset(folder / "file.json", folder / "images", **settings)


def write_sa1b(folder: Path, left: str = "1") -> None:
    folder.mkdir(parents=True)
    for i in (3, 4, 5):
        Image.new("RGB", (16, 12), (i, 0, 0)).save(folder / f"sa_{i}.jpg")
        annotations = [{"segmentation": [[float(left), 1, 9, 1, 9, 9, float(left), 9]], "area": 64}]
        record = {"image": {"height": 12, "width": 16}, "annotations": annotations}
        (folder / f"sa_{i}.json").write_text(json.dumps(record))


def write_tar(folder: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    return path


def test_other_annotations_and_other_photos_of_the_same_ids_differ(tmp_path: Path) -> None:
    write_coco(tmp_path / "a")
    write_coco(tmp_path / "moved", shift=7)
    write_coco(tmp_path / "noise", noise=250)
    first, moved, noise = (coco(tmp_path / name).fingerprint() for name in ("a", "moved", "noise"))
    assert moved["annotations"] != first["annotations"]
    assert moved["images"] == first["images"]
    assert noise["annotations"] == first["annotations"]
    assert noise["images"] != first["images"]
    (tmp_path / "a" / "images" / "2.png").unlink()
    missing = coco(tmp_path / "a").fingerprint()
    assert missing["images"] != first["images"]  # and not an error: it may be left out
    assert coco(tmp_path / "moved", limit=2).fingerprint()["images"] != moved["images"]


def test_a_copy_elsewhere_is_the_same_and_so_is_one_whose_faults_are_left_out(tmp_path: Path) -> None:
    write_coco(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "c")
    assert coco(tmp_path / "a").fingerprint() == coco(tmp_path / "b" / "c").fingerprint()
    left_out = coco(tmp_path / "a", bad_annotations="leave_out")
    assert left_out.fingerprint() == coco(tmp_path / "a").fingerprint()
    photos: list[ImageDataset] = [PhotosDataset(tmp_path / name / "images") for name in ("a", "b/c")]
    assert photos[0].fingerprint() == photos[1].fingerprint()
    Image.new("RGB", (99, 99)).save(tmp_path / "b" / "c" / "images" / "0.png")
    assert photos[0].fingerprint()["images"] != photos[1].fingerprint()["images"]
    assert photos[0].fingerprint()["annotations"] is None


def test_sa1b_is_told_by_lengths_and_by_the_content_of_some_annotations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sa1b(tmp_path / "a")
    write_sa1b(tmp_path / "same_length", left="2")
    write_sa1b(tmp_path / "longer", left="2.5")
    tar = write_tar(tmp_path / "a", tmp_path / "a.tar")
    first = SA1BDataset(tmp_path / "a").fingerprint()
    assert SA1BDataset(tar).fingerprint() == first
    assert SA1BDataset(write_tar(tmp_path / "a", tmp_path / "elsewhere" / "b.tar")).fingerprint() == first
    for name in ("same_length", "longer"):
        write_tar(tmp_path / name, tar)
        for changed in (SA1BDataset(tmp_path / name).fingerprint(), SA1BDataset(tar).fingerprint()):
            assert changed["annotations"] != first["annotations"]
            assert changed["images"] == first["images"]
    write_tar(tmp_path / "a", tar)
    dataset = SA1BDataset(tar)
    monkeypatch.setattr(base, "FINGERPRINTED", 2)
    read = []
    monkeypatch.setattr(dataset, "_read", lambda index, column: read.append(index) or b"")
    dataset.fingerprint()
    assert read == [0, 2]
    (tmp_path / "a" / "sa_4.jpg").unlink()
    dataset = SA1BDataset(tmp_path / "same_length")
    Image.new("RGB", (64, 64)).save(tmp_path / "same_length" / "sa_4.jpg")
    assert dataset.fingerprint()["images"] != first["images"]
    (tmp_path / "same_length" / "sa_4.jpg").unlink()
    (tmp_path / "same_length" / "sa_5.json").unlink()
    assert dataset.fingerprint()["images"] != first["images"]


def test_scenes_that_are_drawn_are_told_by_their_settings() -> None:
    scenes = [SyntheticDataset(3, (64, 64), seed=seed).fingerprint() for seed in (0, 0, 1)]
    assert scenes[0] == scenes[1] != scenes[2]
