"""Images that EXIF turns, with annotations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.runs import FAST, composed

from mobilesamv2 import masks
from mobilesamv2.cli.main import main
from mobilesamv2.data import orientation
from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.images import read_rgb
from mobilesamv2.data.photos import PhotosDataset
from mobilesamv2.data.sa1b import SA1BDataset
from mobilesamv2.data.yolo_format import write_yolo
from mobilesamv2.recipes.run_folder import run_identity


@pytest.fixture(autouse=True)
def new_run() -> None:
    orientation._warn_of_sizes.reset()
    orientation._warn_of_guess.reset()


STORED_AS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""How an upright image is turned before it is stored, by its EXIF orientation."""

BOX = [10, 20, 40, 20, 40, 60, 10, 60]


def data_set(folder: Path, size: tuple[int, int], tag: int, upright: Any = "auto", annotate: Any = None) -> CocoDataset:
    """An image of brightness 30 with an object of 240, stored turned, with annotations of the upright image."""
    pixels = np.full((*size, 3), 30, np.uint8)
    pixels[20:60, 10:40] = 240
    exif = Image.Exif()
    exif[0x0112] = tag
    folder.mkdir(exist_ok=True)
    image = Image.fromarray(pixels)
    stored = image.transpose(STORED_AS[tag]) if tag in STORED_AS else image
    stored.save(folder / "p.jpg", quality=95, exif=exif)
    height, width = annotate or size
    content = {
        "images": [{"id": 1, "file_name": "p.jpg", "height": height, "width": width}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "area": 1200, "segmentation": [BOX], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "o"}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return CocoDataset(folder / "a.json", folder, upright=upright)


def brightness(dataset: Any) -> int:
    image, truth = dataset[0]
    return round(float(image[masks.decode(truth.rles[0]).astype(bool)].mean()))


@pytest.mark.parametrize("size", [(100, 150), (150, 100), (100, 100)])
@pytest.mark.parametrize("tag", [1, 3, 6, 8])
def test_annotations_lie_on_their_objects(
    tmp_path: Path, size: tuple[int, int], tag: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert brightness(data_set(tmp_path, size, tag)) == 240
    is_decided = tag in (6, 8) and size[0] != size[1]
    said = "its annotated size says" if is_decided else "its annotated size fits both ways"
    assert (said in caplog.text) == (tag != 1)
    assert brightness(data_set(tmp_path, size, tag, "always")) == 240


def test_images_annotated_as_they_are_stored_stay_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = data_set(tmp_path, (100, 150), 6, annotate=(150, 100))
    assert dataset.load_image(0).shape == (150, 100, 3)
    assert not caplog.text
    assert brightness(data_set(tmp_path, (100, 100), 6, "never")) == 30  # as was said
    with pytest.raises(ValueError, match="upright must be auto, always or never, got sideways"):
        data_set(tmp_path, (100, 100), 6, "sideways")


def test_a_mismatch_names_exif(tmp_path: Path) -> None:
    for upright, said in (
        ("never", r"\(100, 150\) .* got \(150, 100\)\. Its EXIF orientation is 6, and dataset.upright is never; auto"),
        ("auto", None),
    ):
        dataset = data_set(tmp_path, (100, 150), 6, upright)
        if said is None:
            dataset.load_image(0)
        else:
            with pytest.raises(ValueError, match=said):
                dataset.load_image(0)
    with pytest.raises(ValueError, match=r"got \(150, 100\)\. Its .* is 6, and neither stored nor turned does it fit"):
        data_set(tmp_path, (100, 150), 6, annotate=(40, 60)).load_image(0)
    with pytest.raises(ValueError, match=r"got \(100, 150\)\.$"):
        data_set(tmp_path, (100, 150), 1, annotate=(150, 100)).load_image(0)


def test_it_is_a_setting_of_the_run(tmp_path: Path) -> None:
    dataset = data_set(tmp_path, (100, 150), 6, "never")
    assert dataset.provenance["upright"] == "never"
    assert "upright" not in data_set(tmp_path, (100, 150), 6).provenance
    identities = [run_identity(composed("dataset=coco", *given), dataset) for given in ([], ["dataset.upright=never"])]
    assert [identity["dataset.upright"] for identity in identities] == ["auto", "never"]


def test_images_of_sa1b_and_without_annotations_are_turned_too(tmp_path: Path) -> None:
    data_set(tmp_path / "coco", (100, 150), 6)
    folder = tmp_path / "extracted"
    folder.mkdir()
    (folder / "sa_7.jpg").write_bytes((tmp_path / "coco" / "p.jpg").read_bytes())
    record = {"image": {"height": 100, "width": 150}, "annotations": [{"segmentation": [BOX], "area": 1200}]}
    (folder / "sa_7.json").write_text(json.dumps(record))
    assert brightness(SA1BDataset(folder)) == 240
    with pytest.raises(ValueError, match=r"sa_7 of .* \(100, 150\), got \(150, 100\)\. Its EXIF orientation is 6"):
        SA1BDataset(folder, upright="never")[0]
    (folder / "sa_7.json").write_text(json.dumps(record | {"image": {"height": 150, "width": 100}}))
    assert SA1BDataset(folder).load_image(0).shape == (150, 100, 3)
    assert PhotosDataset(folder).load_image(0).shape == (100, 150, 3)
    assert PhotosDataset(folder, upright="never").load_image(0).shape == (150, 100, 3)


def test_what_segment_writes_is_read_as_it_was_meant(tmp_path: Path) -> None:
    """Its masks are of the upright image, which dataset=coco reads, of any shape and orientation."""
    for size, tag in (((100, 150), 6), ((100, 100), 8), ((100, 150), 3)):
        folder, out = tmp_path / f"{size[1]}-{tag}", tmp_path / f"out{size[1]}-{tag}"
        data_set(folder, size, tag)
        main(["segment", str(folder / "p.jpg"), "-o", str(out), *FAST])
        assert "of the upright images" in json.loads((out / "masks.json").read_text())["info"]["description"]
        dataset = CocoDataset(out / "masks.json", tmp_path)
        image, truth = dataset[0]
        assert image.shape[:2] == truth.size == size
        assert image[40, 25].min() > 230


def test_data_for_yolo_are_in_the_frame_of_the_annotations(tmp_path: Path) -> None:
    """Its reader turns images as their EXIF orientation says, which would turn those annotated as stored."""
    for upright, corner in (("auto", 240), ("never", 30)):
        dataset = data_set(tmp_path / upright, (100, 100), 6, upright)
        write_yolo(dataset, [0], tmp_path / upright / "yolo", "train")
        [written] = (tmp_path / upright / "yolo" / "images" / "train").iterdir()
        with Image.open(written) as image:
            assert 0x0112 not in image.getexif()
            assert abs(np.asarray(image)[40, 25, 0].astype(int) - corner) < 10


TIFFS: dict[str, Any] = {"raw": {}, "lzw": {"compression": "tiff_lzw"}}


@pytest.mark.parametrize("packed", TIFFS)
@pytest.mark.parametrize("tag", range(1, 9))
def test_tiffs_are_read_as_they_are_stored_too(tmp_path: Path, tag: int, packed: str) -> None:
    """Pillow turns them when it loads them, so that the stored frame has to be made again."""
    pixels = np.random.default_rng(tag).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / "p.tif"
    Image.fromarray(pixels).save(path, exif=exif, **TIFFS[packed])
    with Image.open(path) as image:
        turned = np.asarray(image)
    assert (turned.shape == (7, 5, 3)) == (tag >= 5)
    assert (read_rgb(path, upright="never") == pixels).all()
    assert (read_rgb(path, upright="always") == turned).all()
    if tag >= 5:
        assert (read_rgb(path, upright="auto", annotated_size=lambda: (5, 7)) == pixels).all()
        assert (read_rgb(path, upright="auto", annotated_size=lambda: (7, 5)) == turned).all()


def tiff_data_set(folder: Path, size: tuple[int, int], upright: Any = "auto") -> CocoDataset:
    """A TIFF with the EXIF orientation 6, stored in and annotated with a size (H, W)."""
    dataset = data_set(folder, (size[1], size[0]), 6, upright, annotate=size)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(folder / "p.jpg") as image:
        image.save(folder / "p.tif", exif=exif)
    content = (folder / "a.json").read_text().replace("p.jpg", "p.tif")
    (folder / "a.json").write_text(content)
    return CocoDataset(folder / "a.json", folder, upright=dataset.upright)


def test_annotations_of_tiffs_as_stored_or_turned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for upright, shape in (("auto", (100, 150)), ("never", (100, 150)), ("always", None)):
        dataset = tiff_data_set(tmp_path, (100, 150), upright)
        if shape is not None:
            assert dataset.load_image(0).shape[:2] == shape
            continue
        with pytest.raises(
            ValueError, match=r"got \(150, 100\)\. Its EXIF orientation is 6, and dataset.upright is al"
        ):
            dataset.load_image(0)
    assert not caplog.text
    square = tiff_data_set(tmp_path, (100, 100)).load_image(0)
    assert "its annotated size fits both ways" in caplog.text
    assert (square != tiff_data_set(tmp_path, (100, 100), "never").load_image(0)).any()
