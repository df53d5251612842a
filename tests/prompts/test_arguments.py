"""Points, labels, boxes and masks as people pass them."""

from typing import Any

import numpy as np
import pytest
import torch

from mobilesamv2.prompts.arguments import check_prompts

SIDE = 8
NUMBERS = [[1, 2, 30, 40], [5, 6, 7, 8]]


def checked(**given: Any) -> tuple[Any, Any]:
    return check_prompts(*(given.get(name) for name in ("points", "labels", "boxes", "mask_input")), SIDE)


@pytest.mark.parametrize(
    "boxes",
    [
        NUMBERS,
        tuple(map(tuple, NUMBERS)),
        np.array(NUMBERS, dtype=np.uint16),
        np.array(NUMBERS, dtype=np.float16)[:, ::-1][:, ::-1],
        torch.tensor(NUMBERS, dtype=torch.bfloat16, requires_grad=False),
        torch.tensor(NUMBERS, dtype=torch.float32, requires_grad=True),
        [torch.tensor(row) for row in NUMBERS],
        [[torch.tensor(value) for value in row] for row in NUMBERS],
        [np.array(NUMBERS[0]), NUMBERS[1]],
    ],
)
def test_any_array_like_is_taken(boxes: Any) -> None:
    prompts, masks = checked(boxes=boxes)
    assert masks is None
    assert prompts.boxes_xyxy.dtype == torch.float64
    assert prompts.boxes_xyxy.tolist() == NUMBERS


def test_shapes_are_sam_predictors() -> None:
    """SamPredictor's (P, 2) and (4,) are one prompt; N prompts have an axis more."""
    prompts, _ = checked(points=[[1, 2], [3, 4]], labels=[1, 0], boxes=[0, 0, 9, 9])
    assert prompts.points.tolist() == [[[1, 2], [3, 4]]]
    assert prompts.labels.tolist() == [[1, 0]]
    assert prompts.boxes_xyxy.tolist() == [[0, 0, 9, 9]]
    prompts, _ = checked(points=[[[1, 2]], [[3, 4]]])
    assert prompts.labels.tolist() == [[1], [1]]
    for labels in ([[1.0], [-1.0]], torch.tensor([[1], [-1]]), np.array([[1], [-1]], np.int8)):
        assert checked(points=[[[1, 2]], [[3, 4]]], labels=labels)[0].labels.tolist() == [[1], [-1]]
    assert checked(points=[[1, 2], [3, 4]], labels=[True, False])[0].labels.tolist() == [[1, 0]]


def test_one_mask_serves_all_prompts() -> None:
    mask = np.random.default_rng(0).normal(size=(SIDE, SIDE))
    for one in (mask, mask[None], mask[None, None].tolist(), torch.from_numpy(mask)):
        prompts, masks = checked(boxes=NUMBERS, mask_input=one)
        assert masks.shape == (2, 1, SIDE, SIDE)
        assert len(prompts) == 2
        torch.testing.assert_close(masks, torch.from_numpy(mask).float().expand(2, 1, -1, -1))
    prompts, masks = checked(mask_input=np.stack([mask] * 3))
    assert prompts is None
    assert masks.shape == (3, 1, SIDE, SIDE)


def test_prompts_of_no_point_may_have_a_box_or_a_mask() -> None:
    assert len(checked(points=np.zeros((2, 0, 2)), boxes=NUMBERS)[0]) == 2
    prompts, masks = checked(points=np.zeros((0, 2)), mask_input=np.zeros((SIDE, SIDE)))
    assert len(prompts) == len(masks) == 1


class NoArray:
    def __array__(self, *args: Any) -> np.ndarray:
        raise TypeError("can't be converted")


@pytest.mark.parametrize("name", ["points", "labels", "boxes", "mask_input"])
@pytest.mark.parametrize(
    "value", ["text", {"a": 1}, {1, 2}, [[1, 2], [3]], [None, 1], [["1", "2"]], [1j, 2], object(), NoArray(), iter([1])]
)
def test_what_is_no_prompt_is_refused(name: str, value: Any) -> None:
    points = {} if name == "points" else {"points": [[1, 2], [3, 4]]}
    with pytest.raises(ValueError, match=f"^{name} must be an array, a list or a tensor of numbers.* got .* of type"):
        checked(**points, **{name: value})


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"points": [1, 2]}, r"points must have shape \(N, P, 2\), or \(P, 2\) .*, got \(2,\)"),
        ({"points": np.zeros((1, 1, 1, 2))}, r"points must .* got \(1, 1, 1, 2\)"),
        ({"boxes": [0, 0, 1]}, r"boxes must have shape \(N, 4\), or \(4,\) for one box, got \(3,\)"),
        ({"boxes": 5}, r"boxes must .* got \(\)"),
        ({"points": [[1, 2]], "labels": [0.5]}, r"labels must be 1 .*, got 0.5\."),
        ({"points": [[1, 2]], "labels": [np.nan]}, "labels must be 1 .*, got nan"),
        ({"points": [[1, 2]], "labels": [[1, 1]]}, r"labels must have one entry per point, got shape \(1, 2\) for"),
        ({"points": [[1, 2]], "boxes": NUMBERS}, "of the same number of prompts, got 1 of points and 2 of boxes"),
        ({"boxes": NUMBERS, "mask_input": np.zeros((3, 8, 8))}, "got 2 of boxes and 3 of mask_input"),
        ({"points": np.zeros((0, 2))}, r"at least one point each, a box or a mask, got points of shape \(1, 0, 2\)"),
        ({"points": np.zeros((2, 0, 2))}, r"got points of shape \(2, 0, 2\)"),
        ({"points": np.zeros((0, 2)), "labels": []}, r"got points of shape \(1, 0, 2\)"),
        ({"points": np.zeros((0, 1, 2))}, "must not be empty, got 0 prompts"),
        ({"points": [[1, 1e300]]}, r"points must be between -1e\+09 and 1e\+09, got 1e\+300"),
        ({"boxes": [0, -1e38, 1, 1]}, r"boxes must be between .*, got -1e\+38"),
        ({"mask_input": np.full((8, 8), 1e20)}, r"mask_input must be between .*, got 1e\+20"),
        ({"mask_input": np.zeros((2, 3, 8, 8))}, r"mask_input must .* got \(2, 3, 8, 8\)"),
    ],
)
def test_shapes_and_values_are_named(prompts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(**prompts)


@pytest.mark.gpu
def test_tensors_of_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    for boxes in (torch.tensor(NUMBERS, device="cuda"), [torch.tensor(row, device="cuda") for row in NUMBERS]):
        assert checked(boxes=boxes)[0].boxes_xyxy.tolist() == NUMBERS
