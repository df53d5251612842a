"""The contract of a prompt sampler."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from mobilesamv2.structures import Filters, Masks, Prompts, Thresholds

Rounds = Generator[Prompts, Masks, None]
"""A coroutine that yields the prompts of a round and receives, through ``send``, the masks that passed the filters.

All prompts of a round are of one crop, or of the full image.
"""


class PromptSampler(Protocol):
    """A strategy that chooses prompts for an image and defines how their masks are filtered and ranked."""

    @property
    def multimask_output(self) -> bool:
        """Return whether the decoder predicts three masks per prompt instead of one."""
        ...

    @property
    def filters(self) -> Filters:
        """Return the thresholds that a mask must pass to be kept."""
        ...

    @property
    def ranks_prompts(self) -> bool:
        """Return whether prompts have scores and are sorted by them, highest first."""
        ...

    @property
    def one_round(self) -> bool:
        """Return whether ``rounds`` yields only once, for the full image, and ignores the masks it receives."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Return every setting as plain values, to be recorded with a result."""
        ...

    def rounds(self, image: np.ndarray, embedding: Tensor) -> Rounds:
        """Yield prompts for one image in rounds; each round may depend on the masks of the previous one.

        Args:
            image: RGB uint8 (H, W, 3).
            embedding: (1, C, S/16, S/16) of the full image, on the model's device, for a sampler that reads it.
        """
        ...

    def rank(self, predicted_iou: Tensor, stability_score: Tensor, prompts: Prompts) -> Tensor:
        """Return the scores (D,) that rank D masks, from their predicted IoU, stability score and prompts."""
        ...


@runtime_checkable
class AdaptsToModel(Protocol):
    """A sampler that takes thresholds which it was not given from the model; ``SegEvery`` asks it to."""

    def for_model(self, thresholds: Thresholds) -> PromptSampler:
        """Return the sampler with a model's thresholds where it has none of its own."""
        ...


RECORDED_NAMES = {
    "multimask_output": "multimask",
    "pred_iou_thresh": "predicted_iou",
    "stability_score_thresh": "stability",
    "box_nms_thresh": "nms_iou",
    "crop_nms_thresh": "crop_nms_iou",
    "coarse_stride": "coarse_every",
    "high_confidence_iou": "confident_iou",
}
"""Keys of results.json that differ from the setting's name; they stay fixed when the code is renamed."""


def recorded_settings(sampler: object, **settings: Any) -> dict[str, Any]:
    """Return a sampler's settings under the keys of results.json, and its class name as ``sampler``."""
    if not settings.get("min_mask_region_area"):
        settings.pop("min_mask_region_area", None)  # off, as in results from before it existed: these resume
    return {"sampler": type(sampler).__name__} | {RECORDED_NAMES.get(key, key): v for key, v in settings.items()}
