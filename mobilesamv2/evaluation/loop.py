"""Evaluation image by image under ``Trainer.test``, on any number of processes, resumed where it was stopped."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
from torch import distributed

from mobilesamv2.data.evaluation_samples import EvaluationSample, HashedSample
from mobilesamv2.evaluation.shards import ImageResult, ResultShards, truth_fingerprint
from mobilesamv2.metrics.peak_memory import PeakMemory
from mobilesamv2.metrics.stage_time import StageTimer
from mobilesamv2.structures import GroundTruth


class ImageOutcome(NamedTuple):
    """The outcome of one image.

    Attributes:
        values: arrays by name, of the same shapes for every image.
        masks: COCO results; read only where masks are kept.
    """

    values: dict[str, np.ndarray]
    masks: list[dict[str, Any]]


class EvaluateImages(pl.LightningModule):
    """The loop that all evaluations share.

    After ``Trainer.test`` every process has the results of all images in ``results``, those of earlier runs included.
    The first batch of a process warms it up, and its times are left out. A task registers its own
    networks as modules, so that Lightning moves them to the device.

    Args:
        shards: where results are kept as they come, and those of an interrupted run are found; None keeps nothing.
    """

    def __init__(self, shards: ResultShards | None) -> None:
        super().__init__()
        self.shards = shards
        self.results: list[ImageResult] = []
        self._warm = False
        self._memory: PeakMemory | None = None

    @property
    @abstractmethod
    def timer(self) -> StageTimer:
        """Return the timer of the image that was evaluated last."""

    @abstractmethod
    def evaluate_images(self, samples: Sequence[EvaluationSample]) -> Iterator[ImageOutcome]:
        """Run the model on images of one batch, in order; ``timer`` is then that of the last outcome."""

    def on_test_epoch_start(self) -> None:
        """Start with this process's share of the results of an interrupted run."""
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        self.results = self.shards.done[rank::world_size] if self.shards else []
        self._warm = False
        self._memory = PeakMemory(self.device)

    def test_step(self, batch: Sequence[HashedSample | Exception | None], batch_idx: int) -> None:
        """Evaluate some images; none in a process without a share. Raise the error of an image that can't be read."""
        for error in batch:
            if isinstance(error, Exception):
                raise error
        hashed = [item for item in batch if isinstance(item, HashedSample)]
        warm = self._warm
        outcomes = self.evaluate_images([sample for sample, _ in hashed])
        for ((_, truth), content_hash), outcome in zip(hashed, outcomes, strict=True):
            ran = any(self.timer.ms.values())  # not on an image without prompts
            ms = self.timer.ms if ran and warm else None
            cpu_ms = self.timer.cpu_ms if ms and self.timer.device.type == "cpu" else None
            self._warm |= ran
            prompts, fingerprint = self.timer.num_prompts, truth_fingerprint(truth)
            peak = None if self._memory is None else self._memory.read_mib()
            self.results.append(
                ImageResult(truth.image_id, outcome.values, ms, prompts, cpu_ms, fingerprint, peak, content_hash)
            )
            if self.shards is not None:
                self.shards.add(self.results[-1], outcome.masks)

    def flush_results(self) -> int:
        """Write what is pending, and return how many images this process has."""
        if self.shards is None:
            return 0
        self.shards.flush()
        return len(self.results)

    def on_test_epoch_end(self) -> None:
        """Gather the images of all processes, in the order of their ids."""
        self.flush_results()
        if distributed.is_available() and distributed.is_initialized():
            shares: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(shares, self.results)
            self.results = list(chain(*shares))
        self.results.sort(key=lambda result: result.image_id)


class EvaluateEachImage(EvaluateImages):
    """An evaluation that takes images one after the other."""

    def evaluate_images(self, samples: Sequence[EvaluationSample]) -> Iterator[ImageOutcome]:
        """Run the model on each image."""
        for image, truth in samples:
            yield self.evaluate_image(image, truth)

    @abstractmethod
    def evaluate_image(self, image: np.ndarray, truth: GroundTruth) -> ImageOutcome:
        """Run the model on an image, RGB uint8 (H, W, 3)."""
