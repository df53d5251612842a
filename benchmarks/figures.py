"""Figures of evaluations in a file of results: of each evaluation each metric, and its interval where it has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from result_pages import read_csv, write_csv

from mobilesamv2.metrics.average_recall import average_recall, named, paired_intervals
from mobilesamv2.metrics.bootstrap import RESAMPLES, percentiles, resampled_sums
from mobilesamv2.metrics.prompt_iou import mean_ious
from mobilesamv2.reports.result_files import read_counts, read_result


class Figure(NamedTuple):
    """A measured value.

    Attributes:
        value: a fraction, a count or seconds, as its name says.
        low: lower end of the 95% interval over images, or None.
        high: upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None

    def percent(self) -> str:
        """Return the value in percent."""
        return f"{100 * self.value:.1f}"

    def interval(self) -> str:
        """Return value and interval in percent."""
        return f"{self.percent()} {self._range('.1f')}"

    def change(self) -> str:
        """Return a difference and its interval in percentage points, with signs."""
        return f"{100 * self.value:+.1f} {self._range('+.1f')}"

    def _range(self, form: str) -> str:
        if self.low is None or self.high is None:
            raise ValueError("The figure must have an interval, got none.")
        return f"[{100 * self.low:{form}}, {100 * self.high:{form}}]"


Figures = Mapping[str, Mapping[str, Figure]]
"""By the name of the evaluation, and by that of the metric."""


def figures_of(folder: Path) -> dict[str, Figure]:
    """Return the figures of an evaluation: its metrics, and ``images``, ``objects`` and ``prompts``, their counts."""
    result = read_result(folder)
    intervals, prompts = result["interval"] or {}, result["protocol"].get("mean_prompts_decoded")
    found = {
        name: Figure(value, *(intervals.get(name) or ()))
        for name, value in result["metrics"].items()
        if value is not None
    }
    found |= {"images": Figure(result["protocol"]["num_images"]), "objects": Figure(result["n_gt"]["all"])}
    return found if prompts is None else found | {"prompts": Figure(prompts)}


def recall_change(first: Path, second: Path) -> dict[str, Figure]:
    """Return AR of the second evaluation minus that of the first, paired by image."""
    one, two = read_counts(first), read_counts(second)
    _check_pair(first, second, one, two)
    ks = one["ks"].tolist()
    before, after = (named(average_recall(each["matches"].sum(0), each["n_gt"].sum(0)), ks) for each in (one, two))
    return _changes(before, after, paired_intervals(one["matches"], two["matches"], one["n_gt"], ks))


def prompt_change(first: Path, second: Path) -> dict[str, Figure]:
    """Return the prompt mIoU of the second evaluation minus that of the first, paired by image."""
    one, two = (dict(np.load(folder / "per_image.npz")) for folder in (first, second))
    _check_pair(first, second, one, two)
    kinds, n_gt = one["kinds"].tolist(), one["n_gt"]
    before, after = (mean_ious(each["iou_sums"].sum(0), n_gt.sum(0), kinds) for each in (one, two))
    draws = resampled_sums(two["iou_sums"] - one["iou_sums"], n_gt, seed=0, resamples=RESAMPLES)
    return _changes(before, after, percentiles(mean_ious(*draw, kinds) for draw in draws))


def write_evaluations(path: Path, figures: Figures) -> None:
    """Write figures as cells, a metric a line."""
    rows: list[Sequence[object]] = [["evaluation", "metric", *Figure._fields]]
    for evaluation, metrics in figures.items():
        for metric, figure in metrics.items():
            rows.append([evaluation, metric, *("" if value is None else f"{value:.6g}" for value in figure)])
    write_csv(path, rows)


def read_evaluations(path: Path) -> dict[str, dict[str, Figure]]:
    """Return the figures that ``write_evaluations`` wrote."""
    found: dict[str, dict[str, Figure]] = {}
    for row in read_csv(path):
        value, *ends = (float(row[name]) if row[name] else None for name in Figure._fields)
        assert value is not None
        found.setdefault(row["evaluation"], {})[row["metric"]] = Figure(value, *ends)
    return found


def _check_pair(first: Path, second: Path, one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray]) -> None:
    for key in ("image_ids", "n_gt"):
        if not np.array_equal(one[key], two[key]):
            raise ValueError(f"{second} can't be compared with {first}: their {key} must be the same.")


def _changes(
    before: Mapping[str, float | None], after: Mapping[str, float | None], intervals: Mapping[str, list[float] | None]
) -> dict[str, Figure]:
    """Return the differences that have an interval."""
    found = {}
    for name, ends in intervals.items():
        old, new = before[name], after[name]
        if ends is not None and old is not None and new is not None:
            found[name] = Figure(new - old, *ends)
    return found
