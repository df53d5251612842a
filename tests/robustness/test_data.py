"""Annotations, results, lists and tars with any value, and any byte, in them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.corrupt_inputs import FUZZ, JUNK, RESULTS, SQUARE, coco_content, outcome, places, small_tar, spoilt

from mobilesamv2 import masks
from mobilesamv2.data.base import choose_images
from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.data.results_files import read_boxes, read_results
from mobilesamv2.data.sa1b import SA1BDataset
from mobilesamv2.data.sa1b_files import find_sources


@settings(FUZZ, max_examples=400)
@given(st.sampled_from(places(coco_content())), JUNK, st.booleans())
def test_any_value_anywhere_in_an_annotation_file(tmp_path: Path, path: tuple[Any, ...], junk: Any, drop: bool) -> None:
    """An error that names the file, or a valid ground truth."""
    file = tmp_path / "file.json"
    file.write_text(json.dumps(spoilt(coco_content(), path, junk, drop and bool(path))))
    dataset, message = outcome(lambda: LvisDataset(file, tmp_path))
    assert not message or "file.json" in message or "data set is empty" in message
    truths, message = outcome(lambda: [dataset.ground_truth(i) for i in range(len(dataset))] if dataset else [])
    assert not message or "file.json" in message
    _, message = outcome(lambda: dataset and dataset.check_images())
    assert not message or "file.json" in message
    for truth in truths or ():
        assert all(area >= 0 for area in truth.areas)
        assert all(masks.decode(rle).shape == truth.size for rle in truth.rles)


@settings(FUZZ, max_examples=300)
@given(st.sampled_from(places(RESULTS)), JUNK, st.booleans())
def test_any_value_anywhere_in_a_results_file(tmp_path: Path, path: tuple[Any, ...], junk: Any, drop: bool) -> None:
    listing, file = tmp_path / "listing.json", tmp_path / "file.json"
    listing.write_text(json.dumps(coco_content()))
    file.write_text(json.dumps(spoilt(RESULTS, path, junk, drop and bool(path))))
    dataset = CocoDataset(listing)
    found, message = outcome(lambda: list(read_results(file, dataset)))
    assert not message or "file.json" in message
    for _, (rles, scores) in found or ():
        assert [masks.decode(rle).shape for rle in rles] == [(8, 10)] * len(scores)
    boxes, message = outcome(lambda: read_boxes(file, dataset))
    assert not message or "file.json" in message
    assert not boxes or torch.isfinite(boxes[5].boxes_xyxy).all()


@pytest.mark.parametrize("content", ["[" * 100_000, '{"images": [' + "9" * 5000 + "]}", "", "null"])
def test_json_that_is_too_deep_too_long_or_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(ValueError, match=r"file\.json is not"):
        CocoDataset(tmp_path / "file.json")


def test_objects_of_one_id_are_each_counted(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][1]["id"] = 1
    (tmp_path / "file.json").write_text(json.dumps(content))
    assert len(CocoDataset(tmp_path / "file.json").ground_truth(0).rles) == 2


def test_names_of_any_alphabet(tmp_path: Path) -> None:
    content = coco_content()
    content["images"][0] = {"id": 5, "height": 8, "width": 10, "file_name": "Katze 貓 🐈.png"}
    Image.new("RGB", (10, 8), "red").save(tmp_path / "Katze 貓 🐈.png")
    (tmp_path / "file.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    assert CocoDataset(tmp_path / "file.json", tmp_path).load_image(0)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), -1, 0, 2.5])
def test_a_limit_that_is_no_number_of_images(limit: float) -> None:
    with pytest.raises(ValueError, match="limit must be a number of images"):
        choose_images([1, 2, 3], limit)


def test_a_list_of_images_that_is_no_text_or_has_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"ids\.txt must be a text file"):
        choose_images([1, 2], image_list=tmp_path / "ids.txt")
    (tmp_path / "ids.txt").write_text("2\n", "utf-8-sig")
    assert choose_images([1, 2], image_list=tmp_path / "ids.txt") == [1]
    (tmp_path / "ids.txt").write_text("0.0\n-2.\n")  # as pandas writes them
    assert choose_images([0, 1, -2], image_list=tmp_path / "ids.txt") == [0, 2]
    assert choose_images([0, 1], image_list=tmp_path / "ids.txt", names=["-2.", "0.0"]) == [0, 1]
    (tmp_path / "ids.txt").write_text("0.5\n")
    with pytest.raises(ValueError, match=r"must be the id of an image of the data set, got '0\.5'"):
        choose_images([0, 1], image_list=tmp_path / "ids.txt")


SA1B_RECORD = {"image": {"height": 8, "width": 10}, "annotations": [{"segmentation": SQUARE, "area": 16}]}


@settings(FUZZ, max_examples=200)
@given(st.sampled_from(places(SA1B_RECORD)), JUNK, st.booleans())
def test_any_value_anywhere_in_a_tars_annotations(tmp_path: Path, path: tuple[Any, ...], junk: Any, drop: bool) -> None:
    record = spoilt(SA1B_RECORD, path, junk, drop and bool(path))
    dataset = SA1BDataset(small_tar(tmp_path / "a.tar", annotations=record))
    sample, message = outcome(lambda: dataset[0])
    assert not message or "sa_5 of" in message
    assert not sample or all(0 <= area < float("inf") for area in sample[1].areas)


def test_tars_that_are_compressed_or_hold_strange_names(tmp_path: Path) -> None:
    import gzip

    path = small_tar(tmp_path / "a.tar")
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.tar is not a tar, or is truncated or compressed"):
        SA1BDataset(path)
    for name in ("sa_" + "9" * 30, "sa_²", "sa_-1", "sa_"):
        with pytest.raises(ValueError, match=r"b\.tar holds no image of SA-1B"):
            SA1BDataset(small_tar(tmp_path / "b.tar", name=name))
    with pytest.raises(FileNotFoundError, match="list of tars is empty"):
        find_sources([])


def test_a_photo_of_no_bytes_in_a_tar(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Image sa_5 of .*a\.tar can't be decoded"):
        SA1BDataset(small_tar(tmp_path / "a.tar", photo=b""))[0]
