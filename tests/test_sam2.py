"""SAM 2 in miniature, by each sampler, program and page that SAM has."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.official_sam2 import calibrate_sam2, official_sam2_mini, ours_from_sam2
from support.runs import evaluate_here

from mobilesamv2 import SegAny, SegEvery
from mobilesamv2.app.demo import open_demo
from mobilesamv2.app.everything import segment_everything
from mobilesamv2.app.session import Interactions, Point
from mobilesamv2.checkpoints import save_weights
from mobilesamv2.cli.main import main as cli
from mobilesamv2.masks import decode
from mobilesamv2.models.sam import Sam
from mobilesamv2.prompts import Grid, Hierarchical, ObjectAware


class TwoBoxes:
    """Stands in for a detector."""

    def detect(self, image: np.ndarray, **settings: object) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([[10.0, 12, 80, 70], [60, 20, 120, 80]]), torch.tensor([0.9, 0.8])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights whose masks pass the filters."""
    folder = tmp_path_factory.mktemp("sam2")
    official = official_sam2_mini()
    calibrate_sam2(official, np.random.default_rng(7).integers(0, 255, (90, 130, 3), dtype=np.uint8))
    save_weights(ours_from_sam2(official, folder), folder / "sam2_mini.safetensors")
    return folder / "sam2_mini.safetensors"


@pytest.fixture
def sam(weights: Path) -> Sam:
    from mobilesamv2 import load_pretrained

    return load_pretrained(weights)


@pytest.mark.parametrize(
    "sampler",
    [Grid(points_per_side=8), ObjectAware(TwoBoxes()), Hierarchical(points_per_side=8)],
    ids=lambda s: type(s).__name__,
)
def test_segevery_by_each_sampler(sam: Sam, photo: np.ndarray, sampler) -> None:
    masks = SegEvery(sam, sampler)(photo)
    assert len(masks) >= 1
    assert all(decode(rle).shape == photo.shape[:2] for rle in masks.rles)
    # a copy for inference finds the same
    again = SegEvery(sam.for_inference(), sampler)(photo)
    assert len(again) == len(masks)


def test_segany_of_a_box_is_in_the_images_own_frame(sam: Sam, photo: np.ndarray) -> None:
    segany = SegAny(sam)
    segany.set_image(photo)
    masks, predicted_iou, low_res = segany.predict(boxes=[10, 12, 80, 70], multimask_output=False)
    assert masks.shape == (1, 1, 90, 130)
    assert low_res.shape == (1, 1, 64, 64)
    assert 0 < predicted_iou[0, 0] < 1


def test_segment_and_the_page(weights: Path, photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    given = [str(tmp_path / "photo.png"), "-o", str(tmp_path / "out"), "--model", str(weights)]
    cli(["segment", *given, "--sampler", "grid", "--points-per-side", "8"])
    annotations = json.loads((tmp_path / "out" / "masks.json").read_text())["annotations"]
    assert annotations
    assert all(annotation["segmentation"]["size"] == [90, 130] for annotation in annotations)

    demo = open_demo(str(weights), tmp_path)
    session = demo.open(tmp_path / "photo.png")
    prediction = session.predict(Interactions((Point(32, 45),)), demo.model)
    assert prediction is not None
    assert prediction.mask.shape == (90, 130)
    found = segment_everything(demo.models[demo.model], Grid(8), photo)
    assert len(found.masks) > 0


@pytest.mark.parametrize(
    "given",
    [
        ["task=evaluate_proposals", "prompt_sampler=grid_proposals", "prompt_sampler.points_per_side=4"],
        ["task=evaluate_prompts", "task.kinds=[box,centre]"],
        ["task=evaluate_prompts", "task.kinds=[box]", "model@teacher=by_name", "teacher.name=sam2_mini"],
    ],
    ids=["proposals", "prompts", "teacher"],
)
def test_evaluations(given: list[str], weights: Path, tmp_path: Path) -> None:
    results = evaluated(weights, tmp_path / "out", *given, "dataset=synthetic", "dataset.limit=2")
    assert results["run"]["model"]["encoder"] == "sam2_hiera_mini"


def test_evaluation_of_a_detectors_boxes(weights: Path, photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "1.png")
    polygon = [10, 10, 60, 10, 60, 60, 10, 60]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [polygon], "area": 2500.0, "iscrowd": 0}
    image = {"id": 1, "height": 90, "width": 130, "file_name": "1.png"}
    content = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    box = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50], "score": 0.9}
    (tmp_path / "boxes.json").write_text(json.dumps([box]))
    given = ["dataset=coco", f"dataset.annotations={tmp_path / 'coco.json'}", f"dataset.images={tmp_path}"]
    given += ["task=evaluate_boxes", f"task.boxes={tmp_path / 'boxes.json'}"]
    assert evaluated(weights, tmp_path / "out", *given)["protocol"]["mean_prompts_decoded"] == 1


def evaluated(weights: Path, out: Path, *given: str) -> dict[str, Any]:
    model = ["model=by_name", "model.name=sam2_mini", f"model.checkpoint={weights}"]
    evaluate_here(*given, *model, "trainer.accelerator=cpu", "num_workers=0", f"output_dir={out}")
    return json.loads((out / "results.json").read_text())
