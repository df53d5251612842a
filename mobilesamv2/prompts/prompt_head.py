"""Boxes of a prompt head, which reads the image embedding: prompts without a second network on the image."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from mobilesamv2.prompts.object_aware import EmbeddingDetector, ObjectAware
from mobilesamv2.ranges import NonNegativeInt, Share


@dataclass(frozen=True)
class PromptHeadBoxes(ObjectAware):
    """Object-aware prompts with the settings that suit a prompt head; attributes as of ``ObjectAware``.

    Source: the idea of prompts from the image embedding is Lite-SAM's and AoP-SAM's; the thresholds are this project's.
    """

    confidence: Share = 0.05
    detector_nms_iou: Share = 0.7
    snap: NonNegativeInt = 0

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.detector, EmbeddingDetector):
            raise ValueError(
                "The detector of PromptHeadBoxes must be a prompt head, which reads the image embedding, got "
                f"{type(self.detector).__name__}: detector=mini_prompt_head, or build_prompt_head(sam, file)."
            )
