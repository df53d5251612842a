"""Prompt mIoU: prompts by hand, sums, and evaluate.py with task=evaluate_prompts and evaluate_boxes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from support import ROOT
from support.masks import rectangle

from mobilesamv2 import build_sam
from mobilesamv2.checkpoints import save_weights
from mobilesamv2.cli.main import main as cli
from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.evaluation.prompts import EvaluatePrompts
from mobilesamv2.masks import decode
from mobilesamv2.metrics.average_precision import coco_ap, lvis_ap
from mobilesamv2.metrics.average_recall import group_members
from mobilesamv2.metrics.prompt_iou import GROUPS, KINDS, bootstrap_mean_ious, mean_ious, object_prompts
from mobilesamv2.recipes.evaluate import main
from mobilesamv2.structures import GroundTruth

SIZE = (24, 30)


def evaluate(*overrides: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("evaluate", [*overrides, "trainer.accelerator=cpu", "+trainer.enable_progress_bar=false"])
    main(cfg)


@pytest.fixture
def scenes(tmp_path: Path) -> list[str]:
    cli(["synthesize", str(tmp_path / "scenes"), "--scenes", "3", "--size", "96", "--workers", "0"])
    return [
        f"dataset.annotations={tmp_path / 'scenes' / 'annotations.json'}",
        f"dataset.images={tmp_path}/scenes/images",
    ]


def result(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_prompts_by_hand() -> None:
    truth = GroundTruth(3, SIZE, [rectangle(4, 6, 9, 5), rectangle(0, 0, 1, 1)], [45.0, 1.0], [None, None])
    found = {asked.kind: asked for asked in object_prompts(truth, KINDS, seed=0)}
    boxes = found["box"].prompts.boxes_xyxy
    assert boxes is not None
    assert boxes.tolist() == [[4, 6, 13, 11], [0, 0, 1, 1]]
    centre = found["centre"].prompts.points
    assert centre is not None
    assert centre[0, 0].tolist() in [[x, 8.0] for x in range(6, 11)]
    assert centre[1, 0].tolist() == [0, 0]
    for kind, count in (("points_1", 1), ("points_3", 3), ("points_5", 5)):
        points = found[kind].prompts.points
        assert points is not None
        assert points.shape == (2, count, 2)
        for x, y in points[0].long().tolist():
            assert decode(truth.rles[0])[y, x]
        assert (points[1] == 0).all()
    three = found["points_3"].prompts.points
    assert three is not None
    assert len({tuple(p) for p in three[0].tolist()}) == 3
    again = object_prompts(truth, ["points_3"], seed=0)[0].prompts.points
    other = object_prompts(truth, ["points_3"], seed=1)[0].prompts.points
    assert again is not None
    assert other is not None
    assert torch.equal(three, again)
    assert not torch.equal(three, other)


def test_means_are_over_objects_of_a_size() -> None:
    truth = GroundTruth(3, SIZE, [rectangle(0, 0, 1, 1)] * 3, [1024.0, 5.0, 1e4], [None] * 3)
    members = group_members(truth)[: len(GROUPS)]
    assert members.sum(1).tolist() == [3, 2, 1, 1]
    values = mean_ious(np.array([[0.2, 0.6, 1.0]]) @ members.T, members.sum(1), ["box"])
    assert values == pytest.approx({"mIoU box": 0.6, "mIoUs box": 0.4, "mIoUm box": 0.2, "mIoUl box": 1.0})
    empty = mean_ious(np.zeros((1, 4)), np.zeros(4), ["box"])
    assert set(empty.values()) == {None}
    sums, counts = np.array([[[1.0] * 4], [[0.0] * 4]]), np.ones((2, 4))
    interval = bootstrap_mean_ious(sums, counts, ["box"], resamples=200)["mIoU box"]
    assert interval == [0.0, 1.0]


def test_the_iou_is_that_of_segany_s_masks(scenes: list[str], tmp_path: Path) -> None:
    """A hand-written loop over one image gives the same mean."""
    from mobilesamv2 import SegAny

    dataset = LvisDataset(tmp_path / "scenes" / "annotations.json", tmp_path / "scenes" / "images")
    sam = build_sam("mini")
    image, truth = dataset[0]
    (outcome,) = EvaluatePrompts(sam, kinds=["box", "points_1"]).evaluate_images([(image, truth)])
    segany = SegAny(sam)
    segany.set_image(image)
    for k, asked in enumerate(object_prompts(truth, ["box", "points_1"], seed=0)):
        prompts = asked.prompts
        given = {"boxes": prompts.boxes_xyxy} if asked.kind == "box" else {"points": prompts.points}
        masks, predicted_iou, _ = segany.predict(**given, multimask_output=asked.kind == "points_1")
        total = 0.0
        for i, rle in enumerate(truth.rles):
            mask, wanted = masks[i, predicted_iou[i].argmax()], decode(rle)
            total += (mask & wanted).sum() / (mask | wanted).sum()
        assert outcome.values["iou_sums"][k, 0] == pytest.approx(total)


def test_evaluate_prompts_against_objects_and_against_a_teacher(
    scenes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_weights(build_sam("mini"), tmp_path / "mini.safetensors")
    given = [*scenes, "task=evaluate_prompts", "model=mini", f"model.checkpoint={tmp_path / 'mini.safetensors'}"]
    evaluate(*given, f"output_dir={tmp_path / 'objects'}")
    assert "points_5" in capsys.readouterr().out
    objects = result(tmp_path / "objects")
    assert objects["n_gt"]["all"] > 10
    assert 0 <= objects["metrics"]["mIoU box"] < 0.9
    low, high = objects["interval"]["mIoU box"]
    assert low <= objects["metrics"]["mIoU box"] <= high
    assert objects["protocol"]["mean_prompts_decoded"] == pytest.approx(5 * objects["n_gt"]["all"] / 3)
    own = [*given, "model@teacher=mini", f"teacher.checkpoint={tmp_path / 'mini.safetensors'}"]
    evaluate(*own, f"output_dir={tmp_path / 'itself'}", "task.kinds=[box,centre]")
    itself = result(tmp_path / "itself")
    assert itself["metrics"]["mIoU box"] == itself["metrics"]["mIoU centre"] == 1.0
    assert itself["protocol"]["against"] == "masks of the teacher, mini"
    with pytest.raises(SystemExit, match=r"error: task\.kinds must be some of box, centre, .*, got edge"):
        evaluate(*given, f"output_dir={tmp_path / 'typo'}", "task.kinds=[edge]")


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["lvis", "coco"])
def test_evaluate_boxes_scores_its_masks(
    scenes: list[str], tmp_path: Path, dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two boxes of an image without objects, and one image without boxes."""
    annotations = json.loads((tmp_path / "scenes" / "annotations.json").read_text())["annotations"]
    boxes = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.5} for a in annotations]
    kept = [box for box in boxes if box["image_id"] != 2]
    (tmp_path / "boxes.json").write_text(json.dumps(kept))
    given = [
        f"dataset={dataset}",
        *scenes,
        "task=evaluate_boxes",
        "model=mini",
        f"task.boxes={tmp_path / 'boxes.json'}",
    ]
    out = tmp_path / "out"
    evaluate(*given, f"output_dir={out}")
    assert "mask AP (%)" in capsys.readouterr().out
    found = result(out)
    masks = [entry for path in (out / "masks").glob("*.json") for entry in json.loads(path.read_text())]
    assert len(masks) == len(kept)
    assert found["protocol"]["images_without_boxes"] == 1
    assert found["n_gt"]["all"] == len(boxes)
    assert 0 <= found["metrics"]["AP"] < 0.9
    assert found["protocol"]["evaluator"] == f"{dataset}_ap"
    evaluate(*given, "task.max_boxes=2", f"output_dir={tmp_path / 'two'}")
    assert result(tmp_path / "two")["protocol"]["mean_prompts_decoded"] == pytest.approx(4 / 3)


@pytest.mark.parametrize("score", [coco_ap, lvis_ap])
def test_ap_counts_an_object_of_id_0_and_leaves_out_ignored_ones(score) -> None:
    """Two of three objects are found, and the third is to be ignored: AP is 1."""
    images = [{"id": i, "height": 24, "width": 30} for i in (7, 3)]
    rles = [rectangle(1, 1, 10, 8), rectangle(15, 3, 9, 9), rectangle(2, 12, 8, 8)]
    objects = [
        {"id": i, "image_id": image_id, "category_id": 4, "segmentation": rle, "area": 80.0, "ignore": i == 2}
        for i, (rle, image_id) in enumerate(zip(rles, (7, 3, 3), strict=True))
    ]
    content = {"images": images, "annotations": objects, "categories": [{"id": 4, "name": "a"}]}
    masks = [
        {"image_id": o["image_id"], "category_id": 4, "segmentation": o["segmentation"], "score": 0.9}
        for o in objects[:2]
    ]
    assert score(content, masks, [7, 3]).values["AP"] == pytest.approx(1.0)
    # one of two objects found, first of the list: precision 1 up to recall .5, at 51 of 101 recall thresholds
    assert score(content, masks[:1], [7, 3]).values["AP"] == pytest.approx(51 / 101)
    assert score(content, masks[:1], [7]).values["AP"] == pytest.approx(1.0)
    assert not hasattr(np, "float")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"image_id": 0, "category_id": 1, "score": 1}], "number 0 of .* has no bbox"),
        ([{"image_id": 0, "category_id": 1, "bbox": [0, 0, -1, 2], "score": 1}], r"bbox of .*got \[0, 0, -1, 2\]"),
        ([{"image_id": 0, "category_id": 1, "bbox": [0, 0, 1], "score": 1}], r"bbox of .*got \[0, 0, 1\]"),
        ([{"image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}], "has no box on any of the 3 images"),
        (
            [{"image_id": 0, "category_id": 9, "bbox": [0, 0, 1, 1], "score": 1}],
            "must have a category that the annotations list, got 9",
        ),
        ([{"image_id": 0, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 10**400}], "must have a finite score"),
    ],
)
def test_broken_boxes_are_refused(scenes: list[str], tmp_path: Path, entries: list, message: str) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps(entries))
    given = [*scenes, "task=evaluate_boxes", "model=mini", f"task.boxes={tmp_path / 'boxes.json'}"]
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        evaluate(*given, f"output_dir={tmp_path / 'out'}")


def test_boxes_are_asked_for(scenes: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: task\.boxes must name .* task\.boxes=FILE"):
        evaluate(*scenes, "task=evaluate_boxes", "model=mini", f"output_dir={tmp_path / 'out'}")
    with pytest.raises(SystemExit, match=r"error: There is no file none\.json"):
        evaluate(*scenes, "task=evaluate_boxes", "model=mini", "task.boxes=none.json", f"output_dir={tmp_path / 'out'}")
    with pytest.raises(ConfigCompositionException, match="boxes"):
        evaluate(
            *scenes, "task=evaluate_prompts", "model=mini", "task.boxes=none.json", f"output_dir={tmp_path / 'out'}"
        )
    with pytest.raises(SystemExit, match=r"error: evaluate\.py does not run the recipe distill; train\.py does"):
        evaluate(*scenes, "recipe=distill", f"output_dir={tmp_path / 'out'}")
