"""Evaluation image by image under ``Trainer.test``: on any number of processes, and resumed where it was stopped."""

from __future__ import annotations

from abc import abstractmethod
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
from torch import distributed

from mobilesamv2.data.datamodule import EvaluationSample
from mobilesamv2.metrics.result_shards import ImageResult, ResultShards
from mobilesamv2.metrics.stage_time import StageTimer
from mobilesamv2.models.sam import Sam
from mobilesamv2.structures import GroundTruth


class ImageOutcome(NamedTuple):
    """What an image gave.

    Attributes:
        values: arrays by name, of the same shapes for every image.
        masks: COCO results; read only where masks are kept.
    """

    values: dict[str, np.ndarray]
    masks: list[dict[str, Any]]


class EvaluateImages(pl.LightningModule):
    """What evaluations share.

    After ``Trainer.test`` every process has the results of all images in ``results``, those of earlier runs included.
    The first image of each process warms it up, and its times are left out.

    Args:
        sam: the model; registered here, so that Lightning moves it to the device.
        shards: where results are kept as they come, and those of an interrupted run are found; None keeps nothing.
    """

    def __init__(self, sam: Sam, shards: ResultShards | None) -> None:
        super().__init__()
        self.sam = sam
        self.shards = shards
        self.results: list[ImageResult] = []
        self._warm = False

    @property
    @abstractmethod
    def timer(self) -> StageTimer:
        """Of the image that was evaluated last."""

    @abstractmethod
    def evaluate_image(self, image: np.ndarray, truth: GroundTruth) -> ImageOutcome:
        """Runs the model on one image, RGB uint8 (H, W, 3)."""

    def on_test_epoch_start(self) -> None:
        """Begins with this process's share of what an interrupted run has left."""
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        self.results = self.shards.done[rank::world_size] if self.shards else []
        self._warm = False

    def test_step(self, batch: EvaluationSample | Exception | None, batch_idx: int) -> None:
        """One image; nothing in a process without a share; the error of an image that can't be read."""
        if batch is None:
            return
        if isinstance(batch, Exception):
            raise batch
        image, truth = batch
        outcome = self.evaluate_image(image, truth)
        ran = self.timer.ms["image_encoder"] > 0  # not on an image that nothing is asked of
        ms = self.timer.ms if ran and self._warm else None
        self._warm |= ran
        self.results.append(ImageResult(truth.image_id, outcome.values, ms, self.timer.num_prompts))
        if self.shards is not None:
            self.shards.add(self.results[-1], outcome.masks)

    def on_test_epoch_end(self) -> None:
        """Brings the images of all processes together, in the order of their ids."""
        if self.shards is not None:
            self.shards.flush()
        if distributed.is_available() and distributed.is_initialized():
            shares: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(shares, self.results)
            self.results = list(chain(*shares))
        self.results.sort(key=lambda result: result.image_id)
