"""Mask AR@K of SegEvery."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from torch import nn

from mobilesamv2.data.datamodule import EvaluationSample
from mobilesamv2.metrics.average_recall import DEFAULT_KS
from mobilesamv2.metrics.result_shards import ResultShards
from mobilesamv2.metrics.stage_time import StageTimer
from mobilesamv2.segevery import SegEvery
from mobilesamv2.structures import GroundTruth, Masks
from mobilesamv2.tasks.evaluate import ImageOutcome
from mobilesamv2.tasks.evaluate_recall import EvaluateRecall

KCaps = Literal["masks", "prompts"]


class EvaluateProposals(EvaluateRecall):
    """Segments everything in each image and counts the objects that were found.

    Args:
        segevery: the model with its prompt sampler.
        ks: how many of the best masks, or prompts, of an image count.
        k_caps: ``masks``, or ``prompts`` for the masks of the sampler's K best prompts (MobileSAMv2, table 4).
        shards: where results are kept as they come, and those of an interrupted run are found; None keeps nothing.

    Raises:
        ValueError: ``k_caps`` is neither, or caps prompts of a sampler that does not rank them or whose masks go
            through NMS, which would see other masks for each K.
    """

    def __init__(
        self,
        segevery: SegEvery,
        ks: Sequence[int] = DEFAULT_KS,
        k_caps: KCaps = "masks",
        shards: ResultShards | None = None,
    ) -> None:
        super().__init__(ks, shards)
        self.segevery = segevery
        detector = getattr(segevery.sampler, "detector", None)
        # registered, so that Lightning moves them to the device
        self.sam = segevery.segany.sam
        self.detector = detector if isinstance(detector, nn.Module) else None
        self._caps_prompts = k_caps == "prompts"
        if k_caps not in get_args(KCaps):
            raise ValueError(f"k_caps is one of {', '.join(get_args(KCaps))}, and is '{k_caps}'.")
        sampler = segevery.sampler
        if self._caps_prompts and not sampler.ranks_prompts:
            raise ValueError(
                f"{type(sampler).__name__} does not rank its prompts; K caps its masks: task.k_caps=masks."
            )
        if self._caps_prompts and sampler.filters.nms_iou < 1:
            raise ValueError("k_caps=prompts counts every mask of a prompt: prompt_sampler.nms_iou=1.")

    @property
    def timer(self) -> StageTimer:
        """Of the image that was evaluated last."""
        return self.segevery.timer

    def evaluate_images(self, samples: Sequence[EvaluationSample]) -> Iterator[ImageOutcome]:
        """Segments everything in images that the encoder takes together, and counts."""
        masks = self.segevery.each([image for image, _ in samples])
        for (_, truth), found in zip(samples, masks, strict=True):
            yield self._count(found, truth)

    def _count(self, masks: Masks, truth: GroundTruth) -> ImageOutcome:
        prompt_ranks = masks.prompt_index.tolist() if self._caps_prompts else None
        values = self.count(truth, masks.rles, masks.scores.tolist(), prompt_ranks)
        return ImageOutcome(values, masks.to_coco(truth.image_id) if self.keeps_masks else [])
