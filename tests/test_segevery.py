"""SegAny's and SegEvery's behaviour beyond parity: contracts, empty results, bad input, what COCO makes of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from support.official import calibrate, official_mini, ours_from

from mobilesamv2 import SegAny, SegEvery, build_sam
from mobilesamv2.masks import decode
from mobilesamv2.metrics.stage_time import summarize
from mobilesamv2.models.sam import Sam
from mobilesamv2.prompts import Grid, GridProposals, ObjectAware
from mobilesamv2.rle_encoder import RleEncoder
from mobilesamv2.structures import Filters, Masks, Prompts


@pytest.fixture
def sam(photo: np.ndarray, tmp_path: Path) -> Sam:
    official = official_mini()
    calibrate(official, photo)
    return ours_from(official, tmp_path)


class Boxes:
    """A detector that always says the same."""

    def __init__(self, *boxes: tuple[float, ...]) -> None:
        self.boxes, self.asked = torch.tensor(boxes).reshape(-1, 4), {}

    def detect(self, image: np.ndarray, **settings: float) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked = settings
        return self.boxes, torch.linspace(0.9, 0.5, len(self.boxes))


def test_object_aware_boxes_are_segany_with_these_boxes(sam: Sam, photo: np.ndarray) -> None:
    boxes = [(5.0, 5, 60, 50), (40, 20, 120, 80)]
    detector = Boxes(*boxes)
    masks = SegEvery(sam, ObjectAware(detector))(photo)
    assert detector.asked == {"confidence": 0.4, "nms_iou": 0.9, "max_boxes": 320, "snap": 20}
    segany = SegAny(sam)
    segany.set_image(photo)
    expected = segany.predict(boxes=boxes, multimask_output=False)
    assert len(masks) == 2
    assert torch.equal(masks.scores, torch.tensor([0.9, 0.5]))
    assert torch.equal(masks.prompts.boxes_xyxy, torch.tensor(boxes))
    for rle, mask in zip(masks.rles, expected.masks[:, 0], strict=True):
        assert (decode(rle) == mask).all()
    by_iou = SegEvery(sam, ObjectAware(detector, rank_by="predicted_iou"))(photo)
    assert by_iou.scores.tolist() == pytest.approx(expected.predicted_iou[:, 0].tolist(), abs=1e-5)


def test_object_aware_points_are_the_centres(sam: Sam, photo: np.ndarray) -> None:
    masks = SegEvery(sam, ObjectAware(Boxes((10.0, 20, 50, 40)), prompt="points", multimask_output=True))(photo)
    assert masks.prompts.points is not None
    assert masks.prompts.points.tolist() == [[[30.0, 30.0]]] * 3


def test_no_objects_no_masks(sam: Sam, photo: np.ndarray) -> None:
    masks = SegEvery(sam, ObjectAware(Boxes()))(photo)
    assert len(masks) == 0
    assert masks.to_coco(image_id=1) == []


def test_nothing_passes_the_filters(sam: Sam, photo: np.ndarray) -> None:
    with torch.no_grad():
        sam.mask_decoder.iou_prediction_head.layers[-1].bias.sub_(10)  # pyright: ignore
    masks = SegEvery(sam, Grid(points_per_side=4))(photo)
    assert len(masks) == 0
    assert masks.to_coco(image_id=1) == []


def test_filters_hold_for_what_is_kept(sam: Sam, photo: np.ndarray) -> None:
    masks = SegEvery(sam, Grid(points_per_side=8))(photo)
    assert len(masks) > 0
    assert (masks.predicted_iou > 0.88).all()
    assert (masks.stability_score >= 0.95).all()
    assert torch.allclose(masks.scores, (masks.predicted_iou + masks.stability_score) / 2)
    assert (masks.predicted_iou.diff() <= 0).all()


def test_proposals_have_no_filter_and_no_empty_mask(sam: Sam, photo: np.ndarray) -> None:
    every = SegEvery(sam, GridProposals(points_per_side=6, box_nms_thresh=1.0))(photo)
    assert 0.9 * 6 * 6 * 3 <= len(every) <= 6 * 6 * 3
    assert all(decode(rle).any() for rle in every.rles)
    assert len(SegEvery(sam, GridProposals(points_per_side=6))(photo)) < len(every)


class TwoRounds:
    """Asks a second time at the centres of what the first round found."""

    multimask_output, filters, settings, one_round = False, Filters(), {}, False
    seen: Masks | None = None

    def rounds(self, image: np.ndarray, embedding: torch.Tensor):
        self.seen = yield Prompts(points=torch.tensor([[[20.0, 30.0]], [[90.0, 50.0]]]), labels=torch.ones(2, 1).long())
        yield Prompts(
            points=self.seen.boxes_xyxy.reshape(-1, 2, 2).mean(1)[:, None], labels=torch.ones(len(self.seen), 1).long()
        )

    def rank(self, predicted_iou: torch.Tensor, stability_score: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        return predicted_iou


def test_a_sampler_sees_each_rounds_masks(sam: Sam, photo: np.ndarray) -> None:
    sampler = TwoRounds()
    masks = SegEvery(sam, sampler)(photo)
    assert sampler.seen is not None
    assert len(sampler.seen) == 2
    assert len(masks) == 4
    assert masks.rles[:2] == sampler.seen.rles


class Script(TwoRounds):
    """Says what it is told to."""

    def __init__(self, *rounds: Prompts) -> None:
        self.script = rounds

    def rounds(self, image: np.ndarray, embedding: torch.Tensor):
        for prompts in self.script:  # noqa: UP028, since `send` reaches no tuple
            yield prompts


def test_a_round_may_be_empty_and_rounds_are_of_one_kind(sam: Sam, photo: np.ndarray) -> None:
    point = Prompts(points=torch.tensor([[[20.0, 30.0]]]), labels=torch.ones(1, 1).long())
    box = Prompts(boxes_xyxy=torch.tensor([[5.0, 5, 60, 50]]))
    assert len(SegEvery(sam, Script(point, point[:0]))(photo)) == 1
    assert len(SegEvery(sam, Script(point[:0], box))(photo)) == 1
    assert len(SegEvery(sam, Script(box[:0]))(photo)) == 0
    with pytest.raises(ValueError, match="must be of one kind"):
        SegEvery(sam, Script(point, box))(photo)


def test_half_precision_weights(photo: np.ndarray) -> None:
    """Runs, and finds about the masks that full precision finds."""
    torch.manual_seed(0)
    full, half = SegAny(build_sam("mini")), SegAny(build_sam("mini"))
    half.sam.load_state_dict(full.sam.state_dict())
    half.sam.bfloat16()
    for segany in (full, half):
        segany.set_image(photo)
    a, b = (s.predict(boxes=[[10, 10, 80, 60]], multimask_output=False) for s in (full, half))
    again = half.predict(boxes=[[10, 10, 80, 60]], mask_input=b.low_res_logits[:, 0], multimask_output=False)
    assert np.isfinite(again.low_res_logits).all()
    assert np.abs(a.low_res_logits - b.low_res_logits).mean() < 0.05 * np.abs(a.low_res_logits).max()


def test_masks_are_chosen_by_index_or_by_truth(sam: Sam, photo: np.ndarray) -> None:
    masks = SegEvery(sam, GridProposals(points_per_side=4))(photo)
    best = masks.predicted_iou > masks.predicted_iou.median()
    assert masks[best].rles == masks[best.nonzero().flatten()].rles
    assert len(masks[best]) == int(best.sum()) == len(masks[best].scores)


def test_coco_loads_the_results(sam: Sam, photo: np.ndarray, tmp_path: Path) -> None:
    results = SegEvery(sam, GridProposals(points_per_side=6))(photo).to_coco(image_id=4)
    scores = [r["score"] for r in results]
    assert scores == sorted(scores, reverse=True)
    coco = COCO()
    coco.dataset = {"images": [{"id": 4, "height": 90, "width": 130}], "annotations": [], "categories": [{"id": 1}]}
    coco.createIndex()
    (tmp_path / "results.json").write_text(json.dumps(results))
    loaded = coco.loadRes(str(tmp_path / "results.json"))
    assert len(loaded.anns) == len(results)
    for annotation in loaded.anns.values():
        mask = coco.annToMask(annotation)
        y, x = np.nonzero(mask)
        assert annotation["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (500, 3)])
def test_images_of_odd_shapes(sam: Sam, size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 128, np.uint8)
    for mask in SegEvery(sam, GridProposals(points_per_side=3))(image).rles:
        assert mask["size"] == list(size)


def test_images_of_unlike_sizes_together(sam: Sam, photo: np.ndarray) -> None:
    images = [photo, photo[:50, ::-1].copy(), photo[:, :40].copy()]
    segevery = SegEvery(sam, Grid(points_per_side=8))
    together = []
    for masks in segevery.generate_batch(images):
        together.append(masks)
        assert segevery.timer.num_prompts == 64
        assert all(ms > 0 for ms in segevery.timer.ms.values())
    assert sum(map(len, together)) > 0
    for image, masks in zip(images, together, strict=True):
        assert masks.rles == segevery(image).rles


def test_time_is_kept_by_stage(sam: Sam, photo: np.ndarray) -> None:
    segevery = SegEvery(sam, GridProposals(points_per_side=4))
    times = []
    for _ in range(3):
        segevery(photo)
        times.append(segevery.timer.ms)
        assert segevery.timer.num_prompts == 16
    summary = summarize(times)
    stages = ["image_encoder", "prompt_sampling", "mask_decoder", "postprocessing"]
    assert list(summary) == [*stages, "total"]
    assert all(s["p10"] <= s["median"] <= s["p90"] for s in summary.values())
    assert summary["mask_decoder"]["median"] > 0
    sums = [sum(image.values()) for image in times]
    assert summary["total"]["median"] == pytest.approx(np.median(sums))


def test_prompts_without_an_image() -> None:
    with pytest.raises(RuntimeError, match="set_image"):
        SegAny(build_sam("mini")).predict(boxes=[[0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "Prompts must have points, boxes or mask_input"),
        ({"boxes": np.zeros((0, 4))}, "0 prompts"),
        ({"labels": [[1]]}, "labels and no points"),
        ({"points": [1, 2]}, r"points must have shape \(N, P, 2\)"),
        ({"points": [[1, 2]], "labels": [1, 0]}, "labels must have one entry per point"),
        ({"points": [[1, 2]], "labels": [2]}, "labels must be 1 .*, got 2"),
        ({"boxes": [[0, 0, 1]]}, r"boxes must have shape \(N, 4\)"),
        ({"boxes": [[0, 0, 1, np.nan]]}, "boxes must be finite, got NaN"),
        ({"boxes": [[0, 0, 1, 1]], "points": [[[1, 1]], [[2, 2]]]}, "must be of the same number of prompts"),
        ({"boxes": [[0, 0, 1, 1]] * 3, "mask_input": np.zeros((2, 64, 64))}, "got 3 of boxes and 2 of mask_input"),
        ({"mask_input": np.zeros((1, 8, 8))}, r"mask_input must have shape \(N, 64, 64\)"),
    ],
)
def test_bad_prompts_are_refused(photo: np.ndarray, prompts: dict, message: str) -> None:
    segany = SegAny(build_sam("mini"))
    segany.set_image(photo)
    with pytest.raises(ValueError, match=message):
        segany.predict(**prompts)


def test_a_name_is_no_model() -> None:
    for kind in (SegAny, SegEvery):
        with pytest.raises(TypeError, match=r"sam must be a model, .* got str\. .*from_pretrained\(name\)"):
            kind("mini_conv")


def test_a_name_or_a_class_is_no_sampler(sam: Sam) -> None:
    for sampler, got in (("grid", "str"), (Grid, "the class Grid"), (0, "int")):
        with pytest.raises(TypeError, match=rf"sampler must be a prompt sampler .*, Grid\(\) for example, got {got}"):
            SegEvery(sam, sampler)  # pyright: ignore[reportArgumentType]


def test_an_array_of_images_is_a_batch(sam: Sam, photo: np.ndarray) -> None:
    segevery = SegEvery(sam, GridProposals(points_per_side=2))
    found = list(segevery.generate_batch(np.stack([photo, photo[::-1]])))  # pyright: ignore[reportArgumentType]
    assert [masks.rles for masks in found] == [segevery(image).rles for image in (photo, photo[::-1])]
    assert list(segevery.generate_batch(np.zeros((0, 8, 8, 3), np.uint8))) == []  # pyright: ignore[reportArgumentType]


def test_one_mask_input_serves_all_boxes(sam: Sam, photo: np.ndarray) -> None:
    segany, boxes = SegAny(sam), [[0, 0, 50, 40], [20, 20, 120, 80]]
    segany.set_image(photo)
    low_res = segany.predict(points=[[30, 30]], multimask_output=False).low_res_logits[0, 0]
    together = segany.predict(boxes=torch.tensor(boxes), mask_input=low_res)
    each = segany.predict(boxes=boxes, mask_input=[low_res, low_res])
    assert (together.masks == each.masks).all()
    assert together.masks.shape == (2, 3, 90, 130)


@pytest.mark.parametrize("settings", [{"prompt": "box"}, {"rank_by": "area"}])
def test_object_aware_settings_are_checked(settings: dict) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        ObjectAware(Boxes(), **settings)


@pytest.mark.parametrize("waiting", [0, 3 * 64 * 64 * 64 * 4])
def test_masks_do_not_depend_on_when_they_are_encoded(
    sam: Sam, photo: np.ndarray, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where NMS alone chooses, masks wait for it as logits, all of them, some or none."""
    segevery = SegEvery(sam, GridProposals(points_per_side=12))
    encoded: list[int] = []
    encode = RleEncoder.__call__

    def counted(self: RleEncoder, logits: torch.Tensor, stability_score_thresh: float = 0.0) -> Any:
        encoded.append(len(logits))
        return encode(self, logits, stability_score_thresh)

    monkeypatch.setattr(RleEncoder, "__call__", counted)
    expected = segevery(photo)
    assert sum(encoded) == len(expected) < 12 * 12 * 3
    encoded.clear()
    monkeypatch.setattr("mobilesamv2.segevery.MAX_PENDING_BYTES", waiting)
    found = segevery(photo)
    assert sum(encoded) > len(expected)
    assert found.rles == expected.rles
    for name in ("boxes_xyxy", "predicted_iou", "stability_score", "scores", "prompt_index"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
