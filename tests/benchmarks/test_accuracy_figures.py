"""Accuracy in the documentation is that of the files of results."""

import json
import re
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import accuracy
import accuracy_texts
import annotated_boxes
import mask_errors
import photos
import pretrained_start
import prompt_head
import recipes
import recipes_texts
from figures import Figure, Figures, figures_of, prompt_change, read_evaluations, recall_change, write_evaluations

Texts = Callable[[Figures], dict[str, str]]

FILES: dict[Path, Texts] = {
    accuracy_texts.ACCURACY: accuracy_texts.texts,
    recipes_texts.RECIPES: recipes_texts.texts,
    mask_errors.MASK_ERRORS: lambda figures: {"mask_errors": mask_errors.text(figures)},
    photos.PHOTOS: lambda figures: {"photos": photos.table(figures)},
    pretrained_start.PRETRAINED_START: lambda figures: {"pretrained_start": pretrained_start.text(figures)},
    prompt_head.PROMPT_HEAD: lambda figures: {"prompt_head_time": prompt_head.text(figures)},
}
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@each_file
def test_the_pages_state_the_file(path: Path) -> None:
    pages = [page.read_text() for page in accuracy_texts.PAGES]
    for name, text in FILES[path](read_evaluations(path)).items():
        block = f"<!-- {name}: begin -->\n{text}\n<!-- {name}: end -->"
        assert sum(block in page for page in pages) == 1, name


@each_file
def test_no_figure_is_written_into_a_text(path: Path) -> None:
    """With zeros in the file no text has another decimal or percentage; [95%] is none."""
    nothing = {
        name: {metric: Figure(0.0, 0.0, 0.0) for metric in metrics} for name, metrics in read_evaluations(path).items()
    }
    for name, text in FILES[path](nothing).items():
        assert {float(number) for number in re.findall(r"(?<![v\d.\[])(\d+\.\d+|\d+(?=%))", text)} <= {0.0}, name
        assert text != FILES[path](read_evaluations(path))[name]


def test_what_the_guide_says_of_the_prompt_head_holds() -> None:
    figures = read_evaluations(accuracy_texts.ACCURACY)
    detector, head = (
        [figures[f"{images}_reached_{name}"]["recall_75"].value for images in ("scenes", "photos")]
        for name in accuracy_texts.HEADS
    )
    changes = [figures[f"{images}_masks_change"]["mAR"].value for images in ("scenes", "photos")]
    for looser, masks in zip(np.subtract(head, detector), changes, strict=True):
        assert looser < masks < 0  # "less tight, which matters less to masks than to box recall"
    assert changes[1] < changes[0]  # "on photographs the head falls behind by more"
    boxes, grid = (figures[f"photos_sampled_{by}"]["mAR"] for by in ("boxes", "grid"))
    assert boxes.value <= grid.value  # "boxes are no better than points"


def test_what_the_card_says_of_the_masks_holds() -> None:
    figures = read_evaluations(mask_errors.MASK_ERRORS)
    one, two, more = (figures[name] for name in mask_errors.PIECES)
    assert one["mIoU box"].value > two["mIoU box"].value > more["mIoU box"].value
    assert one["share"].value < one["share in LVIS"].value  # "more of them are partly hidden"
    filling = figures[mask_errors.FILLING]
    assert filling["share"].value > filling["share in LVIS"].value
    own, larger = (figures[f"input_{size}"] for size in (256, 384))
    assert [larger[f"mIoU{size} box"].value > own[f"mIoU{size} box"].value for size in "sml"] == [True, False, False]


def test_what_the_guide_says_of_the_chain_holds() -> None:
    figures = read_evaluations(photos.PHOTOS)
    assert figures["trained_sampled_boxes"]["mAR"].value > figures["trained_sampled_grid"]["mAR"].value
    lost = figures["distillation_sampled_boxes"]["mAR"]
    assert lost.low is not None
    assert lost.low > -0.01  # "keeps nearly all"
    points = figures["training_prompts"]["mIoU points_3"]
    assert points.high is not None
    assert points.high < 0


def test_figures_are_read_as_they_are_written(tmp_path: Path) -> None:
    figures = {"a": {"mAR": Figure(0.125, 0.1, 0.2), "images": Figure(12000.0)}, "b": {"mIoU box": Figure(-0.5)}}
    write_evaluations(tmp_path / "results" / "figures.csv", figures)
    assert read_evaluations(tmp_path / "results" / "figures.csv") == figures
    assert figures["a"]["mAR"].interval() == "12.5 [10.0, 20.0]"
    assert figures["a"]["mAR"].change() == "+12.5 [+10.0, +20.0]"
    with pytest.raises(ValueError, match="must have an interval"):
        figures["b"]["mIoU box"].change()


def test_a_box_that_is_off_is_counted(tmp_path: Path) -> None:
    square = {"segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]], "area": 400, "iscrowd": 0, "category_id": 1}
    boxes = [[10, 10, 20, 20], [10, 10, 20, 22], [10, 10, 150, 20], [10.5, 10, 20, 20]]
    objects = [{"id": i, "image_id": 1, "bbox": box, **square} for i, box in enumerate(boxes, 1)]
    objects.append({**objects[1], "id": 9, "iscrowd": 1, "segmentation": {"size": [200, 300], "counts": [60000]}})
    content = {"images": [{"id": i, "height": 200, "width": 300, "file_name": f"{i}.jpg"} for i in (1, 2)],
               "annotations": objects, "categories": [{"id": 1, "name": "square"}]}  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(content))
    images, far = annotated_boxes.differences(tmp_path / "coco.json")
    assert (images, far.tolist()) == (2, [0, 2, 130, 0.5])


@pytest.mark.slow
def test_all_evaluations_in_miniature(shared_data: Path, tmp_path: Path) -> None:
    # the fourth photograph is the first with regions of all sizes
    given = {name: [*each, "dataset.limit=4"] for name, each in accuracy.evaluations(shared_data / "bsds").items()}
    figures = accuracy.measure(given, tmp_path)
    assert (
        accuracy_texts.texts(figures).keys() == accuracy_texts.texts(read_evaluations(accuracy_texts.ACCURACY)).keys()
    )
    assert {each["images"].value for name, each in figures.items() if "change" not in name} == {4}
    first, second = (tmp_path / f"scenes_masks_{name}" for name in accuracy_texts.HEADS)
    change = recall_change(first, second)["mAR"]
    assert change.value == pytest.approx(figures_of(second)["mAR"].value - figures_of(first)["mAR"].value)
    with pytest.raises(ValueError, match="their image_ids must be the same"):
        recall_change(first, tmp_path / "photos_masks_mini_detector")
    one, other = (tmp_path / f"choice_{name}" for name in ("predicted_iou", "oracle"))
    change, metrics = prompt_change(one, other)["mIoU box"], [figures_of(folder)["mIoU box"] for folder in (one, other)]
    assert change.value == pytest.approx(metrics[1].value - metrics[0].value)
    assert change.low is not None
    assert change.low >= 0  # the best mask is never worse
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz") if path.name != "per_image.npz"}
    assert accuracy.measure(given, tmp_path) == figures
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.slow
def test_ways_to_train_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "WAYS", {way: way for way in ("distill", "distill_semi_coupled")})
    args = Namespace(start=1, steps=1, scenes=2, lr=1e-3, output=tmp_path)
    figures = recipes.measure(args)
    assert figures["distill_teacher_change"]["mIoU box"].low is not None
    assert figures["start_objects"]["images"].value == 2
    assert figures["distill_semi_coupled"]["cpu_s"].value > 0
    assert recipes.measure(args) == figures  # the seconds too


@pytest.mark.slow
def test_the_chain_on_photographs_in_miniature(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [*accuracy.photographs(shared_data / "bsds"), "dataset.limit=2"]
    monkeypatch.setattr(photos, "photographs", lambda _: few)
    args = Namespace(limit=photos.HELD_OUT + 16, epochs=1, output=tmp_path)
    models = photos.trained(shared_data / "bsds", args)
    figures = photos.measure(shared_data / "bsds", models, tmp_path)
    assert figures.keys() == read_evaluations(photos.PHOTOS).keys()
    assert figures["trained_prompts"]["mIoU box"] != figures["photos_prompts"]["mIoU box"]
    assert photos.table(figures) != photos.table(read_evaluations(photos.PHOTOS))
