"""Mask AR@K of SegEvery under ``Trainer.test``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal, get_args

import pytorch_lightning as pl
from torch import distributed, nn

from mobilesamv2.data.datamodule import EvaluationSample
from mobilesamv2.metrics.average_recall import DEFAULT_KS, AverageRecall, count_matches
from mobilesamv2.metrics.result_shards import ImageResult, ResultShards
from mobilesamv2.segevery import SegEvery

KCaps = Literal["masks", "prompts"]


class EvaluateProposals(pl.LightningModule):
    """Segments everything in each image and counts the objects that were found.

    After ``Trainer.test`` every process has the results of all images in ``results``, those of earlier runs included.
    The first image of each process warms it up, and its times are left out.

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
        super().__init__()
        self.segevery = segevery
        self.sam = segevery.segany.sam  # registered, so that Lightning moves it to the device
        detector = getattr(segevery.sampler, "detector", None)
        self.detector = detector if isinstance(detector, nn.Module) else None
        self.recall = AverageRecall(ks)
        self.results: list[ImageResult] = []
        self._caps_prompts = k_caps == "prompts"
        self._shards = shards
        self._warm = False
        if k_caps not in get_args(KCaps):
            raise ValueError(f"k_caps is one of {', '.join(get_args(KCaps))}, and is '{k_caps}'.")
        sampler = segevery.sampler
        if self._caps_prompts and not sampler.ranks_prompts:
            raise ValueError(f"{type(sampler).__name__} does not rank its prompts; K caps its masks: k_caps=masks.")
        if self._caps_prompts and sampler.filters.nms_iou < 1:
            raise ValueError("k_caps=prompts counts every mask of a prompt: prompt_sampler.nms_iou=1.")

    def on_test_epoch_start(self) -> None:
        """Begins with this process's share of what an interrupted run has left."""
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        self.recall.reset()
        self.results = self._shards.done[rank::world_size] if self._shards else []
        for result in self.results:
            self.recall.update(result.counts)
        self._warm = False

    def test_step(self, batch: EvaluationSample | None, batch_idx: int) -> None:
        """One image, or nothing in a process without a share."""
        if batch is None:
            return
        image, truth = batch
        masks = self.segevery(image)
        prompt_ranks = masks.prompt_index.tolist() if self._caps_prompts else None
        counts = count_matches(truth, masks.rles, masks.scores.tolist(), self.recall.ks, prompt_ranks)
        timer = self.segevery.timer
        result = ImageResult(counts, timer.ms if self._warm else None, timer.num_prompts)
        self._warm = True
        self.recall.update(counts)
        self.results.append(result)
        if self._shards is not None:
            self._shards.add(result, masks.to_coco(truth.image_id) if self._shards.keep_masks else ())

    def on_test_epoch_end(self) -> None:
        """Brings the images of all processes together and logs AR."""
        if self._shards is not None:
            self._shards.flush()
        if distributed.is_available() and distributed.is_initialized():
            shares: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(shares, self.results)
            self.results = list(chain(*shares))
        metrics: dict[str, Any] = self.recall.compute()
        self.log_dict(
            {f"test/{name.replace('@', '_').lower()}": value for name, value in metrics.items() if value is not None}
        )
