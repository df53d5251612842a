"""Clicks of a simulated user who corrects a mask, and how many of them an object takes.

Source: RITM (Sofiiuk et al. 2021, arXiv 2102.06583) and its released code; SAM, appendix D.1, draws its points in the
same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects

from mobilesamv2.metrics.bootstrap import RESAMPLES, percentiles, resampled_sums
from mobilesamv2.metrics.prompt_iou import GROUPS

FirstPrompt = Literal["centre", "random", "box"]
"""The pixel of the object farthest from its edge; a pixel of it drawn at random; its tight box, before any click."""

NextClick = Literal["farthest", "random"]
"""The wrong pixel farthest from the edge of its region, of missed pixels or of those too many; one drawn at random."""

SHOWN_CLICKS = (0, 1, 2, 3, 5, 9, 10, 20)
"""Numbers of clicks whose mIoU tables show: those of the published protocols; at 0 a box alone."""


class Click(NamedTuple):
    """A point that a user adds.

    Attributes:
        x: column, pixels of the image.
        y: row.
        is_foreground: the pixel belongs to the object and was missed; false: it was marked and does not.
    """

    x: int
    y: int
    is_foreground: bool


def farthest_click(target: np.ndarray, found: np.ndarray, clicked: Sequence[Click]) -> Click | None:
    """Return the click in the middle of the larger error, by RITM's rule; None where no wrong pixel is left to click.

    Of missed pixels and of pixels too many, that one counts whose pixel farthest from the region's edge is farther; the
    image's border is an edge. Among equals the pixels too many, and of a region the first pixel, row by row.

    Args:
        target: (H, W) bool, the object.
        found: (H, W) bool, the mask that is corrected.
        clicked: earlier clicks, which are not repeated.

    Source: RITM's released code. Deviation: with nothing left to click it would click the image's first pixel.
    """
    missed = _farthest(target & ~found, clicked)
    excess = _farthest(found & ~target, clicked)
    distance, x, y = missed if missed[0] > excess[0] else excess
    return Click(x, y, missed[0] > excess[0]) if distance > 0 else None


def random_click(target: np.ndarray, found: np.ndarray, rng: np.random.Generator) -> Click | None:
    """Return a click on a wrong pixel, each as likely; None where no pixel is wrong.

    Args:
        target: (H, W) bool, the object.
        found: (H, W) bool, the mask that is corrected.
        rng: draws the pixel.

    Source: EdgeSAM's released code. Deviation: it draws at a quarter of the model's input, and not from fewer than ten.
    """
    y, x = np.nonzero(target ^ found)
    if not len(x):
        return None
    i = int(rng.integers(len(x)))
    return Click(int(x[i]), int(y[i]), bool(target[y[i], x[i]]))


def _farthest(region: np.ndarray, clicked: Sequence[Click]) -> tuple[float, int, int]:
    """Return the largest distance to the edge of a region, of pixels not yet clicked, and its x and y; 0 for none."""
    found = find_objects(region.astype(np.uint8))
    if not found:
        return 0.0, 0, 0
    rows, columns = found[0]  # the distance inside depends on nothing outside the region's box
    distance = distance_transform_edt(np.pad(region[rows, columns], 1))[1:-1, 1:-1]  # pyright: ignore
    for click in clicked:
        if rows.start <= click.y < rows.stop and columns.start <= click.x < columns.stop:
            distance[click.y - rows.start, click.x - columns.start] = 0
    y, x = np.unravel_index(int(np.argmax(distance)), distance.shape)
    return float(distance[y, x]), int(x) + columns.start, int(y) + rows.start


def clicks_needed(
    ious: np.ndarray, thresholds: Sequence[float], first: int, max_clicks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of clicks until an IoU is reached, and where it never is, both (thresholds, N).

    An object that never reaches it counts with ``max_clicks``.

    Args:
        ious: (N, steps) after each number of clicks.
        thresholds: IoUs to reach, inclusive.
        first: clicks of the first step: 1, or 0 where a box precedes them.
        max_clicks: clicks of the last step.

    Source: RITM's ``compute_noc_metric``. Deviation: it reports objects with ``max_clicks`` clicks, of which some have
    reached the IoU with the last click; here these are no failures.
    """
    reached = ious[None] >= np.asarray(thresholds, dtype=np.float64)[:, None, None]  # (thresholds, N, steps)
    failed = np.logical_not(reached.any(2))
    return np.where(failed, max_clicks, reached.argmax(2) + first), failed


def click_metrics(
    sums: np.ndarray, n_gt: np.ndarray, thresholds: Sequence[float], first: int
) -> dict[str, float | None]:
    """Return means over objects: ``mIoU@1``, ``NoC@80``, ``NoF@80``, by size ``mIoUs@1``; None for an empty group.

    ``NoC`` is a number of clicks, ``NoF`` the share of objects that never reach the IoU.

    Args:
        sums: (steps + 2 * thresholds, groups): IoUs after each step, then clicks, then failures.
        n_gt: (groups,).
        thresholds: IoUs to reach.
        first: clicks of the first step.
    """
    steps = len(sums) - 2 * len(thresholds)
    names = [("mIoU", f"{first + step}") for step in range(steps)]
    names += [(name, threshold_name(value)) for name in ("NoC", "NoF") for value in thresholds]
    return {
        f"{name}{'' if group == 'all' else group}@{at}": float(sums[row, g] / n_gt[g]) if n_gt[g] else None
        for row, (name, at) in enumerate(names)
        for g, group in enumerate(GROUPS)
    }


def threshold_name(iou: float) -> str:
    """Return an IoU as the names of ``NoC`` have it: 85 for .85."""
    return f"{100 * iou:g}"


def bootstrap_click_metrics(
    sums: np.ndarray,
    n_gt: np.ndarray,
    thresholds: Sequence[float],
    first: int,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, list[float] | None]:
    """Return 95% percentile intervals over resampled images, under the names of ``click_metrics``.

    Args:
        sums: (images, steps + 2 * thresholds, groups).
        n_gt: (images, groups).
        thresholds: IoUs to reach.
        first: clicks of the first step.
        seed: of the resampling.
        resamples: number of resamples.
    """
    draws = resampled_sums(sums, n_gt, seed, resamples)
    return percentiles(click_metrics(*drawn, thresholds, first) for drawn in draws)
