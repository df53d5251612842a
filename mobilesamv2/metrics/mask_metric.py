"""A measure of SegEvery's masks other than AR@K: what it offers, and its intervals and table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from mobilesamv2.metrics.average_recall import RESAMPLES, percentiles, resampled_sums
from mobilesamv2.metrics.result_record import Results, percent, percent_range, time_lines
from mobilesamv2.structures import GroundTruth, Masks


class MaskMetric(Protocol):
    """Measures the masks of images, as a function of sums over them; hence any number of processes agree."""

    def measure(self, truth: GroundTruth, masks: Masks) -> dict[str, np.ndarray]:
        """What an image adds to the sums: arrays by name, of the same shapes for every image.

        Args:
            truth: its objects.
            masks: what SegEvery found, after the prompt sampler's filters.
        """
        ...

    def summarize(self, sums: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """The metrics by name, as fractions; None where there is nothing to divide by.

        Args:
            sums: the arrays of ``measure`` summed over images, and ``n_gt``, the number of objects.
        """
        ...


def bootstrap_metrics(
    metric: MaskMetric, values: Mapping[str, np.ndarray], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, list[float] | None]:
    """95% percentile intervals over resampled images, under the names of ``summarize``.

    Args:
        metric: of the values.
        values: (images, ...) by name, ``n_gt`` (images,) among them.
        seed: of the resampling; the same seed draws the same images.
        resamples: how many.
    """
    draws = zip(*(resampled_sums(each, values["n_gt"], seed, resamples) for each in values.values()), strict=True)
    return percentiles(
        metric.summarize({name: sums for name, (sums, _) in zip(values, draw, strict=True)}) for draw in draws
    )


def format_metrics(results: Results) -> str:
    """The table that is printed: each metric in percent with its 95% interval."""
    width = max(map(len, results["metrics"])) + 2
    lines = [
        f"{name:<{width}}{percent(value):>6} %  {percent_range(results['interval'][name])}".rstrip()
        for name, value in results["metrics"].items()
    ]
    lines.append(f"{results['protocol']['num_images']} images, {results['n_gt']['all']} objects")
    return "\n".join([*lines, *time_lines(results)])
