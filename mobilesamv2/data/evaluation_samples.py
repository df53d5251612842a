"""What an evaluation reads: images with their objects, or the error of one that can't be read."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from mobilesamv2.data.base import ImageDataset, hash_of_pixels
from mobilesamv2.structures import GroundTruth

EvaluationSample = tuple[np.ndarray, GroundTruth]
"""One image, RGB uint8 (H, W, 3), and its objects."""


class HashedSample(NamedTuple):
    """A sample, and the ``content_hash`` of its image."""

    sample: EvaluationSample
    content_hash: str


NO_SAMPLE = -1
"""Index of the item of a ``PaddedDataset`` that is None."""


class PaddedDataset(Dataset[HashedSample | Exception | None]):
    """Data set with one more item, None, at the index ``NO_SAMPLE``.

    For an image that can't be read the item is the error itself, since a worker process would wrap it in a traceback.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> HashedSample | Exception | None:
        if index == NO_SAMPLE:
            return None
        try:
            if type(self.dataset).content_hash is ImageDataset.content_hash:  # which would decode the image again
                sample = self.dataset[index]
                return HashedSample(sample, hash_of_pixels(sample[0]))
            # hashed first: of a file that is replaced in between, the hash is the old one, and the next run notices
            content_hash = self.dataset.content_hash(index)
            return HashedSample(self.dataset[index], content_hash)
        except (ValueError, OSError) as error:
            return error


def identity_collate(sample: Any) -> Any:
    """Return a sample, or a list of samples, unchanged: a ``collate_fn`` that makes no tensors."""
    return sample
