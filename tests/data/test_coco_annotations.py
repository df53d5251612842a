"""Annotations as people have them: taken, or refused in one error before the first image."""

import contextlib
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.corrupt_inputs import FUZZ

from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.masks import areas, decode, iou, to_rle
from mobilesamv2.metrics.average_recall import AverageRecall, count_matches

SQUARE = [[2.0, 2.0, 6.0, 2.0, 6.0, 6.0, 2.0, 6.0]]
LEAVE_OUT = "Repair them, or leave them out, counted in the result: dataset.bad_annotations=leave_out."


def write(path: Path, *objects: Any, **changes: Any) -> Path:
    """A file of two images of 8 x 10 pixels, 5 and 6, with these objects, each changed from a sound one on image 5."""
    sound = {"image_id": 5, "category_id": 1, "segmentation": SQUARE, "bbox": [2, 2, 4, 4], "area": 16.0, "iscrowd": 0}
    numbered = [o if not isinstance(o, dict) else sound | {"id": i} | o for i, o in enumerate(objects, 1)]
    images = [{"id": i, "height": 8, "width": 10, "file_name": f"{i}.png"} for i in (5, 6)]
    content = {"images": images, "annotations": numbered, "categories": [{"id": 1, "name": "thing"}]}
    (path / "file.json").write_text(json.dumps(content | changes))
    return path / "file.json"


def objects_left(file: Path) -> list[int]:
    dataset = CocoDataset(file, bad_annotations="leave_out")
    return [len(dataset.ground_truth(i).rles) for i in range(2)]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (3, "something else than an object, got 3 (annotation number 1)"),
        ({"image_id": 7}, "an image_id that the file does not list, got 7 (annotation 2)"),
        ({"image_id": "5"}, 'an image_id that is text, where ids are numbers, got the text "5" (annotation 2)'),
        ({"image_id": 5.5}, "no integer image_id, got 5.5 (annotation 2)"),
        ({"image_id": True}, "no integer image_id, got true"),
        ({"area": float("nan")}, "an area that is no number of at least 0, got NaN"),
        ({"area": "16"}, 'an area that is no number of at least 0, got the text "16"'),
        ({"iscrowd": "0"}, 'an iscrowd that is not 0 or 1, got the text "0"'),
        ({"ignore": 2}, "an ignore that is not 0 or 1, got 2"),
        ({"category_id": 1.5}, "a category_id that is no integer, got 1.5"),
        ({"segmentation": [], "bbox": None}, "neither a mask nor a box, got bbox null"),
        (
            {"segmentation": [[1, 2, 3, 4]]},
            "a broken segmentation (a segmentation must have at least one polygon of at ",
        ),
        ({"segmentation": [[1.0, 1, float("nan"), 1, 3, 3]]}, "polygon coordinates that are not finite, or lie far "),
        ({"segmentation": [[1e30, 1.0, 2.0, 1.0, 3.0, 3.0]]}, "polygon coordinates that are not finite, or lie far "),
        (
            {"segmentation": [["a", 1.0, 2.0, 1.0, 3.0, 3.0]]},
            "a broken segmentation (a polygon must be a flat list of ",
        ),
        ({"segmentation": [[[1, 1], [2, 1], [2, 2]]]}, "a broken segmentation (a polygon must be a flat list of "),
        (
            {"segmentation": [[1, 1, 5, 1, 5, 5, 2]]},
            "a broken segmentation (a polygon must be a flat list x, y, x, y, ",
        ),
        (
            {"segmentation": {"size": [10, 8], "counts": "0"}},
            "an RLE that is broken, or not of its image's size, got size",
        ),
        ({"segmentation": {"counts": "0"}}, "an RLE that is broken, or not of its image's size, got size null"),
        ({"segmentation": 3}, "a segmentation that is neither polygons nor an RLE, got 3"),
        *[
            ({"segmentation": {"size": [8, 10], "counts": counts}}, "an RLE that is broken, or not of its image's size")
            for counts in ([1, 2], [-1, 81], "zz", "01P6", "", "\u00e9", "oooooooooooooooo0", None)
        ],
    ],
)
def test_what_cant_be_used_is_refused_when_the_file_is_read_or_left_out(
    tmp_path: Path, broken: Any, message: str
) -> None:
    file = write(tmp_path, {}, broken, {"image_id": 6})
    with pytest.raises(ValueError, match=r"1 of the 3 annotations of .*file\.json can't be used") as error:
        CocoDataset(file)
    assert f"\n  1 with {message}" in str(error.value)
    assert str(error.value).endswith(LEAVE_OUT)
    assert objects_left(file) == [1, 1]


def test_one_error_lists_all_faults_by_kind(tmp_path: Path) -> None:
    empty = [{"id": 100 + i, "segmentation": [], "bbox": [0, 0]} for i in range(7)]
    file = write(tmp_path, {}, *empty, {"id": 20, "image_id": 9}, {"id": 21, "iscrowd": "1"})
    with pytest.raises(ValueError, match="can't be used") as error:
        CocoDataset(file, limit=1)
    assert str(error.value).splitlines() == [
        f"9 of the 10 annotations of {file} can't be used:",
        "  7 with neither a mask nor a box, got bbox [0, 0] (annotation 100, 101, 102, 103, 104 and so on)",
        "  1 with an image_id that the file does not list, got 9 (annotation 20)",
        '  1 with an iscrowd that is not 0 or 1, got the text "1" (annotation 21)',
        LEAVE_OUT,
    ]
    assert CocoDataset(file, bad_annotations="leave_out").provenance["annotations_left_out"] == {
        "neither a mask nor a box": 7,
        "an image_id that the file does not list": 1,
        "an iscrowd that is not 0 or 1": 1,
    }
    with pytest.raises(ValueError, match="bad_annotations must be error or leave_out, got 'skip'"):
        CocoDataset(file, bad_annotations="skip")  # pyright: ignore


def test_whole_floats_are_integers_and_null_is_no_value(tmp_path: Path) -> None:
    rle = {"size": [8.0, 10.0], "counts": [18, 4, 4, 4, 4, 4, 4, 4, 34]}
    floats = {"image_id": 5.0, "category_id": 1.0, "iscrowd": 0.0, "ignore": None, "segmentation": rle}
    images = [{"id": 5.0, "height": 8.0, "width": 10.0}]
    dataset = CocoDataset(write(tmp_path, {}, floats, images=images, categories=[{"id": 1.0, "frequency": "r"}]))
    truth = dataset.ground_truth(0)
    assert (truth.image_id, truth.size, truth.frequencies) == (5, (8, 10), ["r", "r"])
    assert truth.rles[0] == truth.rles[1]
    assert all(type(n) is int for n in (truth.image_id, *truth.size, *truth.rles[1]["size"], *dataset.category_ids))


def test_an_absent_area_is_the_masks_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = CocoDataset(write(tmp_path, {"area": None}, {"area": 3.0}))
    assert dataset.ground_truth(0).areas == [16.0, 3.0]
    assert dataset.ground_truth(0).areas == [16.0, 3.0]
    assert [r.message.partition(" of the 2 objects")[0] for r in caplog.records] == ["1"]
    assert dataset.provenance["annotations_without_area"] == 1


def test_a_box_takes_the_place_of_a_mask_where_none_is_needed(tmp_path: Path) -> None:
    thin = {"segmentation": [[]], "bbox": [1, 2, 3, 0]}  # of xmax - xmin, as in SA-1B
    file = write(tmp_path, {}, {"segmentation": [], "area": None}, thin, {"image_id": 6, "segmentation": None})
    dataset = CocoDataset(file)
    truth = dataset.ground_truth(0)
    assert truth.rles[0] == truth.rles[1]
    assert truth.areas[1] == 16
    assert np.argwhere(decode(truth.rles[2])).tolist() == [[2, 1], [2, 2], [2, 3]]
    with pytest.raises(ValueError, match=r"3 with a box and no mask, got no segmentation \(annotation 2, 3, 4\)"):
        dataset.require_masks()
    left = CocoDataset(file, bad_annotations="leave_out")
    left.require_masks()
    assert [len(left.ground_truth(i).rles) for i in range(2)] == [1, 0]
    assert left.provenance["annotations_left_out"] == {"a box and no mask": 3}
    boxes_only = CocoDataset(write(tmp_path, {"segmentation": None}), bad_annotations="leave_out")
    with pytest.raises(ValueError, match=r"must have masks .*, got 1 boxes .* prompt_sampler=null\) need none"):
        boxes_only.require_masks()


@FUZZ
@given(st.lists(st.floats(-20, 30), max_size=5), st.integers(0, 2))
def test_a_piece_of_two_points_beside_a_good_polygon_covers_nothing(
    tmp_path: Path, piece: list[float], place: int
) -> None:
    """Where pycocotools can read the piece, second or later, it finds no pixel in it either."""
    polygons = [SQUARE[0], [0.0, 0.0, 3.0, 0.0, 3.0, 1.5]]
    file = write(tmp_path, {"segmentation": [*polygons[:place], piece, *polygons[place:]]}, {"segmentation": polygons})
    first, second = CocoDataset(file).ground_truth(0).rles
    assert first == second
    if place and piece:
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = COCO(str(file)).annToRLE(json.loads(file.read_text())["annotations"][0])
        assert iou([first], [theirs]).tolist() == [[1.0]]


def shapes(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Objects in every form, on two images, sound for pycocotools too."""
    objects: list[dict[str, Any]] = []
    for i in range(40):
        corners = np.sort(rng.uniform(0, 8, (2, 2)), axis=0).round(2)
        (x0, y0), (x1, y1) = corners.tolist()
        polygons = [[x0, y0, x1, y0, x1, y1, x0, y1], *([[1.0, 2.0, 3.0, 4.0]] if i % 5 == 0 else [])]
        objects.append({"image_id": 5 + i % 2, "segmentation": polygons, "area": float((x1 - x0) * (y1 - y0) * 40)})
        if i % 7 == 0:
            objects[-1] |= {"iscrowd": 1, "segmentation": {"size": [8, 10], "counts": [10, 30, 40]}}
        if i % 11 == 0:
            objects[-1] |= {"segmentation": to_rle(objects[-1]["segmentation"], (8, 10))}
    return objects


def test_masks_areas_and_recall_are_those_of_pycocotools(tmp_path: Path) -> None:
    file = write(tmp_path, *shapes(np.random.default_rng(0)))
    dataset = CocoDataset(file)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(file))
        counted = {i: coco.loadAnns(coco.getAnnIds([i], iscrowd=False)) for i in (5, 6)}
        recall, results = AverageRecall(ks=[1, 10, 100]), []
        for index, image_id in enumerate((5, 6)):
            truth = dataset.ground_truth(index)
            assert [decode(rle).tolist() for rle in truth.rles] == [
                coco.annToMask(a).astype(bool).tolist() for a in counted[image_id]
            ]
            assert truth.areas == [a["area"] for a in counted[image_id]]
            found = [rle for rle, area in zip(truth.rles, areas(truth.rles).tolist(), strict=True) if area][::2]
            scores = np.linspace(1, 0.1, len(found)).tolist()
            recall.update(count_matches(truth, found, scores, ks=[1, 10, 100]))
            entries = zip(found, scores, strict=True)
            results += [{"image_id": image_id, "category_id": 1, "segmentation": r, "score": s} for r, s in entries]
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [1, 10, 100]
        evaluation.evaluate()
        evaluation.accumulate()
    theirs = evaluation.eval["recall"][:, 0, 0].mean(0)  # (maxDets,)
    assert recall.compute()["AR@100"] == pytest.approx(theirs[2], abs=1e-12)
    assert recall.compute()["AR@10"] == pytest.approx(theirs[1], abs=1e-12)


def test_where_ours_differs_from_pycocotools(tmp_path: Path) -> None:
    """``ignore`` leaves an object out, unlisted categories and repeated ids count: docs/evaluate.md."""
    file = write(tmp_path, {"ignore": 1}, {"category_id": 99}, {"id": 2})
    assert len(CocoDataset(file).ground_truth(0).rles) == 2
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(file))
    assert len(coco.anns) == 2  # ids 1 and 2


def test_evaluators_read_what_is_counted(tmp_path: Path) -> None:
    """AP of a file with whole floats, an absent area, a piece of two points and an annotation that is left out."""
    file = write(
        tmp_path,
        {"image_id": 5.0, "area": None, "segmentation": [[1, 2, 3, 4], *SQUARE]},
        {"image_id": 7},
        {"image_id": 6, "iscrowd": None, "segmentation": {"size": [8, 10], "counts": [10, 30, 40]}},
    )
    content = CocoDataset(file, bad_annotations="leave_out").evaluator_content()
    assert [(a["image_id"], a["area"], a["iscrowd"]) for a in content["annotations"]] == [(5, 16, 0), (6, 16.0, 0)]
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    assert [coco.annToMask(a).sum() for a in content["annotations"]] == [16, 30]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="reads Linux's account of memory")
def test_forked_workers_share_the_annotations(tmp_path: Path) -> None:
    """A worker that reads every object takes less memory of its own than half of what the coordinates take."""
    polygon = np.random.default_rng(0).uniform(0, 8, 400).round(2).tolist()
    file = write(tmp_path, *[{"segmentation": [polygon], "image_id": 5 + i % 2} for i in range(4000)])
    dataset = CocoDataset(file)
    coordinates_mib = 4000 * 400 * 8 / 2**20
    reading, writing = os.pipe()
    if not (process := os.fork()):
        begin = _private_mib()
        for index in range(2):
            dataset._objects.objects_of(index, (8, 10))
        os.write(writing, f"{_private_mib() - begin}".encode())
        os._exit(0)
    os.waitpid(process, 0)
    assert float(os.read(reading, 50)) < 0.5 * coordinates_mib


def _private_mib() -> float:
    """Memory of this process that it shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


def test_crowds_count_where_they_are_to_count(tmp_path: Path) -> None:
    """A crowd, a crowd to be ignored, and an object."""
    file = write(tmp_path, {"iscrowd": 1, "area": 7.0}, {"iscrowd": 1, "ignore": 1}, {"image_id": 6})
    without, counted = CocoDataset(file), CocoDataset(file, crowds="count")
    assert [without.ground_truth(i).areas for i in range(2)] == [[], [16.0]]
    assert [counted.ground_truth(i).areas for i in range(2)] == [[7.0], [16.0]]
    assert "crowds" not in without.provenance
    assert counted.provenance["crowds"] == "count"
    with pytest.raises(ValueError, match="crowds must be leave_out or count, got 'keep'"):
        CocoDataset(file, crowds="keep")  # pyright: ignore
