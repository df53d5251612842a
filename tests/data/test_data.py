"""Annotation and results files, sound and broken."""

import gzip
import importlib.util
import json
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT

from mobilesamv2.cli.segment import segment_images
from mobilesamv2.data.base import ImageDataset, choose_images
from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.json_files import read_json
from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.data.photos import PhotosDataset
from mobilesamv2.data.results_files import read_boxes, read_results
from mobilesamv2.data.sa1b import SA1BDataset
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.writers import write_lvis
from mobilesamv2.masks import decode, to_rles
from mobilesamv2.structures import Masks, Prompts

SQUARE = [[2.0, 2.0, 6.0, 2.0, 6.0, 6.0, 2.0, 6.0]]


def content(**changes: Any) -> dict[str, Any]:
    annotation = {"id": 1, "image_id": 5, "category_id": 1, "segmentation": SQUARE, "area": 16.0}
    return {
        "images": [{"id": 5, "height": 8, "width": 10, "file_name": "a.png"}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "thing", "frequency": "c"}],
    } | changes


@pytest.fixture
def write(tmp_path: Path):
    def write(value: Any) -> Path:
        path = tmp_path / "file.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


def test_reads_image_and_objects(write, tmp_path: Path) -> None:
    pixels = np.arange(240, dtype=np.uint8).reshape(8, 10, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image, truth = CocoDataset(write(content()), tmp_path)[0]
    assert (image == pixels).all()
    assert (truth.image_id, truth.size, truth.areas, truth.frequencies) == (5, (8, 10), [16.0], ["c"])
    mask = decode(truth.rles[0])
    assert mask[2:6, 2:6].all()
    assert mask.sum() == 16


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_other_modes_become_rgb(write, tmp_path: Path, mode: str) -> None:
    Image.new(mode, (10, 8)).save(tmp_path / "a.png")
    assert CocoDataset(write(content()), tmp_path).load_image(0).shape == (8, 10, 3)


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_crowds_and_ignored_objects_are_left_out(write, key: str) -> None:
    value = content()
    value["annotations"][0][key] = 1
    assert CocoDataset(write(value)).ground_truth(0).rles == []


def test_the_three_forms_of_a_mask_agree(write) -> None:
    value = content()
    compressed = CocoDataset(write(value)).ground_truth(0).rles[0]
    runs = [18, 4, 4, 4, 4, 4, 4, 4, 34]  # columns of 8 rows: 2 empty columns and 2 rows, then 4 of 8, four times
    for form in (compressed, {"size": [8, 10], "counts": runs}):
        value["annotations"][0]["segmentation"] = form
        assert CocoDataset(write(value)).ground_truth(0).rles == [compressed]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "not valid JSON"),
        ([], "COCO's layout"),
        ({"images": []}, "COCO's layout"),
        (content(images=[{"id": 5, "width": 10}]), "Image number 0 of .* must have .* height, got null"),
        (content(images=content()["images"] * 2), "two images of id 5"),
        (content(images=[{"id": "000005", "height": 8, "width": 10}]), 'got the text "000005". .* without quotes'),
    ],
)
def test_broken_annotation_files_are_refused(write, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CocoDataset(write(value))


def test_missing_and_broken_images_are_named(write, tmp_path: Path) -> None:
    dataset = CocoDataset(write(content()), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Image 5 .*a\.png"):
        dataset.load_image(0)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png can't be decoded"):
        dataset.load_image(0)
    Image.new("RGB", (8, 10)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png must have .*\(8, 10\).* got \(10, 8\)"):
        dataset.load_image(0)


def test_missing_files_say_where_they_are_published(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"(?s)none\.json.*nowhere.*lvis_v1_val\.json\.zip"):
        LvisDataset(tmp_path / "none.json", tmp_path / "nowhere")


def test_lvis_images_are_found_by_coco_url(write, tmp_path: Path) -> None:
    value = content()
    value["images"] = [{"id": 5, "height": 8, "width": 10, "coco_url": "http://host/train2017/000000000005.jpg"}]
    folder = tmp_path / "train2017"
    folder.mkdir()
    for place in (folder, tmp_path):
        Image.new("RGB", (10, 8)).save(place / "000000000005.jpg")
        assert LvisDataset(write(value), tmp_path).load_image(0).shape == (8, 10, 3)
        (place / "000000000005.jpg").unlink()


RESULT = {"image_id": 5, "category_id": 1, "segmentation": SQUARE, "score": 0.5}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "must contain a list, got int"),
        ({}, "must contain a list, got an object without a list 'annotations'"),
        ([RESULT | {"image_id": "5"}], 'number 0 .* integer image_id, got the text "5"'),
        ([3], "number 0"),
        ([RESULT, {"image_id": 5, "bbox": [0, 0, 1, 1], "score": 1}], "number 1 .* has no segmentation"),
        ([RESULT | {"image_id": 6}], "image 6"),
        ([RESULT | {"score": float("nan")}], "number 0 .*image 5.* NaN"),
        ([RESULT | {"score": None}], "number 0 .*image 5"),
        ([RESULT | {"segmentation": {"size": [8, 10], "counts": ["0", "80"]}}], "must be whole numbers, got '0'"),
        ([RESULT | {"segmentation": {"size": [9, 9], "counts": "0"}}], r"number 0 .*image 5.*\[9, 9\]"),
    ],
)
def test_broken_results_are_refused(write, tmp_path: Path, value: Any, message: str) -> None:
    dataset = CocoDataset(write(content()))
    results = tmp_path / "results.json"
    results.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=message):
        list(read_results(results, dataset))


def test_results_may_lie_in_several_files(write, tmp_path: Path) -> None:
    value = content()
    value["images"].append({"id": 0, "height": 8, "width": 10})
    dataset = CocoDataset(write(value))
    folder = tmp_path / "shards"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no JSON file in the folder .*shards"):
        list(read_results(folder, dataset))
    (folder / "a.json").write_text(json.dumps([RESULT, RESULT | {"score": 1}]))
    (folder / "b.json").write_text(json.dumps([RESULT | {"image_id": 0}]))
    found = dict(read_results(folder, dataset))
    assert {index: scores for index, (_, scores) in found.items()} == {0: [0.5, 1.0], 1: [0.5]}
    (folder / "b.json").write_text(json.dumps([RESULT]))
    with pytest.raises(ValueError, match=r"Image 5 has results in .*a\.json and in .*b\.json"):
        list(read_results(folder, dataset))


def test_results_with_images_of_their_own_are_matched_by_file_name(write, tmp_path: Path) -> None:
    """As ``mobilesamv2 segment`` writes them: it numbers its images from 1."""
    listed = [{"id": i, "height": 8, "width": 10, "file_name": name} for i, name in ((5, "x/a.jpg"), (1, "x\\b.jpg"))]
    dataset = CocoDataset(write(content(images=listed)))
    own = [{"id": 1, "file_name": "/photos/x/a.jpg"}, {"id": 2, "file_name": "photos/x/b.jpg"}]
    results, entries = tmp_path / "masks.json.gz", [RESULT | {"image_id": 1, "score": 0.25}, RESULT | {"image_id": 2.0}]
    results.write_bytes(gzip.compress(json.dumps({"annotations": entries, "images": own}).encode()))
    assert {index: scores for index, (_, scores) in read_results(results, dataset)} == {0: [0.25], 1: [0.5]}
    own[0]["file_name"] = "c.jpg"
    results.write_text(json.dumps({"annotations": entries, "images": own}))
    with pytest.raises(ValueError, match=r"number 0 .* on an image of .* that is evaluated, got image 1"):
        list(read_results(results, dataset))
    listed[1]["file_name"] = "y/a.jpg"
    own[0]["file_name"] = "a.jpg"
    results.write_text(json.dumps({"annotations": entries, "images": own}))
    with pytest.raises(ValueError, match=r'got the text "a\.jpg", the name of 2'):
        list(read_results(results, CocoDataset(write(content(images=listed)))))


def test_the_folder_and_each_file_that_segment_writes_are_results(write, tmp_path: Path) -> None:
    """A file of one image numbers it 1, which the data set may have for another image."""
    listed = [{"id": i, "height": 8, "width": 10, "file_name": f"{name}.png"} for i, name in ((1, "x"), (2, "z"))]
    dataset = CocoDataset(write(content(images=listed, annotations=[])))
    photos, output = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    for record in listed:
        Image.new("RGB", (10, 8)).save(photos / record["file_name"])
    found = Masks(
        size=(8, 10),
        rles=to_rles([SQUARE], (8, 10), str),
        boxes_xyxy=torch.tensor([[2.0, 2, 5, 5]]),
        predicted_iou=torch.ones(1),
        stability_score=torch.ones(1),
        scores=torch.full((1,), 0.25),
        prompts=Prompts(boxes_xyxy=torch.tensor([[2.0, 2, 5, 5]])),
        prompt_index=torch.zeros(1, dtype=torch.int64),
    )
    segment_images(sorted(photos.iterdir()), lambda image: found, output, {})
    assert sorted(path.name for path in output.glob("*.json")) == ["masks.json", "x.json", "z.json"]
    assert {i: scores for i, (_, scores) in read_results(output, dataset)} == {0: [0.25], 1: [0.25]}
    assert {i: scores for i, (_, scores) in read_results(output / "z.json", dataset)} == {1: [0.25]}
    assert set(read_boxes(output / "z.json", dataset)) == {2}
    segment_images([photos / "x.png"], lambda image: found, output, {})  # again, with masks.json of this image alone
    assert sorted(i for i, _ in read_results(output, dataset)) == [0, 1]
    (output / "masks.json").unlink()
    assert sorted(i for i, _ in read_results(output, dataset)) == [0, 1]
    with pytest.raises(ValueError, match=r"number 0 of .*z\.json must be on an image of .* that is evaluated"):
        list(read_results(output / "z.json", CocoDataset(write(content(images=listed[:1], annotations=[])))))


@pytest.mark.parametrize(
    "name", ["train/sa_1.jpg", "train\\sa_1.jpg", "sa_1.jpg", "sa_1.JPG", "C:\\data\\train\\sa_1.jpg", "./sa_1.jpg"]
)
def test_file_names_of_other_systems_and_folders(write, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    Image.new("RGB", (10, 8)).save(folder / "sa_1.jpg")
    dataset = CocoDataset(write(content(images=[{"id": 5, "height": 8.0, "width": 10, "file_name": name}])), folder)
    dataset.check_images()
    assert dataset.load_image(0).shape == (8, 10, 3)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("a.jpg", "a.Jpg"),
        ("a.Jpg", "a.JPG"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("cafe\u0301/e\u0301.png", "caf\u00e9/\u00e9.PNG"),
        ("photos/a.jpg", "a.jpg"),
    ],
)
def test_names_of_other_systems_are_found(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, there: str
) -> None:
    """Suffixes in any case, accents as a Mac writes them, and the name of a folder that is given as ``.``."""
    folder = tmp_path / "photos"
    (folder / there).parent.mkdir(parents=True)
    Image.new("RGB", (10, 8)).save(folder / there)
    annotations = write(content(images=[{"id": 5, "height": 8, "width": 10, "file_name": name}]))
    monkeypatch.chdir(folder)
    assert CocoDataset(annotations, Path()).load_image(0).shape == (8, 10, 3)


def test_a_name_that_is_null_is_absent(write, tmp_path: Path) -> None:
    image = {"id": 5, "height": 8, "width": 10, "file_name": None, "coco_url": "http://x/val2017/a.jpg"}
    (tmp_path / "val2017").mkdir()
    Image.new("RGB", (10, 8)).save(tmp_path / "val2017" / "a.jpg")
    assert LvisDataset(write(content(images=[image])), tmp_path).load_image(0).shape == (8, 10, 3)
    image = content()["images"][0] | {"coco_url": None}
    assert CocoDataset(write(content(images=[image]))).file_name(0) == "a.png"
    for value in (0, False, []):
        with pytest.raises(ValueError, match="must have a string as file_name"):
            CocoDataset(write(content(images=[image | {"file_name": value}])))


def test_results_name_images_in_any_case_of_the_suffix_and_as_a_mac_writes_accents(write, tmp_path: Path) -> None:
    names = ["x/a.png", "x/caf\u00e9.jpg", "x/b.jpg", "x/b.JPG"]
    listed = [{"id": i, "height": 8, "width": 10, "file_name": name} for i, name in enumerate(names, 1)]
    dataset = CocoDataset(write(content(images=listed, annotations=[])))
    results = tmp_path / "results.json"
    own = [{"id": 10, "file_name": "a.PNG"}, {"id": 11, "file_name": "x/cafe\u0301.JPG"}]
    own += [{"id": 12, "file_name": "x/b.jpg"}, {"id": 13, "file_name": "x/b.JPG"}]
    entries = [RESULT | {"image_id": 10 + i, "score": i, "bbox": [0, 0, 1, 1]} for i in range(4)]
    results.write_text(json.dumps({"annotations": entries, "images": own}))
    assert {index: scores for index, (_, scores) in read_results(results, dataset)} == {i: [i] for i in range(4)}
    assert set(read_boxes(results, dataset)) == {1, 2, 3, 4}
    results.write_text(json.dumps({"annotations": entries, "images": [*own[:2], {"id": 12, "file_name": "b.Jpg"}]}))
    with pytest.raises(ValueError, match=r'the text "b\.Jpg", the name of 2'):
        list(read_results(results, dataset))


def test_annotations_may_be_compressed(tmp_path: Path) -> None:
    file = tmp_path / "file.json.gz"
    file.write_bytes(gzip.compress(json.dumps(content()).encode()))
    assert len(CocoDataset(file).ground_truth(0).rles) == 1
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"file\.json\.gz is not valid JSON: it is compressed by gzip, and broken"):
        CocoDataset(file)


def test_annotations_that_expand_beyond_all_measure_are_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "file.json.gz"
    spaces = zlib.compressobj(wbits=31)
    blocks = [spaces.compress(b" " * 2**20) for _ in range(70)]  # of MiB
    file.write_bytes(b"".join([*blocks, spaces.compress(b"{}"), spaces.flush()]))
    assert file.stat().st_size < 200_000
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"file\.json\.gz must expand to at most 67,108,864 bytes.* unpack it: gunzip"):
        read_json(file)
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()
    file.write_bytes(gzip.compress(b" " * 2**24 + b"[3]"))
    assert read_json(file) == [3]


def test_a_zip_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    """As LVIS publishes its annotations."""
    with zipfile.ZipFile(tmp_path / "lvis_v1_val.json.zip", "w") as archive:
        archive.writestr("lvis_v1_val.json", "{}")
    with pytest.raises(ValueError, match=r"lvis_v1_val\.json\.zip is not valid JSON: it is a zip archive\. Unpack it"):
        LvisDataset(tmp_path / "lvis_v1_val.json.zip")


def test_images_are_chosen_by_count_seed_and_list(tmp_path: Path) -> None:
    ids = [10 * i for i in range(20)]
    assert choose_images(ids) == list(range(20))
    assert choose_images(ids, limit=3) == [0, 1, 2]
    drawn = choose_images(ids, limit=5, subset_seed=1)
    assert drawn == choose_images(ids, limit=5, subset_seed=1) == sorted(set(drawn))
    assert drawn != choose_images(ids, limit=5, subset_seed=2)
    listing = tmp_path / "list.txt"
    listing.write_text("190\n0\n\n50\n")
    assert choose_images(ids, image_list=listing) == [0, 5, 19]
    assert choose_images(ids, limit=2, image_list=listing) == [0, 5]
    listing.write_text("190\n7\n")
    with pytest.raises(ValueError, match=r"Line 2 of .*list\.txt must be .* got '7'"):
        choose_images(ids, image_list=listing)
    with pytest.raises(FileNotFoundError, match=r"no list of images none\.txt"):
        choose_images(ids, image_list="none.txt")
    with pytest.raises(ValueError, match="limit must be a number of images, a share of them below 1"):
        choose_images(ids, limit=0)


def test_drawn_scenes_in_lvis_layout_read_back_the_same(tmp_path: Path) -> None:
    from lvis import LVIS

    scenes = SyntheticDataset(3, (60, 90), seed=5)
    write_lvis((scenes[i] for i in range(3)), tmp_path)
    read = LvisDataset(tmp_path / "annotations.json", tmp_path / "images")
    for i in range(3):
        (image, truth), (expected, rendered) = read[i], scenes[i]
        assert (image == expected).all()
        assert (truth.image_id, truth.rles, truth.areas) == (rendered.image_id, rendered.rles, rendered.areas)
        assert set(truth.frequencies) == {"f"}
    lvis = LVIS(str(tmp_path / "annotations.json"))
    first = lvis.load_anns(lvis.get_ann_ids([1]))[0]
    assert lvis.ann_to_mask(first).sum() == first["area"]
    x, y, width, height = map(int, first["bbox"])
    assert lvis.ann_to_mask(first)[y : y + height, x : x + width].sum() == first["area"]


def test_a_content_hash_is_of_the_bytes_alone(write, tmp_path: Path) -> None:
    """Not of the name, the time or the number of bytes of a file; and each data set has one."""

    class Own(SyntheticDataset):
        content_hash = ImageDataset.content_hash

        def load_image(self, index: int) -> np.ndarray:
            return np.asarray(Image.open(tmp_path / "photos" / "sa_5.jpg"))

    spec = importlib.util.spec_from_file_location("example", ROOT / "examples" / "dataset" / "mask_folder.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    annotations, photo = write(content(images=[{"id": 5, "height": 8, "width": 10, "file_name": "sa_5.jpg"}])), {}
    folder = tmp_path / "photos"

    def hashes(value: int) -> list[str]:
        Image.new("RGB", (10, 8), (value, 0, 0)).save(folder / "sa_5.jpg", "BMP")
        photo[value] = (folder / "sa_5.jpg").read_bytes()
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.add(folder / "sa_5.jpg", "sa_5.jpg")
        sets = [CocoDataset(annotations, folder), LvisDataset(annotations, folder), PhotosDataset(folder)]
        (tmp_path / "masks" / "5.png").write_bytes(
            photo[value]
        )  # the guide's data set, of images and masks of one name
        guides = example.MaskFolder(tmp_path / "masks", tmp_path / "masks")
        sets += [SA1BDataset(folder), SA1BDataset(tmp_path / "a.tar"), guides, Own(1)]
        return [dataset.content_hash(0) for dataset in sets]

    folder.mkdir()
    (tmp_path / "masks").mkdir()
    first, other = hashes(1), hashes(2)
    assert len(photo[1]) == len(photo[2])
    assert all(one != another for one, another in zip(first, other, strict=True))
    assert len(set(first[:-1])) == 1
    assert hashes(1) == first
    scenes = [SyntheticDataset(2, seed=seed).content_hash(i) for seed in (0, 1) for i in (0, 1)]
    assert len(set(scenes)) == 4
