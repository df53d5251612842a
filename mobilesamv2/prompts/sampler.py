"""The contract of a prompt sampler."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from mobilesamv2.structures import Filters, Masks, Prompts

Rounds = Generator[Prompts, Masks, None]
"""Prompts in rounds; what ``send`` brings back are the masks that the round's prompts gave, after the filters.

The prompts of a round are of one crop, or all of the whole image.
"""


class PromptSampler(Protocol):
    """Chooses prompts for an image, and says what is to be done with their masks."""

    @property
    def multimask(self) -> bool:
        """Three masks a prompt instead of one."""
        ...

    @property
    def filters(self) -> Filters:
        """What a mask must pass to be kept."""
        ...

    @property
    def ranks_prompts(self) -> bool:
        """Whether prompts have scores, and come best first."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting, as plain values, for the record beside a result."""
        ...

    def rounds(self, image: np.ndarray) -> Rounds:
        """Prompts for one image, round by round; each round sees the masks of the one before.

        Args:
            image: RGB uint8 (H, W, 3).
        """
        ...

    def rank(self, predicted_iou: Tensor, stability_score: Tensor, prompts: Prompts) -> Tensor:
        """Scores (D,) by which D masks are ranked, from their predicted IoU, stability score and prompts."""
        ...
