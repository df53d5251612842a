"""Mask AR@K of SegEvery under ``Trainer.test``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader

from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.metrics.average_recall import DEFAULT_KS, AverageRecall, ImageCounts, count_matches
from mobilesamv2.segevery import SegEvery
from mobilesamv2.structures import GroundTruth

Batch = tuple[np.ndarray, GroundTruth]
"""One image, RGB uint8 (H, W, 3), and its objects."""


class EvaluateProposals(pl.LightningModule):
    """Segments everything in each image and counts the objects that were found.

    After ``Trainer.test``, ``recall`` holds the sums over all images and ``images`` the counts of each one, in every
    process.

    Args:
        segevery: the model with its prompt sampler.
        ks: how many of the best masks of an image count.
    """

    def __init__(self, segevery: SegEvery, ks: Sequence[int] = DEFAULT_KS) -> None:
        super().__init__()
        self.segevery = segevery
        self.sam = segevery.segany.sam  # registered, so that Lightning moves it to the device
        detector = getattr(segevery.sampler, "detector", None)
        self.detector = detector if isinstance(detector, nn.Module) else None
        self.recall = AverageRecall(ks)
        self.images: list[ImageCounts] = []

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The image stays on the CPU until SegAny has resized it."""
        return batch

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """One image."""
        image, truth = batch
        masks = self.segevery(image)
        counts = count_matches(truth, masks.rles, masks.scores.tolist(), self.recall.ks)
        self.recall.update(counts)
        self.images.append(counts)

    def on_test_epoch_end(self) -> None:
        """Brings the images of all processes together and logs AR."""
        if distributed.is_available() and distributed.is_initialized():
            gathered: list[list[ImageCounts]] = [[] for _ in range(distributed.get_world_size())]
            distributed.all_gather_object(gathered, self.images)
            self.images = [counts for part in gathered for counts in part]
        metrics: dict[str, Any] = self.recall.compute()
        self.log_dict(
            {f"test/{name.replace('@', '_').lower()}": value for name, value in metrics.items() if value is not None}
        )


def evaluation_loader(dataset: CocoDataset, num_workers: int = 1) -> DataLoader[Batch]:
    """Images and their objects one at a time, decoded ahead by workers."""
    return DataLoader(dataset, batch_size=None, collate_fn=_as_it_is, num_workers=num_workers)


def _as_it_is(sample: Any) -> Any:
    return sample
