"""Coverage: how much of the objects the masks cover, whatever their borders."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from typing_extensions import override

from mobilesamv2.masks import areas, union
from mobilesamv2.metrics.mask_metric import MaskMetric, RankedMasks
from mobilesamv2.structures import GroundTruth


class Coverage(MaskMetric):
    """Share of the pixels of annotated objects that a mask covers.

    Args:
        min_score: masks of a lower score are left out.
    """

    def __init__(self, min_score: float = 0.0) -> None:
        self.min_score = min_score

    @override
    def measure(self, truth: GroundTruth, masks: RankedMasks) -> dict[str, np.ndarray]:
        found = [rle for rle, score in zip(masks.rles, masks.scores.tolist(), strict=True) if score >= self.min_score]
        both, objects, covers = (
            float(areas([union(rles)])[0]) if rles else 0.0 for rles in (truth.rles + found, truth.rles, found)
        )
        return {"pixels": np.array(objects), "covered": np.array(objects + covers - both)}

    @override
    def summarize(self, sums: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        return {"coverage": float(sums["covered"] / sums["pixels"]) if sums["pixels"] else None}
