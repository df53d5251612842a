"""Prompts for an exported decoder, checked as SegAny's are."""

from typing import Any

import numpy as np
import pytest

from mobilesamv2.export.runtime import decoder_inputs, labelled_points

POINT = np.array([[[5.0, 6]]])
BOX = np.array([[1.0, 2, 30, 40]])


def test_points_and_boxes_become_labelled_points() -> None:
    points, labels = labelled_points(POINT, np.array([[0]]), BOX)
    assert points.tolist() == [[[5, 6], [1, 2], [30, 40]]]
    assert labels.tolist() == [[0, 2, 3]]
    assert (points.dtype, labels.dtype) == (np.float32, np.int64)
    points, labels = labelled_points([[5, 6], [7, 8]], [1, -1])  # pyright: ignore[reportArgumentType]
    assert points.tolist() == [[[5, 6], [7, 8], [0, 0]]]
    assert labels.tolist() == [[1, -1, -1]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"points": POINT, "labels": np.array([[0.5]])}, r"labels must be 1 .*, got 0\.5\."),
        ({"points": POINT, "labels": np.array([[7]])}, "labels must be 1 .*, got 7"),
        ({"points": POINT, "labels": np.array([[np.nan]])}, "labels must be 1 .*, got nan"),
        ({"points": POINT, "labels": np.array([[1, 1]])}, "labels must have one entry per point"),
        ({"points": POINT * np.nan}, "points must be finite"),
        ({"points": POINT * 1e300}, "points must be between"),
        ({"points": np.zeros((1, 0, 2))}, "at least one point each"),
        ({"boxes_xyxy": BOX[:, :3]}, r"boxes must have shape \(N, 4\)"),
        ({"boxes_xyxy": np.array([["1", "2", "3", "4"]])}, "boxes must be an array"),
        ({"points": POINT, "boxes_xyxy": np.repeat(BOX, 2, 0)}, "of the same number of prompts, got 1 of points and 2"),
        ({"labels": np.array([[1]])}, "must be points or boxes_xyxy, got neither"),
    ],
)
def test_prompts_that_segany_refuses_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labelled_points(**given)
    with pytest.raises(ValueError, match=message):
        decoder_inputs(np.zeros((1, 8, 16, 16)), **given)


def test_a_mask_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="mask_input must be finite, got NaN or infinity"):
        decoder_inputs(np.zeros((1, 8, 16, 16)), mask_input=np.full((1, 1, 64, 64), np.nan))
