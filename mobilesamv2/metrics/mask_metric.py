"""The contract of a metric of masks, of which AR@K is the first, and its intervals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from mobilesamv2.metrics.bootstrap import RESAMPLES, percentiles, resampled_sums
from mobilesamv2.structures import RLE, GroundTruth


class RankedMasks(Protocol):
    """Masks of one image with their scores: SegEvery's ``Masks``, or what another network finds.

    Attributes:
        rles: D masks at the size of the image.
        scores: (D,) higher is better.
    """

    @property
    def rles(self) -> list[RLE]:
        """Return D masks."""
        ...

    @property
    def scores(self) -> Tensor:
        """Return (D,) scores."""
        ...


class MaskMetric(ABC):
    """Measures the masks of images as a function of sums over them; hence any number of processes agree.

    Attributes:
        groups: of objects, that ``n_gt`` counts.
        needs_prompt_ranks: whether ``measure`` reads ``prompt_index``, which only masks of ranked prompts have.
    """

    groups: tuple[str, ...] = ("all",)
    needs_prompt_ranks: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """Return every setting as plain values, for the record beside a result."""
        return {}

    @abstractmethod
    def measure(self, truth: GroundTruth, masks: RankedMasks) -> dict[str, np.ndarray]:
        """Return what an image adds to the sums: arrays by name, of the same shapes for every image.

        ``n_gt`` (groups,) is added where it is not among them.

        Args:
            truth: the image's objects.
            masks: the masks that were found, after all filters.
        """

    @abstractmethod
    def summarize(self, sums: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """Return the metrics by name, as fractions; None where there is nothing to divide by.

        Args:
            sums: the arrays of ``measure``, summed over images, ``n_gt`` among them.
        """

    def per_image(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what per_image.npz holds beside ``image_ids``.

        Args:
            values: (images, ...) by name.
        """
        return dict(values)


def measure_image(metric: MaskMetric, truth: GroundTruth, masks: RankedMasks) -> dict[str, np.ndarray]:
    """Measure one image, and count its objects."""
    return {"n_gt": np.array([len(truth.rles)])} | metric.measure(truth, masks)


def bootstrap_metrics(
    metric: MaskMetric, values: Mapping[str, np.ndarray], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, list[float] | None]:
    """Return 95% percentile intervals over resampled images, under the names of ``summarize``.

    Args:
        metric: of the values.
        values: (images, ...) by name, ``n_gt`` (images, groups) among them.
        seed: of the resampling; the same seed draws the same images.
        resamples: number of resamples.
    """
    draws = zip(*(resampled_sums(each, values["n_gt"], seed, resamples) for each in values.values()), strict=True)
    return percentiles(
        metric.summarize({name: sums for name, (sums, _) in zip(values, draw, strict=True)}) for draw in draws
    )
