"""What a Trainer is fed with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.structures import GroundTruth

EvaluationSample = tuple[np.ndarray, GroundTruth]
"""One image, RGB uint8 (H, W, 3), and its objects."""


class EvaluationData(pl.LightningDataModule):
    """Images with their objects, one at a time, decoded ahead by workers.

    Several processes share the images out without repeating one; their shares may differ by an image.

    Args:
        dataset: the images.
        num_workers: processes that decode ahead, for each process that evaluates.
    """

    def __init__(self, dataset: CocoDataset, num_workers: int = 1) -> None:
        super().__init__()
        self.dataset = dataset
        self.num_workers = num_workers

    def test_dataloader(self) -> DataLoader[EvaluationSample]:
        """This process's share."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        share = range(rank, len(self.dataset), world_size)
        return DataLoader(
            self.dataset, batch_size=None, sampler=share, collate_fn=_as_it_is, num_workers=self.num_workers
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The image stays on the CPU until SegAny has resized it."""
        return batch


def _as_it_is(sample: Any) -> Any:
    return sample
