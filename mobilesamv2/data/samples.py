"""Training samples: what a task reads from an image and its objects, as tensors of one shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from mobilesamv2.data.annotated_images import AnnotatedImages
from mobilesamv2.masks import areas, boxes_from_rles, decode
from mobilesamv2.transforms import PIXEL_MEAN, PIXEL_STD, ModelFrame, to_model_input

Sample = dict[str, Any]


class EncoderSamples(Dataset[Sample]):
    """Images as the image encoder reads them.

    Args:
        images: any data set of RGB images with their objects.
        image_size: S, pixels.
    """

    def __init__(self, images: AnnotatedImages, image_size: int) -> None:
        self.images = images
        self.image_size = image_size
        self.choose_from = range(len(self))
        """Images that a drawn sample may be put together from; ``TrainingData`` leaves out those of validation."""

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, index: int, rng: np.random.Generator) -> Sample:
        """A sample to train on; what is left to chance is drawn from ``rng``. Here nothing is."""
        return self[index]

    def collate(self, samples: list[Sample]) -> Sample:
        """Samples to a batch."""
        return default_collate(samples)

    def __getitem__(self, index: int) -> Sample:
        """``pixels`` (3, S, S), ``image_id``, and ``resized``, the image's height and width among them."""
        image = self.images.load_image(index)  # its objects are not read
        resized = torch.tensor(ModelFrame(image.shape[:2], self.image_size).resized)
        return {"pixels": _pixels(image, self.image_size), "image_id": self.images.image_ids[index], "resized": resized}


class PromptSamples(EncoderSamples):
    """Images with the masks of some of their objects, and a box and a point for each.

    Which objects, and where the point lies, is left to chance, but for validation, where each epoch has the same.

    Args:
        images: any data set of RGB images with their objects.
        image_size: S, pixels.
        prompts_per_image: K objects, drawn with replacement where there are fewer.
        box_jitter: standard deviation of the noise on a box's edges, as a share of its sides.
        by_size: draw as many objects of each size as of any other, by octaves of their side, where an image has them;
            else small ones, which are many, are most of what is learnt.
    """

    def __init__(
        self,
        images: AnnotatedImages,
        image_size: int,
        prompts_per_image: int = 6,
        box_jitter: float = 0.1,
        by_size: bool = False,
    ) -> None:
        super().__init__(images, image_size)
        self.prompts_per_image = prompts_per_image
        self.box_jitter = box_jitter
        self.by_size = by_size

    def __getitem__(self, index: int) -> Sample:
        """``draw`` with the same prompts each time."""
        return self.draw(index, np.random.default_rng(index))

    def draw(self, index: int, rng: np.random.Generator) -> Sample:
        """The encoder's sample, and in pixels of the model's input: ``boxes_xyxy``, ``points``, ``masks``, ``weights``.

        Returns:
            Beside the encoder's: boxes (K, 4), points (K, 1, 2), masks (K, S/4, S/4) of 0 and 1, and
            weights (K,) that are 0 for an image without objects.
        """
        image, truth = self.images[index]
        frame = ModelFrame(truth.size, self.image_size)
        k, side = self.prompts_per_image, self.image_size
        sample = {
            "pixels": _pixels(image, side),
            "image_id": truth.image_id,
            "resized": torch.tensor(frame.resized),
            "boxes_xyxy": torch.zeros(k, 4),
            "points": torch.zeros(k, 1, 2),
            "masks": torch.zeros(k, side // 4, side // 4),
            "weights": torch.zeros(k),
        }
        sizes = areas(truth.rles).numpy()
        rles = [rle for rle, area in zip(truth.rles, sizes.tolist(), strict=True) if area]
        count = len(rles)
        if count == 0:
            return sample
        if self.by_size:
            chosen = rng.choice(count, k, replace=count < k, p=_evenly(sizes[sizes > 0]))
        else:
            chosen = rng.permutation(count)[:k] if count >= k else rng.integers(count, size=k)
        for slot, i in enumerate(chosen.tolist()):
            mask = decode(rles[i])
            y, x = np.nonzero(mask)
            spot = int(rng.integers(len(x)))
            point = torch.tensor([[float(x[spot]), float(y[spot])]])
            box = boxes_from_rles([rles[i]])
            noise = torch.from_numpy(rng.normal(0, self.box_jitter, 4)).float().clamp(-0.25, 0.25)
            box = box + noise * (box[:, 2:] - box[:, :2]).repeat(1, 2)
            sample["points"][slot] = frame.coords_to_model(point)
            sample["boxes_xyxy"][slot] = frame.boxes_to_model(box)[0]
            sample["masks"][slot] = _low_res(mask, frame)
            sample["weights"][slot] = 1.0
        return sample


def _evenly(sizes: np.ndarray) -> np.ndarray:
    """Chances (N,) of objects of these areas that make every octave of their side as likely as any other."""
    _, octave, count = np.unique((np.log2(sizes) / 2).astype(int), return_inverse=True, return_counts=True)
    return 1 / count[octave] / len(count)


def _pixels(image: np.ndarray, side: int) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return to_model_input(image, side, mean, std)[0]


def _low_res(mask: np.ndarray, frame: ModelFrame) -> Tensor:
    """(S/4, S/4) of 0 and 1: where half or more of the cell is covered."""
    height, width = frame.resized
    resized = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    full = F.pad(torch.from_numpy(np.array(resized)).float(), (0, frame.side - width, 0, frame.side - height))
    return (F.avg_pool2d(full[None], 4)[0] >= 127.5).float()
