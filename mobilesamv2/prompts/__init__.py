"""Prompt samplers: choose the prompts from which the mask decoder segments every object."""

from mobilesamv2.prompts.grid import Grid, GridProposals
from mobilesamv2.prompts.hierarchical import Hierarchical
from mobilesamv2.prompts.object_aware import Detector, EmbeddingDetector, ObjectAware
from mobilesamv2.prompts.prompt_head import PromptHeadBoxes
from mobilesamv2.prompts.sampler import PromptSampler

__all__ = [
    "Detector",
    "EmbeddingDetector",
    "Grid",
    "GridProposals",
    "Hierarchical",
    "ObjectAware",
    "PromptHeadBoxes",
    "PromptSampler",
]
