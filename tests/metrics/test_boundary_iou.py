"""Boundary IoU: masks by hand, and the definition pixel by pixel."""

import numpy as np
import pytest

from mobilesamv2.metrics.boundary_iou import boundary, boundary_ious, boundary_width


def square(side: int, x: int, y: int, size: tuple[int, int] = (100, 100)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def slow_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels with one outside the mask, or outside the image, at most ``width`` steps away in all eight directions."""
    height, columns = mask.shape
    edge = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        around = [(y + dy, x + dx) for dy in range(-width, width + 1) for dx in range(-width, width + 1)]
        edge[y, x] = any(not (0 <= v < height and 0 <= u < columns) or not mask[v, u] for v, u in around)
    return edge


def test_the_width_is_a_share_of_the_diagonal() -> None:
    assert boundary_width((100, 100), 0.02) == 3  # 2.83
    assert boundary_width((480, 640), 0.02) == 16
    assert boundary_width((480, 640), 0.01) == 8
    assert boundary_width((5, 5), 0.02) == 1


def test_boundaries_by_hand() -> None:
    """A square of 20 has a ring of 3: 400 - 14 * 14. The image's border is an edge as well."""
    assert boundary(square(20, 30, 30), 3).sum() == 400 - 196
    assert boundary(square(20, 0, 0), 3).sum() == 400 - 196
    assert boundary(square(6, 30, 30), 3).sum() == 36
    assert boundary(np.ones((10, 20), dtype=bool), 2).sum() == 200 - 6 * 16
    assert boundary(np.zeros((10, 20), dtype=bool), 2).sum() == 0


def test_boundary_iou_by_hand() -> None:
    """A square in the middle of a larger one shares no boundary with it; a shift by the width leaves two strips."""
    whole = square(40, 30, 30)
    inner, shifted = square(34, 33, 33), square(40, 33, 30)
    # rings of 444 and 372 pixels, nothing in common, though the mask IoU is .72
    assert boundary_ious(inner[None], whole[None], 0.02).tolist() == [0.0]
    # the upper and the lower strip: 37 columns of 3 rows each
    both = np.count_nonzero(slow_boundary(shifted, 3) & slow_boundary(whole, 3))
    assert both == 2 * 3 * 37
    assert boundary_ious(shifted[None], whole[None], 0.02).tolist() == [222 / (2 * 444 - 222)]
    empty = np.zeros_like(whole)
    assert boundary_ious(np.stack([whole, empty, empty]), np.stack([whole, empty, whole]), 0.02).tolist() == [1, 1, 0]


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.3])
def test_boundaries_are_those_of_the_definition(ratio: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(6):
        size = (int(rng.integers(1, 24)), int(rng.integers(1, 24)))
        mask = rng.random((size[0] // 3 + 1, size[1] // 3 + 1)).repeat(3, 0).repeat(3, 1)[: size[0], : size[1]] < 0.7
        width = boundary_width(size, ratio)
        assert np.array_equal(boundary(mask, width), slow_boundary(mask, width))
