"""Intervals of AP: bootstrap over images, from the matches that pycocotools or lvis-api has made.

A resample draws images with replacement. Matches are made within an image, so that they stay what they are, and an
image that is drawn twice counts twice: AP is computed anew of the same detections with weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobilesamv2.metrics.bootstrap import RESAMPLES, percentiles, resampled_counts

RECALLS = np.linspace(0, 1, 101)
"""At which both evaluators read precision."""

STRICTNESS = {"AP50": 0, "AP75": 5}
"""Place among COCO's ten IoU thresholds."""

Evaluated = Sequence[Mapping[str, Any] | None]


@dataclass(frozen=True)
class _Threshold:
    """What precision at one IoU threshold depends on, of D detections by category and falling score.

    Attributes:
        tp: (P,) places of those that found an object, ascending.
        tp_start: (K + 1,) where each category begins in ``tp``.
        ignored: (Q,) places of those that do not count, ascending.
        ignored_until: (P,) how many of these come before each of ``tp``.
        ignored_start: (K + 1,) where each category begins in ``ignored``.
    """

    tp: np.ndarray
    tp_start: np.ndarray
    ignored: np.ndarray
    ignored_until: np.ndarray
    ignored_start: np.ndarray


@dataclass(frozen=True)
class Matches:
    """The detections of a data set and the objects that they found.

    Attributes:
        images: (D,) index of each detection's image; detections by category and falling score.
        start: (K + 1,) where each category begins.
        objects: (K, images) that count.
        thresholds: one for each IoU.
    """

    images: np.ndarray
    start: np.ndarray
    objects: np.ndarray
    thresholds: Sequence[_Threshold]


def collect_matches(evaluated: Evaluated, num_areas: int, num_images: int, names: Mapping[str, str]) -> Matches:
    """Collect the matches of an evaluator, of objects of all sizes.

    Args:
        evaluated: of each category, area and image, in this order; the first area is that of all objects.
        num_areas: A.
        num_images: I.
        names: its names for ``scores``, ``matches``, ``ignore`` and ``objects_ignore``.
    """
    num_categories = len(evaluated) // (num_areas * num_images)
    objects = np.zeros((num_categories, num_images), dtype=np.int32)
    images, tps, kept, start = [], [], [], [0]
    for k in range(num_categories):
        first = k * num_areas * num_images
        found = [(i, each) for i in range(num_images) if (each := evaluated[first + i]) is not None]
        for i, each in found:
            objects[k, i] = np.count_nonzero(np.asarray(each[names["objects_ignore"]]) == 0)
        scores = np.concatenate([np.asarray(each[names["scores"]], dtype=np.float64) for _, each in found] or [[]])
        start.append(start[-1] + len(scores))
        if not len(scores):
            continue
        order = np.argsort(-scores, kind="mergesort")  # as both evaluators sort
        counts = [len(each[names["scores"]]) for _, each in found]
        images.append(np.repeat([i for i, _ in found], counts)[order])
        ignored = np.concatenate([each[names["ignore"]] for _, each in found], axis=1)[:, order].astype(bool)
        matched = np.concatenate([each[names["matches"]] for _, each in found], axis=1)[:, order] > 0
        tps.append(matched & ~ignored)
        kept.append(~ignored)
    if not images:
        return Matches(np.zeros(0, dtype=np.int64), np.array(start), objects, [])
    starts = np.array(start)
    thresholds = [
        _threshold(tp, keep, starts)
        for tp, keep in zip(np.concatenate(tps, axis=1), np.concatenate(kept, axis=1), strict=True)
    ]
    return Matches(np.concatenate(images), starts, objects, thresholds)


def _threshold(tp: np.ndarray, kept: np.ndarray, start: np.ndarray) -> _Threshold:
    found, ignored = np.flatnonzero(tp), np.flatnonzero(~kept)
    return _Threshold(
        found,
        np.searchsorted(found, start),
        ignored,
        np.searchsorted(ignored, found),
        np.searchsorted(ignored, start),
    )


def weighted_ap(matches: Matches, times: np.ndarray) -> dict[str, float | None]:
    """Return AP, AP50 and AP75 where each image counts so many times; None where there is no object.

    Args:
        matches: of ``collect_matches``.
        times: (I,).
    """
    num_objects = matches.objects @ times  # (K,)
    counted = num_objects > 0
    if not counted.any():
        return dict.fromkeys(("AP", *STRICTNESS))
    weights = times[matches.images].astype(np.float64)  # (D,)
    sums = _sums(weights)
    ap = np.array([_category_ap(each, matches.start, weights, sums, num_objects) for each in matches.thresholds])
    if not len(ap):
        return dict.fromkeys(("AP", *STRICTNESS), 0.0)
    means = ap[:, counted].mean(1)  # (T,)
    return {"AP": float(means.mean()), **{name: float(means[t]) for name, t in STRICTNESS.items()}}


def _category_ap(
    at: _Threshold, start: np.ndarray, weights: np.ndarray, sums: np.ndarray, num_objects: np.ndarray
) -> np.ndarray:
    """Return AP of each category at an IoU threshold, (K,); only detections that found an object change it."""
    num_categories = len(num_objects)
    if not len(at.tp):
        return np.zeros(num_categories)
    category = np.repeat(np.arange(num_categories), np.diff(at.tp_start))  # (P,)
    ignored, found = _sums(weights[at.ignored]), _sums(weights[at.tp])
    until = sums[at.tp + 1] - sums[start[category]]
    until -= ignored[at.ignored_until] - ignored[at.ignored_start[category]]
    true = found[1:] - found[at.tp_start[category]]
    recall = true / np.maximum(num_objects, 1)[category]
    precision = np.divide(true, until, out=np.zeros_like(true), where=until > 0)
    # the highest precision from here on, in each category: of a later one all values are lower by 2 or more
    lift = 2.0 * (num_categories - category)
    best = np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift
    wanted = RECALLS[None] + 2.0 * np.arange(num_categories)[:, None]  # (K, R)
    place = np.searchsorted(recall + 2.0 * category, wanted.ravel()).reshape(wanted.shape)
    reached = place < at.tp_start[1:, None]
    return np.where(reached, best[np.minimum(place, len(best) - 1)], 0.0).mean(1)


def _sums(values: np.ndarray) -> np.ndarray:
    """Return the sum of the first 0, 1, ... values."""
    return np.concatenate([[0.0], np.cumsum(values)])


def bootstrap_ap(matches: Matches, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, list[float] | None]:
    """Return 95% percentile intervals of AP, AP50 and AP75 over resampled images.

    Args:
        matches: of ``collect_matches``.
        seed: of the resampling; the same seed draws the same images as for any other metric.
        resamples: number of resamples.
    """
    num_images = matches.objects.shape[1]
    return percentiles(weighted_ap(matches, times) for times in resampled_counts(num_images, seed, resamples))
