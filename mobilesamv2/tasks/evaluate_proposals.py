"""Mask AR@K of SegEvery."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
from torch import nn

from mobilesamv2.data.datamodule import EvaluationSample
from mobilesamv2.metrics.average_recall import DEFAULT_KS, AverageRecall, ImageCounts, count_matches
from mobilesamv2.metrics.result_shards import ResultShards
from mobilesamv2.metrics.stage_time import StageTimer
from mobilesamv2.segevery import SegEvery
from mobilesamv2.structures import GroundTruth, Masks
from mobilesamv2.tasks.evaluate import EvaluateImages, ImageOutcome

KCaps = Literal["masks", "prompts"]


class EvaluateProposals(EvaluateImages):
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
        super().__init__(segevery.segany.sam, shards)
        self.segevery = segevery
        detector = getattr(segevery.sampler, "detector", None)
        self.detector = detector if isinstance(detector, nn.Module) else None  # registered, as the model is
        self.recall = AverageRecall(ks)
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

    @property
    def images(self) -> list[ImageCounts]:
        """The counts of every image."""
        return [
            ImageCounts(r.image_id, r.values["matched"], r.values["n_gt"], *map(int, r.values["detections"]))
            for r in self.results
        ]

    def evaluate_images(self, samples: Sequence[EvaluationSample]) -> Iterator[ImageOutcome]:
        """Segments everything in images that the encoder takes together, and counts."""
        masks = self.segevery.each([image for image, _ in samples])
        for (_, truth), found in zip(samples, masks, strict=True):
            yield self._count(found, truth)

    def _count(self, masks: Masks, truth: GroundTruth) -> ImageOutcome:
        prompt_ranks = masks.prompt_index.tolist() if self._caps_prompts else None
        counts = count_matches(truth, masks.rles, masks.scores.tolist(), self.recall.ks, prompt_ranks)
        self.recall.update(counts)
        kept = masks.to_coco(truth.image_id) if self.shards is not None and self.shards.keep_masks else []
        detections = np.array([counts.num_detections, counts.num_counted])
        values = {"matched": counts.matched, "n_gt": counts.n_gt, "detections": detections}
        return ImageOutcome(values, kept)

    def on_test_epoch_start(self) -> None:
        """Counts what an interrupted run has left."""
        super().on_test_epoch_start()
        self.recall.reset()
        for counts in self.images:
            self.recall.update(counts)

    def on_test_epoch_end(self) -> None:
        """Sums over all processes, and logs AR."""
        super().on_test_epoch_end()
        metrics: dict[str, Any] = self.recall.compute()
        self.log_dict(
            {f"test/{name.replace('@', '_').lower()}": value for name, value in metrics.items() if value is not None}
        )
