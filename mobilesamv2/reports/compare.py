"""Differences of two evaluations, with paired bootstrap intervals over their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tabulate import tabulate

from mobilesamv2.metrics.average_recall import average_recall, named, paired_intervals
from mobilesamv2.metrics.bootstrap import RESAMPLES
from mobilesamv2.reports.result_files import read_counts, read_result
from mobilesamv2.reports.table import check_comparable


def compare_results(first: str | Path, second: str | Path, seed: int = 0) -> str:
    """Return a table of the second result minus the first, in percentage points of AR, with paired 95% intervals.

    Each resample draws the same images for both.

    Args:
        first: folder of an evaluation, or its ``results.json``.
        second: another one on the same images.
        seed: of the resampling.

    Raises:
        FileNotFoundError: if a result or its ``per_image.npz`` is missing.
        ValueError: if the two differ in images, objects, Ks or annotations.
    """
    check_comparable({str(path): read_result(path) for path in (first, second)})
    one, two = _pair(first, second)
    ks = one["ks"].tolist()
    before, after = (named(average_recall(c["matches"].sum(0), c["n_gt"].sum(0)), ks) for c in (one, two))
    intervals = paired_intervals(one["matches"], two["matches"], one["n_gt"], ks, seed)
    rows = []
    for name, interval in intervals.items():
        if interval is not None and (x := before[name]) is not None and (y := after[name]) is not None:
            low, high = interval
            change = f"{100 * (y - x):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            mark = "" if low <= 0 <= high else "*"
            rows.append([name, f"{100 * x:.1f}", f"{100 * y:.1f}", change, mark])
    head = ["AR (%)", "first", "second", "difference [95%]", ""]
    alignment = ("left", "right", "right", "right", "left")
    table = tabulate(rows, head, tablefmt="simple", disable_numparse=True, colalign=alignment)
    note = f"{len(one['image_ids'])} images, {RESAMPLES} resamples, seed {seed}; * if 0 is outside the interval"
    return f"{table}\n\n{note}"


def ar_change(
    first: str | Path, second: str | Path, metric: str = "mAR", others_left_out: bool = False, seed: int = 0
) -> tuple[float, float, float]:
    """Return the second's AR minus the first's, as a fraction, and the ends of its paired 95% interval.

    Args:
        first: folder of an evaluation, or its ``results.json``.
        second: another one on the same images.
        metric: ``mAR``, or one such as ``AR@1000``.
        others_left_out: leave out the images that the second has beside those of the first.
        seed: of the resampling.

    Raises:
        FileNotFoundError: if a ``per_image.npz`` is missing.
        ValueError: if the two differ in images, objects or Ks, or there is no object.
    """
    one, two = _pair(first, second, others_left_out)
    ks = one["ks"].tolist()
    before, after = (named(average_recall(c["matches"].sum(0), c["n_gt"].sum(0)), ks)[metric] for c in (one, two))
    interval = paired_intervals(one["matches"], two["matches"], one["n_gt"], ks, seed)[metric]
    if before is None or after is None or interval is None:
        raise ValueError(f"{first} and {second} must have objects to be compared, got none.")
    return after - before, interval[0], interval[1]


def _pair(
    first: str | Path, second: str | Path, others_left_out: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the counts of both, after a check that they are of the same images."""
    one, two = read_counts(first), read_counts(second)
    if others_left_out:
        shared = np.isin(two["image_ids"], one["image_ids"])
        two |= {key: two[key][shared] for key in ("image_ids", "matches", "n_gt")}
    for key in ("image_ids", "ks", "n_gt"):
        if not np.array_equal(one[key], two[key]):
            raise ValueError(f"{second} can't be compared with {first}: their {key} must be the same.")
    return one, two
