"""Clicks: by hand, against a slow clicker of its own, and through a model made by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mobilesamv2 import SegAny, build_sam
from mobilesamv2.evaluation.clicks import EvaluateClicks
from mobilesamv2.masks import decode, encode
from mobilesamv2.metrics.clicks import (
    Click,
    bootstrap_click_metrics,
    click_metrics,
    clicks_needed,
    farthest_click,
    random_click,
)
from mobilesamv2.models.sam import Sam
from mobilesamv2.structures import GroundTruth, Prompts

SIDE = 64


def slow_click(wanted: np.ndarray, found: np.ndarray, clicked: Sequence[tuple[int, int]]) -> Click | None:
    """RITM's rule from its text: of all wrong pixels, the one whose nearest pixel outside its region is farthest."""
    best: dict[bool, tuple[float, int, int]] = {}
    for is_foreground, region in ((True, wanted & ~found), (False, found & ~wanted)):
        padded = np.pad(region, 1)
        outside = np.argwhere(~padded) - 1
        for y, x in np.argwhere(region).tolist():
            distance = float(((outside - (y, x)) ** 2).sum(1).min())
            if (x, y) not in clicked and distance > best.get(is_foreground, (0.0, 0, 0))[0]:
                best[is_foreground] = (distance, x, y)
    if not best:
        return None
    missed, excess = best.get(True, (0.0, 0, 0)), best.get(False, (0.0, 0, 0))
    return Click(missed[1], missed[2], True) if missed[0] > excess[0] else Click(excess[1], excess[2], False)


def test_clicks_by_hand() -> None:
    wanted, found = np.zeros((12, 20), dtype=bool), np.zeros((12, 20), dtype=bool)
    wanted[1:8, 2:9] = True
    assert farthest_click(wanted, found, []) == Click(5, 4, True)
    # at the border: the middle is as far from the image's edge as from the region's
    wanted[:] = False
    wanted[0:7, 0:7] = True
    assert farthest_click(wanted, found, []) == Click(3, 3, True)
    # a larger region of pixels too many; with both alike it goes first
    found[0:9, 8:19] = True
    assert farthest_click(wanted, found, []) == Click(12, 4, False)
    found[:] = False
    found[0:7, 10:17] = True
    assert farthest_click(wanted, found, []) == Click(13, 3, False)
    # the area does not count, the distance does: a long line is 1 deep
    found[:] = False
    found[11] = True
    wanted[:] = False
    wanted[0:3, 0:3] = True
    assert farthest_click(wanted, found, []) == Click(1, 1, True)
    assert farthest_click(wanted, found, [Click(1, 1, True)]) == Click(0, 11, False)
    assert farthest_click(wanted, wanted, []) is None
    assert random_click(wanted, wanted, np.random.default_rng(0)) is None


def test_clicks_are_those_of_the_slow_clicker() -> None:
    rng = np.random.default_rng(0)
    for _ in range(4):
        blocks = rng.random((5, 6)).repeat(4, 0).repeat(4, 1)
        wanted, mine, found = blocks > 0.5, [], np.zeros(blocks.shape, dtype=bool)
        for _ in range(5):
            click = farthest_click(wanted, found, mine)
            assert click == slow_click(wanted, found, [(c.x, c.y) for c in mine])
            assert click is not None
            mine.append(click)
            found = (blocks > 0.5) ^ (rng.random((5, 6)).repeat(4, 0).repeat(4, 1) > 0.8)


def test_random_clicks_are_on_wrong_pixels_alone() -> None:
    wanted, found = np.zeros((2, 3), dtype=bool), np.zeros((2, 3), dtype=bool)
    wanted[0, 1], found[1, 2] = True, True
    drawn = {random_click(wanted, found, np.random.default_rng(seed)) for seed in range(20)}
    assert drawn == {Click(1, 0, True), Click(2, 1, False)}


def test_clicks_needed_by_hand() -> None:
    """Reached at once, in the middle, with the last click, and never; an IoU on the threshold reaches it."""
    ious = np.array([[0.9, 0.95, 0.9], [0.1, 0.8, 0.7], [0.1, 0.2, 0.85], [0.1, 0.2, 0.3]])
    clicks, failed = clicks_needed(ious, [0.8, 0.9], first=1, max_clicks=3)
    assert clicks.tolist() == [[1, 2, 3, 3], [1, 3, 3, 3]]
    assert failed.tolist() == [[False, False, False, True], [False, True, True, True]]
    assert clicks_needed(ious, [0.8], first=0, max_clicks=2)[0].tolist() == [[0, 1, 2, 2]]


def test_metrics_are_means_over_objects() -> None:
    sums = np.array([[1.0, 0.5, 0.0, 0.5], [1.5, 0.75, 0.0, 0.75], [3.0, 1.0, 0.0, 2.0], [1.0, 0.0, 0.0, 1.0]])
    values = click_metrics(sums, np.array([2, 1, 0, 1]), [0.85], first=1)
    assert values["mIoU@1"] == 0.5
    assert values["mIoUs@2"] == 0.75
    assert values["mIoUm@2"] is None
    assert (values["NoC@85"], values["NoCs@85"], values["NoCl@85"]) == (1.5, 1.0, 2.0)
    assert (values["NoF@85"], values["NoFs@85"], values["NoFl@85"]) == (0.5, 0.0, 1.0)
    assert "mIoU@0" in click_metrics(sums, np.array([2, 1, 0, 1]), [0.85], first=0)
    interval = bootstrap_click_metrics(sums[None], np.array([[2, 1, 0, 1]]), [0.85], first=1, resamples=5)
    assert interval["NoC@85"] == [1.5, 1.5]


class Discs(SegAny):
    """A model made by hand: each click on the object adds a disc to the mask, each other one cuts one out."""

    def __init__(self, sam: Sam) -> None:
        super().__init__(sam)
        self.calls: list[tuple[int, bool, torch.Tensor | None]] = []

    def set_image(self, image: np.ndarray, embedding: Any = None) -> None:
        super().set_image(image, torch.zeros(1, 1, 1, 1))

    def predict_low_res(
        self, prompts: Prompts | None, multimask_output: bool, mask_input: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert prompts is not None
        self.calls.append((len(prompts), multimask_output, mask_input))
        logits = torch.stack([self.logits_of(prompts, i) for i in range(len(prompts))])[:, None]
        worse = torch.full_like(logits, 9.0)
        scores = torch.tensor([[0.2, 0.8, 0.1]]).expand(len(prompts), -1)
        return (torch.cat([worse, logits, worse], 1), scores) if multimask_output else (logits, scores[:, :1])

    @staticmethod
    def logits_of(prompts: Prompts, i: int) -> torch.Tensor:
        y, x = torch.meshgrid(torch.arange(SIDE // 4), torch.arange(SIDE // 4), indexing="ij")
        logits = torch.full((SIDE // 4, SIDE // 4), -8.0)
        if prompts.boxes_xyxy is not None:
            x0, y0, x1, y1 = (prompts.boxes_xyxy[i] / 4).tolist()
            logits[(x >= x0) & (x + 1 <= x1) & (y >= y0) & (y + 1 <= y1)] = 8.0
        points, labels = ([], []) if prompts.points is None else (prompts.points[i], prompts.labels[i])  # pyright: ignore
        for (px, py), label in zip(points, labels, strict=True):
            disc = ((x + 0.5) * 4 - px) ** 2 + ((y + 0.5) * 4 - py) ** 2 < 11**2
            logits[disc] = 8.0 if label == 1 else -8.0
        return logits


def scene() -> GroundTruth:
    """A bar, a square at the border, a ring, and a small square that one click finds."""
    masks = np.zeros((4, SIDE, SIDE), dtype=bool)
    masks[0, 20:36, 4:60] = True
    masks[1, 0:24, 0:24] = True
    masks[2, 8:56, 8:56], masks[2, 24:40, 24:40] = True, False
    masks[3, 40:52, 44:56] = True
    return truth_of(masks)


def truth_of(masks: np.ndarray) -> GroundTruth:
    rles = encode(torch.from_numpy(masks).mT)
    return GroundTruth(5, (SIDE, SIDE), rles, [float(m.sum()) for m in masks], [None] * len(masks))


def slow_clicks(truth: GroundTruth, steps: int, box: bool) -> list[list[float]]:
    """IoUs after each click, object by object, by the slow clicker."""
    frame = Discs(build_sam("mini", image_size=SIDE))
    frame.set_image(np.zeros((SIDE, SIDE, 3), dtype=np.uint8))
    curves = []
    for rle in truth.rles:
        wanted = decode(rle)
        rows, columns = np.flatnonzero(wanted.any(1)), np.flatnonzero(wanted.any(0))
        corners = torch.tensor([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]]).double() if box else None
        found, clicks, curve = np.zeros_like(wanted), [], []
        for step in range(steps + box):
            click = None if box and step == 0 else slow_click(wanted, found, [(c.x, c.y) for c in clicks])
            if click is not None:
                clicks.append(click)
            if click is not None or (box and step == 0):
                prompts = Prompts(
                    torch.tensor([[[float(c.x), float(c.y)] for c in clicks]]) if clicks else None,
                    torch.tensor([[int(c.is_foreground) for c in clicks]]) if clicks else None,
                    corners,
                )
                full = frame.frame.logits_to_original(Discs.logits_of(prompts, 0)[None])[0]
                found = (full > 0).T.numpy()
            curve.append(float((found & wanted).sum() / (found | wanted).sum()))
        curves.append(curve)
    return curves


def evaluated(**settings: Any) -> tuple[dict[str, np.ndarray], Discs]:
    task = EvaluateClicks(build_sam("mini", image_size=SIDE), **settings)
    task._segany = discs = Discs(task.sam)
    return task.evaluate_image(np.zeros((SIDE, SIDE, 3), dtype=np.uint8), scene()).values, discs


@pytest.mark.parametrize("box", [False, True])
def test_the_number_of_clicks_is_that_of_the_slow_clicker(box: bool) -> None:
    values, discs = evaluated(first_prompt="box" if box else "centre", max_clicks=6, ious=[0.6, 0.7, 0.9])
    curves = slow_clicks(scene(), 6, box)
    steps = 6 + box
    sums = values["sums"][:, 0]
    assert sums[:steps] == pytest.approx(np.sum(curves, axis=0).tolist())
    needed, failed = [], []
    for threshold in (0.6, 0.7, 0.9):
        first = [next((k for k, iou in enumerate(curve, start=not box) if iou >= threshold), None) for curve in curves]
        needed.append(sum(6 if k is None else k for k in first))
        failed.append(sum(k is None for k in first))
    assert sums[steps : steps + 3].tolist() == needed
    assert sums[steps + 3 :].tolist() == failed
    assert (needed, failed) == (([0, 0, 1], [0, 0, 0]) if box else ([14, 20, 24], [1, 2, 4]))
    assert values["n_gt"].tolist() == [4, 3, 1, 0]
    assert all(three == (i == 0 and not box) for i, (_, three, _) in enumerate(discs.calls))


def test_the_last_mask_is_fed_back_or_not() -> None:
    _, discs = evaluated(max_clicks=3)
    first, second, third = (mask_input for _, _, mask_input in discs.calls)
    assert first is None
    assert second is not None
    assert second.shape == (4, 1, SIDE // 4, SIDE // 4)
    assert third is not None
    assert {discs.calls[0][1], discs.calls[1][1]} == {True, False}
    _, discs = evaluated(max_clicks=3, mask_input=False, mask_choice="predicted_iou")
    assert all(three and mask_input is None for _, three, mask_input in discs.calls)


def test_an_object_without_a_wrong_pixel_keeps_its_mask() -> None:
    """A box that the model fills exactly is never clicked."""
    values, discs = evaluated(first_prompt="box", max_clicks=3, min_area=1000)
    truth = scene()
    counted = [i for i, area in enumerate(truth.areas) if area >= 1000]
    assert values["n_gt"][0] == len(counted) == 1
    assert discs.calls[0][0] == 1
    task = EvaluateClicks(build_sam("mini", image_size=SIDE), first_prompt="box", max_clicks=2, ious=[0.8])
    task._segany = discs = Discs(task.sam)
    whole = truth_of(np.ones((1, SIDE, SIDE), dtype=bool))
    sums = task.evaluate_image(np.zeros((SIDE, SIDE, 3), dtype=np.uint8), whole).values["sums"][:, 0]
    assert sums.tolist() == [1, 1, 1, 0, 0]
    assert len(discs.calls) == 1
    empty = truth_of(np.zeros((0, SIDE, SIDE), dtype=bool))
    assert task.evaluate_image(np.zeros((SIDE, SIDE, 3), dtype=np.uint8), empty).values["sums"].sum() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_prompt": "corner"}, r"task\.first_prompt must be one of centre, random, box, got corner"),
        ({"next_click": "nearest"}, r"task\.next_click must be one of farthest, random, got nearest"),
        ({"mask_choice": "box_overlap"}, r"task\.mask_choice must be one of by_prompt, .*, got box_overlap"),
        ({"ious": []}, r"task\.ious, the IoUs that clicks are counted to, must have at least one, got none"),
    ],
)
def test_unknown_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateClicks(build_sam("mini", image_size=SIDE), **settings)
