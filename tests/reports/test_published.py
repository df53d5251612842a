"""Published values: each names its source and what this project calls it, and stands beside the same weights alone."""

from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from mobilesamv2.model_zoo import MODEL_FILES, WEIGHT_FILES
from mobilesamv2.reports.published import Published, comparisons, has_published_weights, read_published

HEAD = "model,protocol,annotations,images,metric,value,source,table,note\n"
LINE = "mobile_sam,p,instances_val2017.json,,mIoU box,41.5,A paper,table 1,\n"
SHA256 = WEIGHT_FILES["mobile_sam.pt"].sha256


def result(**model: Any) -> dict[str, Any]:
    published = {"name": "mobile_sam", "checkpoint": "weights/mobile_sam.pt", "sha256": [SHA256]}
    return {
        "run": {"model": published | model},
        "protocol": {"name": "p", "annotations": "/data/instances_val2017.json.gz", "num_images": 5000},
        "interval": {"mIoU box": [0.4, 0.42], "NoC@90": [2.9, 3.1]},
    }


def test_every_value_is_of_a_published_model_and_a_protocol() -> None:
    values = read_published()
    protocols = {path.stem for path in (ROOT / "conf" / "protocol").glob("*.yaml")}
    assert len(values) > 90
    assert {value.model for value in values} <= set(MODEL_FILES)
    assert {value.protocol for value in values} <= protocols
    assert {value.annotations for value in values} == {"instances_val2017.json", "lvis_v1_val.json"}
    keys = [(v.model, v.protocol, v.annotations, v.metric, v.source, v.table) for v in values]
    assert len(set(keys)) == len(keys)
    at = {(v.model, v.protocol, v.annotations, v.metric): v.value for v in values if v.source.startswith("EdgeSAM")}
    assert at["mobile_sam", "edgesam_boxes_ap", "instances_val2017.json", "AP"] == 39.4


def test_a_value_inside_the_interval_is_told_from_one_outside(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEAD + LINE + LINE.replace("41.5", "42.7").replace("A paper", "Another"))
    (tmp_path / "b.csv").write_text(HEAD + LINE.replace("mIoU box,41.5", "NoC@90,2.95").replace(",,", ",500,", 1))
    published = read_published(tmp_path)
    assert [str(each) for each in comparisons(result(), "p", "mIoU box", published)] == [
        "41.5 (A paper, table 1: inside)", "42.7 (Another, table 1: outside)",
    ]  # fmt: skip
    of_500 = result() | {"protocol": result()["protocol"] | {"num_images": 500}}
    assert [str(each) for each in comparisons(of_500, "p", "NoC@90", published)] == [
        "2.95 (A paper, table 1, 500 images: inside)"
    ]
    assert comparisons(result(), "other", "mIoU box", published) == []
    no_interval = result() | {"interval": None}
    assert [each.inside for each in comparisons(no_interval, "p", "mIoU box", published)] == [None, None]


@pytest.mark.parametrize("images", [None, 500])
def test_a_value_of_another_number_of_images_has_no_verdict(images: int | None) -> None:
    value = Published("mobile_sam", "p", "instances_val2017.json", images, "mIoU box", 41.5, "s", "t", "")
    for num_images, inside in ((images or 5000, True), (3, None), (None, None)):
        measured = result() | {"protocol": result()["protocol"] | {"num_images": num_images}}
        [found] = comparisons(measured, "p", "mIoU box", [value])
        assert found.inside is inside
        assert ("3 images here" in str(found)) == (num_images == 3)


@pytest.mark.parametrize(
    "model",
    [
        {"checkpoint": None, "sha256": []},
        {"checkpoint": "mine.safetensors", "sha256": ["0"]},
        {"sha256": ["0" * 64]},
        {"sha256": []},
        {"allow_partial": True},
        {"image_size": 512},
        {"name": "mini", "checkpoint": "weights/mobile_sam.pt"},
    ],
)
def test_other_weights_have_no_published_value(model: dict[str, Any]) -> None:
    value = Published(
        str(model.get("name", "mobile_sam")), "p", "instances_val2017.json", None, "mIoU box", 41.5, "s", "t", ""
    )
    assert comparisons(result(), "p", "mIoU box", [value]) or value.model == "mini"
    assert comparisons(result(**model), "p", "mIoU box", [value]) == []


def test_another_detector_has_no_published_value() -> None:
    value = Published("mobile_sam", "p", "instances_val2017.json", None, "mIoU box", 41.5, "s", "t", "boxes of X")
    with_detector = result()
    for checkpoint, found in (("w/ObjectAwareModel.pt", ["41.5 (s, t, boxes of X: inside)"]), ("w/yolov8n.pt", [])):
        with_detector["run"]["detector"] = {"checkpoint": checkpoint}
        assert [str(each) for each in comparisons(with_detector, "p", "mIoU box", [value])] == found


def test_a_file_without_a_known_hash_counts_by_its_name() -> None:
    assert WEIGHT_FILES["edge_sam.pth"].sha256 is None
    assert has_published_weights({"name": "edge_sam", "checkpoint": ["w/edge_sam.pth"], "sha256": ["0"]})
    both = ["l2.pt", "Prompt_guided_Mask_Decoder.pt"]
    assert has_published_weights({"name": "efficientvit_l2", "checkpoint": both, "sha256": ["0", "1"]})
    assert not has_published_weights({"name": "efficientvit_l2", "checkpoint": both[:1], "sha256": ["0"]})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("model,value\n", "Line 1 of .* can't be read: its columns must be model, protocol, annotations"),
        (HEAD + LINE.replace("41.5", "much"), "Line 2 of .*: could not convert string to float: 'much'"),
        (HEAD + LINE.replace("41.5", "nan"), "value must be a percentage, got nan"),
        (HEAD + LINE.replace("A paper", ""), "source is empty"),
        (HEAD + LINE.replace(",,", ",some,", 1), "invalid literal"),
        (HEAD + "mobile_sam,p\n", "can't be read"),
        (HEAD + LINE.strip() + ",more,more\n", "can't be read"),
    ],
)
def test_a_line_that_is_none_is_named(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        read_published(tmp_path)


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder .* of published values"):
        read_published(tmp_path / "none")
