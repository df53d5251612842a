"""Training samples: an image and its objects as tensors of one shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate
from typing_extensions import override

from mobilesamv2.data.base import ImageDataset
from mobilesamv2.data.embeddings import fingerprint_stride
from mobilesamv2.data.pixels import PixelCache
from mobilesamv2.data.tensor_shards import ShardError
from mobilesamv2.masks import areas, decode, tight_boxes
from mobilesamv2.ranges import Count, NonNegativeInt, Share
from mobilesamv2.structures import GroundTruth
from mobilesamv2.transforms import PIXEL_MEAN, PIXEL_STD, ModelFrame, Resizing, to_model_input

Sample = dict[str, Any]


class EncoderSamples(Dataset[Sample]):
    """Images as input of the image encoder, before normalisation, which ``to_model_inputs`` does on the device.

    Args:
        images: any data set of RGB images with their objects.
        image_size: S, pixels.
        resizing: the model's.
        student_size: input of a student whose teacher has ``image_size``, pixels; None for one of the same input.
    """

    reads_objects = False
    """Whether samples have the images' objects, without which there is nothing to learn."""

    def __init__(
        self,
        images: ImageDataset,
        image_size: int,
        resizing: Resizing = Resizing.LONGEST_SIDE,
        student_size: Count | None = None,
    ) -> None:
        self.student_size = student_size
        self.pixel_caches: dict[int, PixelCache] = {}
        """Pixels on disk, by the side of the input that they are for."""
        self.images = images
        self.image_size = image_size
        self.resizing = resizing
        self.choose_from = range(len(self))
        """Indices of images that a drawn sample may be composed of; ``TrainingData`` excludes those of validation."""

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, index: int, rng: np.random.Generator) -> Sample:
        """Return a training sample, with its randomness drawn from ``rng``; here there is none."""
        return self[index]

    def collate(self, samples: list[Sample]) -> Sample:
        """Collate samples to a batch."""
        return default_collate(samples)

    def keep_pixels(self, folder: Path, pixel_format: str) -> None:
        """Read pixels from a folder, and have what it lacks written to it by ``TrainingData``.

        Args:
            folder: of the caches, one for each side of an input.
            pixel_format: one of ``FORMATS``.

        Raises:
            ValueError: if the model's input has no bytes to keep, there is no such format, or a cache has other pixels.
        """
        if not self.resizing.keep_aspect_ratio:
            raise ValueError(
                "cache.pixels must be off for SAM 2 and EfficientSAM, whose input is resized to floats, not bytes."
            )
        sides = [self.image_size] if self.student_size is None else [self.image_size, self.student_size]
        self.pixel_caches = {side: PixelCache(folder / f"pixels_{side}", side, pixel_format) for side in sides}

    def __getitem__(self, index: int) -> Sample:
        """Return ``rgb`` (S, S, 3) uint8, ``image_id``, and ``resized``, height and width of the image without padding.

        With a student of another input, ``student_rgb`` and ``student_resized`` are its own. A model of square images,
        whose input is no bytes, has ``pixels`` (3, S, S) float32, normalised, and ``student_pixels`` instead. What the
        caches of pixels lack is under ``to_store``, which no batch contains.
        """
        return self._encoder_sample(index, lambda: self.images.load_image(index))[0]  # without its objects

    def _encoder_sample(self, index: int, load: Callable[[], np.ndarray]) -> tuple[Sample, tuple[int, int]]:
        """Return the sample, and the (H, W) of the image, which is loaded unless its pixels are kept."""
        sample: Sample = {"image_id": self.images.image_ids[index]}
        sides = {"": self.image_size} | ({} if self.student_size is None else {"student_": self.student_size})
        load, size = cache(load), (0, 0)
        for name, side in sides.items():
            if self.resizing.keep_aspect_ratio:
                rgb, size = self._resized(index, side, load, sample)
                padded = torch.zeros(side, side, 3, dtype=torch.uint8)
                padded.numpy()[: rgb.shape[0], : rgb.shape[1]] = rgb
                sample |= {f"{name}rgb": padded, f"{name}resized": torch.tensor(rgb.shape[:2])}
            else:
                size = (load().shape[0], load().shape[1])
                sample[f"{name}pixels"] = normalized_pixels(load(), side, self.resizing)
                sample["resized"] = torch.tensor(self._frame(size).resized)
        return sample, size

    def _resized(
        self, index: int, side: int, load: Callable[[], np.ndarray], sample: Sample
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Return an image, RGB uint8, resized for an input, and its (H, W); note in the sample what is to be stored."""
        pixels, image_id = self.pixel_caches.get(side), sample["image_id"]
        if pixels is not None and image_id in pixels:
            return pixels.read(image_id, self.images.pixel_signature(index))
        size = (load().shape[0], load().shape[1])
        rgb = ModelFrame(size, side).resize(load())
        if pixels is not None:
            encoded = pixels.encode(image_id, self.images.pixel_signature(index), rgb, size)
            sample.setdefault("to_store", []).append((side, encoded))
        return rgb, size

    def _annotated_sample(self, index: int) -> tuple[Sample, GroundTruth]:
        """Return the encoder's sample of an image, and its objects."""
        if not self._has_pixels(index):
            image, truth = self.images[index]  # which refuses an image that has not the annotated size
            return self._encoder_sample(index, lambda: image)[0], truth
        truth = self.images.ground_truth(index)
        sample, size = self._encoder_sample(index, lambda: self.images.load_image(index))
        if size != truth.size:
            self.images[index]  # a broken image, which another takes the place of
            raise ShardError(
                f"The pixels of image {sample['image_id']} are kept with the (height, width) {size} and annotated with "
                f"{truth.size}, perhaps turned since: delete pixels_* in cache.folder, or set cache.folder=FOLDER anew."
            )
        return sample, truth

    def _has_pixels(self, index: int) -> bool:
        """Return whether an image need not be loaded."""
        caches, image_id = self.pixel_caches.values(), self.images.image_ids[index]
        return bool(caches) and all(image_id in pixels for pixels in caches)

    def _frame(self, size: tuple[int, int]) -> ModelFrame:
        return ModelFrame(size, self.image_size, self.resizing)


class PromptSamples(EncoderSamples):
    """Images with the masks of some of their objects, and a box and points for each.

    The objects and the points are random in training; in validation they are the same in every epoch.

    Args:
        images: any data set of RGB images with their objects.
        image_size: S, pixels.
        prompts_per_image: K objects, drawn with replacement where there are fewer.
        box_jitter: standard deviation of the noise on a box's edges, as a share of its sides.
        size_balanced: draw objects of each size with equal probability, by octaves of their side, where an image has
            them; otherwise small objects, which are the most frequent, dominate training.
        mask_stride: pixels of the model's input per cell of a mask: 4 as in the low-res logits, or 2 or 1.
        points: points in each object beside the first one.
        resizing: the model's.
        student_size: as in ``EncoderSamples``.

    Raises:
        ValueError: if ``mask_stride`` is not 1, 2 or 4.
    """

    reads_objects = True

    def __init__(
        self,
        images: ImageDataset,
        image_size: int,
        prompts_per_image: Count = 6,
        box_jitter: Share = 0.1,
        size_balanced: bool = False,
        mask_stride: Literal[1, 2, 4] = 4,
        points: NonNegativeInt = 0,
        resizing: Resizing = Resizing.LONGEST_SIDE,
        student_size: Count | None = None,
    ) -> None:
        super().__init__(images, image_size, resizing, student_size)
        if mask_stride not in (1, 2, 4):
            raise ValueError(f"mask_stride must be 1, 2 or 4, got {mask_stride}.")
        self.mask_stride = mask_stride
        self.points = points
        self.prompts_per_image = prompts_per_image
        self.box_jitter = box_jitter
        self.size_balanced = size_balanced

    def __getitem__(self, index: int) -> Sample:
        """Return ``draw`` with the same prompts on every call."""
        return self.draw(index, np.random.default_rng(index))

    @override
    def draw(self, index: int, rng: np.random.Generator) -> Sample:
        """Return the encoder's sample with prompts and masks of K objects.

        Returns:
            Beside the encoder's keys, in pixels of the model's input: ``boxes_xyxy`` (K, 4), ``points``
            (K, 1 + points, 2), ``masks`` (K, S/mask_stride, S/mask_stride), the share of each cell that the object
            covers, 0 to 1, and ``weights`` (K,), which are 0 for an image without objects.
        """
        sample, truth = self._annotated_sample(index)
        frame = self._frame(truth.size)
        k, side = self.prompts_per_image, self.image_size
        sample |= {
            "boxes_xyxy": torch.zeros(k, 4),
            "points": torch.zeros(k, 1 + self.points, 2),
            "masks": torch.zeros(k, side // self.mask_stride, side // self.mask_stride),
            "weights": torch.zeros(k),
        }
        sizes = areas(truth.rles).numpy()
        rles = [rle for rle, area in zip(truth.rles, sizes.tolist(), strict=True) if area]
        count = len(rles)
        if count == 0:
            return sample
        if self.size_balanced:
            chosen = rng.choice(count, k, replace=count < k, p=_size_balanced_probabilities(sizes[sizes > 0]))
        else:
            chosen = rng.permutation(count)[:k] if count >= k else rng.integers(count, size=k)
        for slot, i in enumerate(chosen.tolist()):
            mask = decode(rles[i])
            y, x = np.nonzero(mask)
            picks = rng.integers(len(x), size=1 + self.points)
            points = torch.from_numpy(np.stack([x[picks], y[picks]], axis=1)).float()
            box = tight_boxes([rles[i]]).float()
            noise = torch.from_numpy(rng.normal(0, self.box_jitter, 4)).float().clamp(-0.25, 0.25)
            box = box + noise * (box[:, 2:] - box[:, :2]).repeat(1, 2)
            sample["points"][slot] = frame.coords_to_model(points)
            sample["boxes_xyxy"][slot] = frame.boxes_to_model(box)[0]
            sample["masks"][slot] = _coverage(mask, frame, self.mask_stride)
            sample["weights"][slot] = 1.0
        return sample


def _size_balanced_probabilities(sizes: np.ndarray) -> np.ndarray:
    """Return probabilities (N,) of objects of these areas that make all octaves of their side equally likely."""
    _, octave, count = np.unique((np.log2(sizes) / 2).astype(int), return_inverse=True, return_counts=True)
    return 1 / count[octave] / len(count)


def to_model_inputs(batch: Sample) -> Sample:
    """Return a batch whose bytes ``rgb`` (B, S, S, 3) became the encoder's input ``pixels`` (B, 3, S, S) float32.

    So do ``student_rgb``. The values are those of ``normalized_pixels``, to the bit, on every device: a difference and
    a quotient of float32 are rounded correctly by all of them.
    """
    for name in ("", "student_"):
        if f"{name}rgb" in batch:
            batch[f"{name}pixels"] = _normalized(batch.pop(f"{name}rgb"), batch[f"{name}resized"])
    batch.pop("student_resized", None)
    return batch


def strided_pixels(batch: Sample) -> Tensor:
    """Return some of a batch's pixels, (B, 3, s, s) float32, those that its images' fingerprints are made of."""
    if "pixels" in batch:
        return batch["pixels"]
    stride = fingerprint_stride(batch["rgb"].shape[1])
    return _normalized(batch["rgb"][:, ::stride, ::stride], (batch["resized"] + stride - 1) // stride)


def _normalized(rgb: Tensor, resized: Tensor) -> Tensor:
    """Return bytes (B, S, S, 3) as (B, 3, S, S) float32, normalised, 0 beyond each image's (B, 2) height and width."""
    mean, std = (torch.tensor(values, device=rgb.device).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    pixels = torch.empty(rgb.permute(0, 3, 1, 2).shape, device=rgb.device)
    torch.sub(rgb.permute(0, 3, 1, 2), mean, out=pixels).div_(std)
    inside = torch.arange(rgb.shape[1], device=rgb.device) < resized[..., None]  # (B, 2, S)
    return pixels.masked_fill_(~(inside[:, 0, :, None] & inside[:, 1, None, :])[:, None], 0)


def normalized_pixels(image: np.ndarray, side: int, resizing: Resizing = Resizing.LONGEST_SIDE) -> Tensor:
    """Return an image, RGB uint8 (H, W, 3), as input of the encoder, (3, S, S) float32: resized, normalized, padded.

    Args:
        image: RGB uint8 (H, W, 3).
        side: S, pixels.
        resizing: the model's.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return to_model_input(image, side, mean, std, resizing)[0]


def _coverage(mask: np.ndarray, frame: ModelFrame, stride: int) -> Tensor:
    """Return the share of each cell that the mask covers, (S/stride, S/stride), 0 to 1."""
    height, width = frame.resized
    resized = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    full = F.pad(torch.from_numpy(np.array(resized)).float(), (0, frame.side - width, 0, frame.side - height))
    return F.avg_pool2d(full[None], stride)[0] / 255
