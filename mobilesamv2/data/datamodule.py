"""What a Trainer is fed with."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mobilesamv2.data.annotated_images import AnnotatedImages
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.samples import EncoderSamples, Sample
from mobilesamv2.structures import GroundTruth

logger = logging.getLogger(__name__)

EvaluationSample = tuple[np.ndarray, GroundTruth]
"""One image, RGB uint8 (H, W, 3), and its objects."""

NOTHING = -1


class EvaluationData(pl.LightningDataModule):
    """Images with their objects, in lists, decoded ahead by workers.

    Several processes share the images out without repeating one; their shares may differ by an image. A process without
    a share is given None once, so that all processes pass through the same hooks.

    Args:
        dataset: the images.
        num_workers: processes that decode ahead, for each process that evaluates.
        done: ids of images to leave out.
        batch_size: images in a list.
    """

    def __init__(
        self, dataset: AnnotatedImages, num_workers: int = 1, done: Collection[int] = (), batch_size: int = 1
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is 1 or more, and is {batch_size}.")
        self.batch_size = batch_size
        self.dataset: Dataset[Any] = _OrNothing(dataset)
        self.num_workers = num_workers
        left_out = set(done)
        self.remaining = [i for i, image_id in enumerate(dataset.image_ids) if image_id not in left_out]

    def test_dataloader(self) -> DataLoader[list[EvaluationSample | Exception | None]]:
        """This process's share."""
        rank, world_size = _rank(self.trainer)
        share = self.remaining[rank::world_size] or [NOTHING]
        return DataLoader(
            self.dataset, self.batch_size, sampler=share, collate_fn=_as_it_is, num_workers=self.num_workers
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Images stay on the CPU until SegAny has resized them."""
        return batch


class TrainingData(pl.LightningDataModule):
    """Batches of training samples, and some images at the end of the data set that only validation reads.

    Order and chance follow from the seed, the epoch and the sample alone, and the place in an epoch from the number of
    optimizer steps: a run that is resumed sees what it would have seen. Several processes take turns batch by batch, as
    one process does that accumulates their gradients.

    Args:
        samples: what the task trains on.
        batch_size: samples in a batch of one process.
        validation_images: how many at the end are kept from training.
        num_workers: processes that make samples ahead.
        seed: of the order and of what is left to chance.
        max_broken: share of the images that may turn out to be broken; each is named in the log, and another image,
            drawn at random, takes its place. More stop the run.
        embeddings: where the teacher's embeddings are; a batch whose images are all there at the beginning of the
            epoch has them as ``teacher_embedding``.

    Raises:
        ValueError: nothing would be left to train on.
    """

    def __init__(
        self,
        samples: EncoderSamples,
        batch_size: int,
        validation_images: int = 0,
        num_workers: int = 0,
        seed: int = 0,
        max_broken: float = 0.01,
        embeddings: EmbeddingCache | None = None,
    ) -> None:
        super().__init__()
        last = len(samples) - validation_images
        if last < batch_size or validation_images < 0:
            raise ValueError(
                f"{len(samples)} images, of which {validation_images} are kept for validation, make no batch of "
                f"{batch_size}; lower validation_images or batch_size, or add data."
            )
        samples.choose_from = range(last)
        self.samples = _Whole(samples, seed, last)
        self.broken: set[str] = set()
        """What was wrong with images that others took the place of."""
        self.max_broken = max_broken
        self.batches = ShuffledBatches(self, last, batch_size, seed)
        self.validation = range(last, len(samples))
        self.embeddings = embeddings
        self.num_workers = num_workers
        collate = samples.collate
        self.collate = collate if embeddings is None else partial(_with_embeddings, collate, embeddings)

    @property
    def images_per_step(self) -> int:
        """Images of all processes in an optimizer step."""
        accumulated = self.trainer.accumulate_grad_batches if self.trainer else 1
        return self.batches.batch_size * _rank(self.trainer)[1] * accumulated

    @property
    def _counted_by(self) -> dict[str, Any]:
        """What the place in an epoch is counted by."""
        return {
            "images": self.batches.num_samples,
            "seed": self.batches.seed,
            "images of a batch": self.batches.batch_size,
            "images of a step": self.images_per_step,
        }

    def state_dict(self) -> dict[str, Any]:
        """The optimizer steps that are done, and what the place in an epoch is counted by."""
        return self._counted_by | {"step": self.trainer.global_step if self.trainer else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Has a run go on where it stopped, if it goes on as it began.

        Raises:
            ValueError: it doesn't; the sentence says what differs.
        """
        # Lightning asks for the first batches, which workers fetch ahead, before it restores its own count of steps
        self.batches.first_step = int(state_dict.get("step", 0))
        now = self._counted_by
        differs = [
            f"{key} {state_dict.get(key)} then, {value} now"
            for key, value in now.items()
            if value != state_dict.get(key)
        ]
        if differs:
            raise ValueError(
                f"The run can't be resumed with other settings: {'; '.join(differs)}. resume=null starts anew."
            )

    def train_dataloader(self) -> DataLoader[Sample]:
        """This process's batches; a last round that not every process has a full batch of is left out."""
        return ResumableLoader(self.samples, batch_sampler=self.batches, **self._settings)

    def val_dataloader(self) -> DataLoader[Sample]:
        """This process's share, in order; all of it, where there are fewer images than processes."""
        rank, world_size = _rank(self.trainer)
        share = self.validation[rank::world_size] if len(self.validation) >= world_size else self.validation
        keys = [(VALIDATION, index) for index in share]
        return DataLoader(self.samples, batch_size=self.batches.batch_size, sampler=keys, **self._settings)

    def predict_dataloader(self) -> DataLoader[Sample]:
        """This process's share of all images, in order, without those that the teacher's embeddings are there of."""
        rank, world_size = _rank(self.trainer)
        ids = self.samples.samples.images.image_ids
        keys = [
            (ALL, i) for i, image_id in enumerate(ids) if self.embeddings is None or image_id not in self.embeddings
        ]
        return DataLoader(
            self.samples, batch_size=self.batches.batch_size, sampler=keys[rank::world_size], **self._settings
        )

    @property
    def _settings(self) -> dict[str, Any]:
        """Of every loader."""
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": self.num_workers, "collate_fn": self.collate, "pin_memory": on_gpu}

    def on_before_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Takes the notes on broken images out of a batch, and names each image once.

        Raises:
            ValueError: there are too many of them.
        """
        notes = (note for of_sample in batch.pop("broken", ()) for note in of_sample.split("\n") if note)
        new = set(notes) - self.broken
        self.broken |= new
        for note in sorted(new):
            logger.warning("Left out (%d so far): %s", len(self.broken), note)
        allowed = self.max_broken * len(self.samples)
        if new and len(self.broken) > allowed:
            raise ValueError(
                f"{len(self.broken)} of {len(self.samples)} images are broken, and max_broken={self.max_broken} allows "
                f"{int(allowed)}; the last one: {sorted(new)[-1]}"
            )
        return batch


Key = tuple[int, int]
"""Epoch and index of a sample."""

VALIDATION, ALL = -1, -2
"""In the place of an epoch: nothing is left to chance; a broken image is replaced by one of validation, or by any."""

ATTEMPTS = 20
"""Images that are tried in place of a broken one."""


class ShuffledBatches(Sampler[list[Key]]):
    """Batches of one process, in an order that is another one in each epoch, from the present step on.

    Args:
        data: whose trainer knows the step, the process and the number of processes.
        num_samples: to choose from.
        batch_size: of one process.
        seed: of the order.
    """

    def __init__(self, data: pl.LightningDataModule, num_samples: int, batch_size: int, seed: int) -> None:
        self.data = data
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.first_step = 0
        """Optimizer steps that were done before this run went on."""

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.num_samples // (self.batch_size * _rank(self.data.trainer)[1])

    def __iter__(self) -> Iterator[list[Key]]:
        rank, world_size = _rank(self.data.trainer)
        epoch, first = self._position()
        order = np.random.default_rng((self.seed, epoch)).permutation(self.num_samples).tolist()
        for batch in range(first, len(self)):
            begin = (batch * world_size + rank) * self.batch_size
            yield [(epoch, index) for index in order[begin : begin + self.batch_size]]

    def _position(self) -> tuple[int, int]:
        """Epoch and batch that the next optimizer step begins with."""
        trainer = self.data.trainer
        if trainer is None:
            return 0, 0
        accumulated = trainer.accumulate_grad_batches
        done = max(trainer.global_step, self.first_step)
        epoch, step = divmod(done, math.ceil(len(self) / accumulated))
        return epoch, step * accumulated


class ResumableLoader(DataLoader[Sample]):
    """A loader that Lightning knows to go on where a run stopped; its batches know the place by themselves."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing needs to be kept."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing was kept."""


class _Whole(Dataset[Sample]):
    """Samples by epoch and index, with a chance of their own for each; another one where an image is broken.

    ``broken`` says, a line each, what was wrong; it is empty for the sample that was asked for.
    """

    def __init__(self, samples: EncoderSamples, seed: int, first_of_validation: int) -> None:
        self.samples = samples
        self.seed = seed
        self.first_of_validation = first_of_validation

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch + 2, index))
        split, end = self.first_of_validation, len(self)
        low, high = {VALIDATION: (split, end), ALL: (0, end)}.get(epoch, (0, split))
        broken: list[str] = []
        for _ in range(ATTEMPTS):
            try:
                sample = self.samples[index] if epoch < 0 else self.samples.draw(index, rng)
                return sample | {"broken": "\n".join(broken)}
            except (ValueError, FileNotFoundError) as error:
                broken.append(str(error))
                index = int(rng.integers(low, high))
        raise ValueError(f"{ATTEMPTS} images in a row are broken. The first: {broken[0]}")


def _with_embeddings(
    collate: Callable[[list[Sample]], Sample], embeddings: EmbeddingCache, samples: list[Sample]
) -> Sample:
    """A batch, with the teacher's embeddings (B, C, S/16, S/16) float16 if they are all known."""
    batch = collate(samples)
    image_ids = batch["image_id"].tolist()
    if all(image_id in embeddings for image_id in image_ids):
        batch["teacher_embedding"] = embeddings.read(image_ids, batch["pixels"])
    return batch


def _rank(trainer: pl.Trainer | None) -> tuple[int, int]:
    """Number of this process, and of processes."""
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)


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
