"""Which mask is scored: one prompt whose best mask differs by every rule."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mobilesamv2 import SegAny, build_sam
from mobilesamv2.data.results_files import Boxes
from mobilesamv2.evaluation.boxes import EvaluateBoxes
from mobilesamv2.evaluation.prompted_masks import predict_chosen
from mobilesamv2.evaluation.prompts import EvaluatePrompts
from mobilesamv2.evaluation.shards import ResultShards
from mobilesamv2.masks import decode, encode
from mobilesamv2.metrics.mask_choice import MaskChoice, chosen_mask, wants_three
from mobilesamv2.models.sam import Sam
from mobilesamv2.structures import GroundTruth, Prompts

SIDE = 64
"""Of the image, the masks and the model's input; the low-res logits are a quarter of it."""


def low_res(*rectangles: tuple[int, int, int, int]) -> torch.Tensor:
    """Logits whose upscaled mask is the union of rectangles x0, y0, x1, y1, but for a pixel at each corner."""
    logits = torch.full((SIDE // 4, SIDE // 4), -8.0)
    for x0, y0, x1, y1 in rectangles:
        logits[y0 // 4 : y1 // 4, x0 // 4 : x1 // 4] = 8.0
    return logits


UPPER, LEFT, BOX = (0, 0, 32, 16), (0, 0, 16, 32), (0, 0, 32, 32)
SINGLE = low_res((0, 0, 16, 16))
THREE = torch.stack([low_res(UPPER), low_res(UPPER, LEFT), low_res(BOX)])
PREDICTED_IOU = torch.tensor([0.9, 0.5, 0.7])


class HandMadeSegAny(SegAny):
    """Returns the same masks for every prompt; ``calls`` has the arguments."""

    def __init__(self, sam: Sam) -> None:
        super().__init__(sam)
        self.calls: list[tuple[bool, torch.Tensor | None]] = []

    def set_image(self, image: np.ndarray, embedding: Any = None) -> None:
        super().set_image(image, torch.zeros(1, 1, 1, 1))

    def predict_low_res(
        self, prompts: Prompts | None, multimask_output: bool, mask_input: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls.append((multimask_output, mask_input))
        logits, scores = (THREE, PREDICTED_IOU) if multimask_output else (SINGLE[None], PREDICTED_IOU[:1])
        assert prompts is not None
        return logits.expand(len(prompts), -1, -1, -1), scores.expand(len(prompts), -1)


def masks_of(logits: torch.Tensor) -> np.ndarray:
    segany = HandMadeSegAny(build_sam("mini", image_size=SIDE))
    segany.set_image(np.zeros((SIDE, SIDE, 3), dtype=np.uint8))
    return (segany.frame.logits_to_original(logits) > 0).transpose(1, 2).numpy()


def rle(mask: np.ndarray) -> dict:
    return encode(torch.from_numpy(mask.T.copy())[None])[0]


@pytest.fixture(scope="module")
def angle() -> np.ndarray:
    """The object: exactly the second mask, an L. Of each mask the upscaling rounds a corner."""
    masks = masks_of(torch.cat([SINGLE[None], THREE]))
    assert masks.sum((1, 2)).tolist() == [255, 511, 767, 1023]
    return masks[2]


def test_every_rule_takes_another_mask(angle: np.ndarray) -> None:
    masks, scores = masks_of(THREE), PREDICTED_IOU.numpy()

    def choose(choice: MaskChoice) -> int:
        return chosen_mask(choice, scores, lambda: masks, angle, np.array([0.0, 0.0, 32.0, 32.0]))

    assert [choose(c) for c in ("by_prompt", "predicted_iou", "oracle", "box_overlap")] == [0, 0, 1, 2]
    with pytest.raises(ValueError, match=r"task\.mask_choice=oracle compares masks with the annotated object"):
        chosen_mask("oracle", scores, lambda: masks)
    with pytest.raises(ValueError, match=r"task\.mask_choice=box_overlap compares masks with a box"):
        chosen_mask("box_overlap", scores, lambda: masks, angle)


def test_three_masks_are_asked_for_where_one_is_chosen() -> None:
    rules: Sequence[MaskChoice] = ("by_prompt", "single", "predicted_iou", "oracle", "box_overlap")
    assert [wants_three(rule, is_one_point=True) for rule in rules] == [True, False, True, True, True]
    assert [wants_three(rule, is_one_point=False) for rule in rules] == [False, False, True, True, True]


def evaluated(angle: np.ndarray, **settings: Any) -> tuple[list[float], list[tuple[bool, Any]]]:
    """The sums of IoUs over one object, and the calls of the model."""
    task = EvaluatePrompts(build_sam("mini", image_size=SIDE), **settings)
    task._student = HandMadeSegAny(task.sam)
    truth = GroundTruth(1, (SIDE, SIDE), [rle(angle)], [float(angle.sum())], [None])
    outcome = task.evaluate_image(np.zeros((SIDE, SIDE, 3), dtype=np.uint8), truth)
    return outcome.values["iou_sums"][:, 0].tolist(), task._student.calls


def test_the_measured_iou_is_that_of_the_rule(angle: np.ndarray) -> None:
    """A box of one object: four rules, four figures. Of three kinds of prompt, the point alone is ambiguous."""
    expected = {"single": 255 / 767, "predicted_iou": 511 / 767, "oracle": 1.0, "box_overlap": 767 / 1023}
    for choice, iou in expected.items():
        assert evaluated(angle, kinds=["box"], mask_choice=choice)[0] == pytest.approx([iou])
    kinds = ["box", "centre", "points_3"]
    ious, calls = evaluated(angle, kinds=kinds, mask_choice="by_prompt")
    assert ious == pytest.approx([255 / 767, 511 / 767, 255 / 767])
    assert [three for three, _ in calls] == [False, True, False]


def test_a_refinement_feeds_the_chosen_mask_back_and_takes_one(angle: np.ndarray) -> None:
    ious, calls = evaluated(angle, kinds=["box"], mask_choice="predicted_iou", mask_refinements=2)
    assert ious == pytest.approx([255 / 767])
    (first, none), (second, chosen), (third, single) = calls
    assert [first, second, third] == [True, False, False]
    assert none is None
    assert torch.equal(chosen, THREE[:1][None])
    assert torch.equal(single, SINGLE[None, None])


def test_what_is_fed_back_is_clamped_where_the_family_clamps_it(
    angle: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by SAM 2's official image predictor, to 32; after masks are made of the logits."""
    monkeypatch.setattr(Sam, "mask_input_limit", 3.0)
    _, calls = evaluated(angle, kinds=["box"], mask_choice="predicted_iou", mask_refinements=1)
    assert torch.equal(calls[1][1], THREE[:1][None].clamp(-3, 3))
    segany = HandMadeSegAny(build_sam("mini", image_size=SIDE))
    segany.set_image(np.zeros((SIDE, SIDE, 3), dtype=np.uint8))
    found = predict_chosen(segany, Prompts(boxes_xyxy=torch.tensor([[0.0, 0, 32, 32]])), "single")
    assert torch.equal(found.low_res_logits, SINGLE[None, None].clamp(-3, 3))
    assert build_sam("sam2_mini").as_mask_input(torch.tensor([-40.0, 5, 40])).tolist() == [-32, 5, 32]


def test_objects_below_an_area_are_left_out(angle: np.ndarray) -> None:
    assert evaluated(angle, kinds=["box"], min_area=767)[0] == pytest.approx([255 / 767])
    assert evaluated(angle, kinds=["box"], min_area=767.5, boundary_dilation_ratio=0.02)[0] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_choice": "best"}, r"task\.mask_choice must be one of by_prompt, single, .*, got best"),
        ({"mask_choice": "box_overlap"}, r"compares masks with the prompted box: task\.kinds=\[box\]"),
    ],
)
def test_a_rule_that_does_not_apply_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluatePrompts(build_sam("mini", image_size=SIDE), **settings)


def test_a_detectors_boxes_choose_without_an_object(angle: np.ndarray, tmp_path) -> None:
    """The box of another place overlaps the first mask most."""
    boxes = {1: Boxes(torch.tensor([[0, 0, 32, 32], [0, 0, 40, 12]], dtype=torch.float64), [0.9, 0.8], [1, 1])}
    image = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    truth = GroundTruth(1, (SIDE, SIDE), [rle(angle)], [float(angle.sum())], [None])
    found = {}
    for choice in ("single", "predicted_iou", "box_overlap"):
        shards = ResultShards(tmp_path / choice, {}, True, {}, "", lambda _: truth)
        task = EvaluateBoxes(build_sam("mini", image_size=SIDE), boxes, shards, mask_choice=choice)
        task._segany = HandMadeSegAny(task.sam)
        results = task.evaluate_image(image, truth).masks
        found[choice] = [int(decode(entry["segmentation"]).sum()) for entry in results]
        assert task.timer.num_prompts == 2
    assert found == {"single": [255, 255], "predicted_iou": [511, 511], "box_overlap": [1023, 511]}
    with pytest.raises(ValueError, match=r"must be one of single, predicted_iou, box_overlap, got oracle"):
        EvaluateBoxes(build_sam("mini", image_size=SIDE), boxes, shards, mask_choice="oracle")
