"""What a Trainer is fed with."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from mobilesamv2.data.annotated_images import AnnotatedImages
from mobilesamv2.data.samples import EncoderSamples, Sample
from mobilesamv2.structures import GroundTruth

EvaluationSample = tuple[np.ndarray, GroundTruth]
"""One image, RGB uint8 (H, W, 3), and its objects."""

NOTHING = -1


class EvaluationData(pl.LightningDataModule):
    """Images with their objects, one at a time, decoded ahead by workers.

    Several processes share the images out without repeating one; their shares may differ by an image. A process without
    a share is given None once, so that all processes pass through the same hooks.

    Args:
        dataset: the images.
        num_workers: processes that decode ahead, for each process that evaluates.
        done: ids of images to leave out.
    """

    def __init__(self, dataset: AnnotatedImages, num_workers: int = 1, done: Collection[int] = ()) -> None:
        super().__init__()
        self.dataset = _OrNothing(dataset)
        self.num_workers = num_workers
        left_out = set(done)
        self.remaining = [i for i, image_id in enumerate(dataset.image_ids) if image_id not in left_out]

    def test_dataloader(self) -> DataLoader[EvaluationSample | Exception | None]:
        """This process's share."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        share = self.remaining[rank::world_size] or [NOTHING]
        return DataLoader(
            self.dataset, batch_size=None, sampler=share, collate_fn=_as_it_is, num_workers=self.num_workers
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The image stays on the CPU until SegAny has resized it."""
        return batch


class TrainingData(pl.LightningDataModule):
    """Batches of training samples, and some images at the end of the data set that only validation reads.

    Args:
        samples: what the task trains on.
        batch_size: samples in a batch.
        validation_images: how many at the end are kept from training.
        num_workers: processes that make samples ahead.
        seed: of the order, which differs from epoch to epoch.

    Raises:
        ValueError: nothing would be left to train on.
    """

    def __init__(
        self, samples: EncoderSamples, batch_size: int, validation_images: int = 0, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        last = len(samples) - validation_images
        if last < batch_size or validation_images < 0:
            raise ValueError(
                f"{len(samples)} images, of which {validation_images} are kept for validation, make no batch of "
                f"{batch_size}; lower validation_images or batch_size, or add data."
            )
        self.training: Dataset[Sample] = Subset(samples, range(last))
        self.validation: Dataset[Sample] = Subset(samples.for_validation(), range(last, len(samples)))
        self._settings: dict[str, Any] = {
            "batch_size": batch_size,
            "num_workers": num_workers,
            "collate_fn": samples.collate,
        }
        self._order = torch.Generator().manual_seed(seed)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled; a last batch that is not full is left out."""
        return DataLoader(self.training, shuffle=True, drop_last=True, generator=self._order, **self._settings)

    def val_dataloader(self) -> DataLoader[Sample]:
        """In order."""
        return DataLoader(self.validation, **self._settings)


class _OrNothing(Dataset[EvaluationSample | Exception | None]):
    """A data set with one more item, None, at the index ``NOTHING``.

    What can't be read comes as the error itself, since a worker process would wrap it into its traceback.
    """

    def __init__(self, dataset: AnnotatedImages) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> EvaluationSample | Exception | None:
        try:
            return None if index == NOTHING else self.dataset[index]
        except (ValueError, FileNotFoundError) as error:
            return error


def _as_it_is(sample: Any) -> Any:
    return sample
