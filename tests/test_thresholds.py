"""A model's thresholds travel with its weights, and no mask is never silent."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.training import ADAMW

from mobilesamv2 import SegEvery, build_sam, load_pretrained, save_pretrained
from mobilesamv2.data.synthetic.render import render_scene
from mobilesamv2.prompts import Grid, GridProposals, Hierarchical
from mobilesamv2.structures import SAM_THRESHOLDS, Thresholds
from mobilesamv2.tasks.distill import DistillDecoupled
from mobilesamv2.tasks.teacher import Teacher

SMALL = Thresholds(pred_iou_thresh=0.25, stability_score_thresh=0.6)


def test_thresholds_are_of_the_model() -> None:
    assert load_pretrained("mini_conv").for_inference().thresholds == SMALL
    assert build_sam("micro_conv").thresholds == SMALL
    assert build_sam("mini").thresholds == SAM_THRESHOLDS == Thresholds(0.88, 0.95)


def test_thresholds_travel_with_the_weights(tmp_path: Path) -> None:
    sam = build_sam("mini")
    sam.thresholds = own = Thresholds(0.3, 0.7)
    path = save_pretrained(sam, tmp_path)
    assert load_pretrained(tmp_path).thresholds == own
    assert build_sam("mini", path).thresholds == own
    half = {key: value for key, value in load_file(path).items() if key.startswith("image_encoder.")}
    save_file(half, tmp_path / "encoder.safetensors")
    assert build_sam("mini", [path, tmp_path / "encoder.safetensors"]).thresholds == own
    for metadata, expected in (({}, SAM_THRESHOLDS), ({"pred_iou_thresh": "x", "stability_score_thresh": 0}, None)):
        record = {"name": "mini", "encoder": "tiny_vit_mini"} | metadata
        save_file(load_file(path), tmp_path / "other.safetensors", {"mobilesamv2": json.dumps(record)})
        if expected is not None:  # as in a file of an earlier version
            assert load_pretrained(tmp_path / "other.safetensors").thresholds == expected
        else:
            with pytest.raises(
                ValueError, match=r"metadata of .*other.safetensors are broken: pred_iou_thresh must be"
            ):
                load_pretrained(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="stability_score_thresh must be a number from 0 to 1, got 95"):
        Thresholds(0.88, 95)


def test_a_student_has_its_teachers_thresholds() -> None:
    student, teacher = build_sam("mini"), build_sam("sam_vit_mini")
    teacher.thresholds = Thresholds(0.4, 0.8)
    DistillDecoupled(student, Teacher(teacher), ADAMW, warmup_images=4)
    assert student.thresholds == Thresholds(0.4, 0.8)


def test_explicit_arguments_win() -> None:
    sam = load_pretrained("mini_conv")
    grid = SegEvery(sam, Grid(stability_score_thresh=0.9)).sampler
    assert (grid.filters.pred_iou_thresh, grid.filters.stability_score_thresh) == (0.25, 0.9)
    assert grid.settings["predicted_iou"] == 0.25
    assert "min_mask_region_area" not in grid.settings  # off, as in results.json before it existed
    assert Grid(min_mask_region_area=5).settings["min_mask_region_area"] == 5
    assert SegEvery(sam).sampler == Grid(pred_iou_thresh=0.25, stability_score_thresh=0.6)
    assert SegEvery(sam, GridProposals()).sampler == GridProposals()
    assert SegEvery(sam, Hierarchical()).sampler == Hierarchical(
        pred_iou_thresh=0.25, stability_score_thresh=0.6, high_confidence_iou=0.25
    )
    assert SegEvery(build_sam("mini"), Hierarchical()).sampler.settings == Hierarchical().settings
    assert Hierarchical().settings["confident_iou"] == 0.88
    with pytest.raises(ValueError, match="min_mask_region_area must be at least 0, got -1"):
        Grid(min_mask_region_area=-1)


def test_no_mask_without_a_warning() -> None:
    sam, scene = load_pretrained("mini_conv"), render_scene(0)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(SegEvery(sam, Grid(8))(scene)) > 0
    every = SegEvery(sam, Grid(8, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0))
    best = every(scene)
    for name, scores in (("pred_iou_thresh", best.predicted_iou), ("stability_score_thresh", best.stability_score)):
        strict = SegEvery(sam, Grid(8, **{"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, name: 1.0}))
        with pytest.warns(UserWarning, match=rf"No mask passes {name}=1: the highest \w+ is (\S+)\. Lower") as caught:
            assert len(strict(scene)) == 0
        [said] = caught
        assert f"is {float(scores.max()):.3g}. " in str(said.message)
        assert said.filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # once
            strict(scene)
            strict(np.zeros_like(scene))


def test_a_sampler_without_filters_warns_of_nothing() -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SegEvery(build_sam("mini"), GridProposals(2))(np.zeros((20, 30, 3), np.uint8))
