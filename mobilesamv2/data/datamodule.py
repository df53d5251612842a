"""Data modules for training and evaluation."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from typing_extensions import override

from mobilesamv2.data.base import ImageDataset
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.evaluation_samples import NO_SAMPLE, HashedSample, PaddedDataset, identity_collate
from mobilesamv2.data.loader_failures import check_socket_folder
from mobilesamv2.data.samples import EncoderSamples, Sample, strided_pixels, to_model_inputs
from mobilesamv2.data.tensor_shards import ShardError

logger = logging.getLogger(__name__)


def leave_signals_to_main(worker: int) -> None:
    """Have a loader's worker ignore the signals that end a job, which Slurm and a terminal send to all its processes.

    The main process saves first, and then ends its workers.
    """
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class EvaluationData(pl.LightningDataModule):
    """Images with their objects, in lists, prefetched by workers.

    Several processes divide the images among themselves without repetition; their shares may differ by one image. A
    process without a share receives None once, so that all processes run the same hooks.

    Args:
        dataset: the images.
        num_workers: workers that decode images, for each process that evaluates.
        done: ids of images to skip.
        batch_size: images in a list.

    Raises:
        ValueError: if ``batch_size`` is below 1.
    """

    def __init__(
        self, dataset: ImageDataset, num_workers: int = 1, done: Collection[int] = (), batch_size: int = 1
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.batch_size = batch_size
        self.dataset: Dataset[Any] = PaddedDataset(dataset)
        self.num_workers = num_workers
        skipped = set(done)
        self.remaining = [i for i, image_id in enumerate(dataset.image_ids) if image_id not in skipped]

    @override
    def test_dataloader(self) -> DataLoader[list[HashedSample | Exception | None]]:
        rank, world_size = _rank(self.trainer)
        share = self.remaining[rank::world_size] or [NO_SAMPLE]
        return DataLoader(
            self.dataset,
            self.batch_size,
            sampler=share,
            collate_fn=identity_collate,
            num_workers=self.num_workers,
            worker_init_fn=leave_signals_to_main,
        )

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Keep images on the CPU until SegAny has resized them."""
        return batch


class TrainingData(pl.LightningDataModule):
    """Batches of training samples, and some images at the end of the data set that only validation reads.

    Order and randomness depend only on the seed, the epoch and the sample, and the position in an epoch on the number
    of optimizer steps: a resumed run sees the same samples as one that was not stopped. Several processes take turns
    batch by batch, like one process that accumulates their gradients.

    Args:
        samples: samples of the task.
        batch_size: samples in a batch of one process.
        validation_images: images at the end of the data set that are kept from training.
        num_workers: workers that prefetch samples.
        seed: seed of the order and of the augmentation.
        max_broken: share of the images that may turn out to be broken; each is logged and replaced by another image,
            drawn at random. More stop the run.
        embeddings: cache of the teacher's embeddings; a batch whose images are all cached when the epoch begins
            contains them as ``teacher_embedding``.
        max_steps: optimizer steps after which the run ends, if its epochs do not end before; -1 for no limit.
        part: number of this job and number of jobs, among which the images that are predicted are divided.

    Raises:
        ValueError: if less than a batch is left to train on, or workers have no folder for their sockets.
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
        max_steps: int = -1,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__()
        last = len(samples) - validation_images
        if last < batch_size or validation_images < 0:
            raise ValueError(
                f"At least batch_size={batch_size} images must be left to train on, got {last} of {len(samples)} with "
                f"validation_images={validation_images}; lower validation_images or batch_size, or add data."
            )
        check_socket_folder(num_workers)
        samples.choose_from = range(last)
        self.samples = SkipBrokenDataset(samples, seed, last)
        self.broken: set[str] = set()
        """Errors of the images that were replaced by others."""
        self.max_broken = max_broken
        self.batches = ShuffledBatches(self, last, batch_size, seed)
        self.validation = range(last, len(samples))
        self.embeddings = embeddings
        self.num_workers = num_workers
        self.max_steps = max_steps
        self.part = part
        self.collate = partial(_collate, samples.collate, embeddings)

    @property
    def images_per_step(self) -> int:
        """Return the number of images in an optimizer step, over all processes."""
        accumulated = self.trainer.accumulate_grad_batches if self.trainer else 1
        return self.batches.batch_size * _rank(self.trainer)[1] * accumulated

    @property
    def total_steps(self) -> int | None:
        """Return the number of optimizer steps of the run; None if it has no end."""
        assert self.trainer is not None
        assert self.trainer.max_epochs is not None
        ends = (self.max_steps, self.trainer.max_steps, self.trainer.max_epochs * self.batches.steps_per_epoch)
        return min((steps for steps in ends if steps >= 0), default=None)

    @property
    def _position_settings(self) -> dict[str, Any]:
        """Return the settings that the position in an epoch depends on."""
        return {
            "images": self.batches.num_samples,
            "seed": self.batches.seed,
            "images of a batch": self.batches.batch_size,
            "images of a step": self.images_per_step,
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the number of finished optimizer steps, and the settings that the position in an epoch depends on."""
        return self._position_settings | {"step": self.trainer.global_step if self.trainer else 0}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume at the step where a run stopped.

        Raises:
            ValueError: if the run had other settings.
        """
        # Lightning requests the first batches, which workers prefetch, before it restores its own count of steps
        self.batches.first_step = int(state_dict.get("step", 0))
        differences = [
            f"{key} {state_dict.get(key)} then, {value} now"
            for key, value in self._position_settings.items()
            if value != state_dict.get(key)
        ]
        if differences:
            raise ValueError(
                f"The run can't be resumed with other settings: {'; '.join(differences)}. resume=null starts over."
            )

    @override
    def train_dataloader(self) -> DataLoader[Sample]:
        """Return this process's batches, without a last round that is too short for a full batch on every process."""
        return ResumableLoader(self.samples, batch_sampler=self.batches, **self._loader_args)

    @override
    def val_dataloader(self) -> DataLoader[Sample]:
        """Return this process's share of the validation images, in order; all, if there are fewer than processes."""
        rank, world_size = _rank(self.trainer)
        share = self.validation[rank::world_size] if len(self.validation) >= world_size else self.validation
        keys = [(VALIDATION, index) for index in share]
        return DataLoader(self.samples, batch_size=self.batches.batch_size, sampler=keys, **self._loader_args)

    @override
    def predict_dataloader(self) -> DataLoader[Sample]:
        """Return this process's share of all images, in order, without those of which all that is to be kept is.

        Shares are of all images, so that they are the same whatever is cached when a process begins.
        """
        rank, world_size = _rank(self.trainer)
        part, parts = self.part
        ids = self.samples.samples.images.image_ids
        share = range(part * world_size + rank, len(ids), parts * world_size)
        caches = [] if self.embeddings is None else [self.embeddings, *self.samples.samples.pixel_caches.values()]
        keys = [(ALL, i) for i in share if not caches or any(ids[i] not in cache for cache in caches)]
        return DataLoader(self.samples, batch_size=self.batches.batch_size, sampler=keys, **self._loader_args)

    @property
    def _loader_args(self) -> dict[str, Any]:
        """Return the arguments that all loaders share."""
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "num_workers": self.num_workers,
            "collate_fn": self.collate,
            "pin_memory": on_gpu,
            "worker_init_fn": leave_signals_to_main,
        }

    @override
    def on_before_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Write the pixels that are to be kept; remove the errors of broken images from a batch, and log each once.

        Raises:
            ValueError: if there are more broken images than ``max_broken`` allows.
        """
        for side, encoded in batch.pop("to_store", ()):
            self.samples.samples.pixel_caches[side].write(encoded)
        errors = (error for lines in batch.pop("broken", ()) for error in lines.split("\n") if error)
        new = set(errors) - self.broken
        self.broken |= new
        for error in sorted(new):
            logger.warning("Skipped (%d so far): %s", len(self.broken), error)
        allowed = self.max_broken * len(self.samples)
        if new and len(self.broken) > allowed:
            raise ValueError(
                f"{len(self.broken)} of {len(self.samples)} images are broken, and max_broken={self.max_broken} allows "
                f"{int(allowed)}; the last one: {sorted(new)[-1]}"
            )
        return batch

    @override
    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Normalise images, which come as bytes."""
        return to_model_inputs(batch)


Key = tuple[int, int]
"""Epoch and index of a sample."""

VALIDATION, ALL = -1, -2
"""Instead of an epoch, without augmentation; a broken image is replaced by one of validation, or by any."""

ATTEMPTS = 20
"""Images to try in a row, the broken one included."""


class ShuffledBatches(Sampler[list[Key]]):
    """Batches of one process, in a different order in each epoch, from the current step on.

    torchdata's StatefulDataLoader is not used: an order fixed by (seed, epoch, index) is simpler and bit-exact.

    Args:
        data: data module whose trainer has the step, the rank and the number of processes.
        num_samples: number of samples to draw from.
        batch_size: samples in a batch of one process.
        seed: seed of the order.
    """

    def __init__(self, data: pl.LightningDataModule, num_samples: int, batch_size: int, seed: int) -> None:
        self.data = data
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.first_step = 0
        """Optimizer steps that were finished before this run resumed."""

    def __len__(self) -> int:
        """Return the number of batches in the data, which ``trainer.limit_train_batches`` may cut an epoch to."""
        return self.num_samples // (self.batch_size * _rank(self.data.trainer)[1])

    @property
    def batches_per_epoch(self) -> int:
        """Return the number of batches that an epoch trains on.

        Raises:
            ValueError: if ``trainer.limit_train_batches`` leaves none.
        """
        limit = 1.0 if self.data.trainer is None else self.data.trainer.limit_train_batches
        batches = min(limit, len(self)) if isinstance(limit, int) else int(limit * len(self))
        if batches < 1:
            raise ValueError(
                f"trainer.limit_train_batches must leave at least one of the {len(self)} batches, got {limit}."
            )
        return batches

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps of an epoch."""
        accumulated = 1 if self.data.trainer is None else self.data.trainer.accumulate_grad_batches
        return math.ceil(self.batches_per_epoch / accumulated)

    def __iter__(self) -> Iterator[list[Key]]:
        rank, world_size = _rank(self.data.trainer)
        epoch, first = self._position()
        order = np.random.default_rng((self.seed, epoch)).permutation(self.num_samples).tolist()
        for batch in range(first, self.batches_per_epoch):
            begin = (batch * world_size + rank) * self.batch_size
            yield [(epoch, index) for index in order[begin : begin + self.batch_size]]

    def _position(self) -> tuple[int, int]:
        """Return the epoch and the batch that the next optimizer step begins with."""
        trainer = self.data.trainer
        if trainer is None:
            return 0, 0
        done = max(trainer.global_step, self.first_step)
        epoch, step = divmod(done, self.steps_per_epoch)
        return epoch, step * trainer.accumulate_grad_batches


class ResumableLoader(DataLoader[Sample]):
    """Loader that Lightning recognises as resumable; ``ShuffledBatches`` finds the position by itself."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the state, which is empty."""


class SkipBrokenDataset(Dataset[Sample]):
    """Samples by epoch and index, each with its own random generator; a broken image is replaced by another one.

    The key ``broken`` of a sample contains the errors of the images it replaces, one per line; it is empty for the
    requested image itself.
    """

    def __init__(self, samples: EncoderSamples, seed: int, first_validation_index: int) -> None:
        self.samples = samples
        self.seed = seed
        self.first_validation_index = first_validation_index

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch + 2, index))
        split, end = self.first_validation_index, len(self)
        low, high = {VALIDATION: (split, end), ALL: (0, end)}.get(epoch, (0, split))
        broken: list[str] = []
        for _ in range(ATTEMPTS):
            try:
                sample = self.samples[index] if epoch < 0 else self.samples.draw(index, rng)
                return sample | {"broken": "\n".join(broken)}
            except ShardError:  # of what is kept on disk, not of the image
                raise
            except (ValueError, FileNotFoundError) as error:
                broken.append(str(error))
                index = int(rng.integers(low, high))
        raise ValueError(f"{ATTEMPTS} images in a row are broken. The first: {broken[0]}")


def _collate(
    collate: Callable[[list[Sample]], Sample], embeddings: EmbeddingCache | None, samples: list[Sample]
) -> Sample:
    """Collate a batch, with the teacher's embeddings (B, C, S/16, S/16) float16 if all of them are cached."""
    to_store = [pixels for sample in samples for pixels in sample.pop("to_store", ())]
    batch = collate(samples)
    if to_store:
        batch["to_store"] = to_store
    if embeddings is not None:
        image_ids = batch["image_id"].tolist()
        if all(image_id in embeddings for image_id in image_ids):
            batch["teacher_embedding"] = embeddings.read(image_ids, strided_pixels(batch))
    return batch


def _rank(trainer: pl.Trainer | None) -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
