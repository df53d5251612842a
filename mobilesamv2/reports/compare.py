"""Whether two evaluations differ: paired bootstrap over their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mobilesamv2.metrics.average_recall import RESAMPLES, average_recall, named, paired_intervals
from mobilesamv2.reports.table import check_alike, read_result
from mobilesamv2.whole_files import read_arrays


def compare_results(first: str | Path, second: str | Path, seed: int = 0) -> str:
    """A table of the second result minus the first, in points of AR, with paired 95% intervals.

    Each resample draws the same images for both.

    Args:
        first: folder of an evaluation, or its ``results.json``.
        second: another one of the same images.
        seed: of the resampling.

    Raises:
        FileNotFoundError: a result or its ``per_image.npz`` is not there.
        ValueError: the two are on other images, objects, Ks or annotations.
    """
    check_alike({str(path): read_result(path) for path in (first, second)})
    one, two = _pair(first, second)
    ks = one["ks"].tolist()
    before, after = (named(average_recall(c["matches"].sum(0), c["n_gt"].sum(0)), ks) for c in (one, two))
    intervals = paired_intervals(one["matches"], two["matches"], one["n_gt"], ks, seed)
    lines = [f"{'AR (%)':<12}{'first':>8}{'second':>8}{'difference [95%]':>26}"]
    for name, interval in intervals.items():
        if interval is not None and (x := before[name]) is not None and (y := after[name]) is not None:
            low, high = interval
            change = f"{100 * (y - x):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            mark = "" if low <= 0 <= high else " *"
            lines.append(f"{name:<12}{100 * x:>8.1f}{100 * y:>8.1f}{change:>26}{mark}")
    lines += [
        "",
        f"{len(one['image_ids'])} images, {RESAMPLES} resamples, seed {seed}; * where 0 is outside the interval",
    ]
    return "\n".join(lines)


def mean_ar_change(first: str | Path, second: str | Path, seed: int = 0) -> tuple[float, float, float]:
    """The second's mean AR minus the first's, as a fraction, and the ends of its paired 95% interval.

    Args:
        first: folder of an evaluation, or its ``results.json``.
        second: another one of the same images.
        seed: of the resampling.

    Raises:
        FileNotFoundError: a ``per_image.npz`` is not there.
        ValueError: the two are on other images, objects or Ks, or there is no object.
    """
    one, two = _pair(first, second)
    ks = one["ks"].tolist()
    before, after = (named(average_recall(c["matches"].sum(0), c["n_gt"].sum(0)), ks)["mAR"] for c in (one, two))
    interval = paired_intervals(one["matches"], two["matches"], one["n_gt"], ks, seed)["mAR"]
    if before is None or after is None or interval is None:
        raise ValueError(f"{first} and {second} have no objects, so neither is better.")
    return after - before, interval[0], interval[1]


def _pair(first: str | Path, second: str | Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The counts of both, which are of the same images."""
    one, two = _counts(first), _counts(second)
    for key in ("image_ids", "ks", "n_gt"):
        if not np.array_equal(one[key], two[key]):
            raise ValueError(f"{second} can't be compared with {first}: the {key} in their per_image.npz differ.")
    return one, two


def _counts(path: str | Path) -> dict[str, np.ndarray]:
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    file = folder / "per_image.npz"
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}, which evaluate.py writes beside results.json.")
    return read_arrays(file)
