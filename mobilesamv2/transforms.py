"""Transforms between image and model frame: the longest side becomes S, right and bottom are padded.

For SAM 2 and EfficientSAM the image fills the square of side S instead, whatever its aspect ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""ImageNet's, for values from 0 to 255; SAM and its students are trained with them."""


class Resizing(Enum):
    """How a family of models resizes images to its input, and its low-res masks to images.

    Attributes:
        keep_aspect_ratio: the longest side becomes S and the rest is padded; false lets the image fill the square.
        antialias: average the pixels where an image shrinks, as opposed to reading the four nearest ones.
        bicubic_masks: upscale low-res logits bicubically instead of bilinearly.

    Source: SAM's ResizeLongestSide; SAM 2's SAM2Transforms; EfficientSAM's ``preprocess`` and ``predict_masks``.
    """

    LONGEST_SIDE = (True, True, False)
    SQUARE = (False, True, False)
    EFFICIENT_SAM = (False, False, True)

    def __init__(self, keep_aspect_ratio: bool, antialias: bool, bicubic_masks: bool) -> None:
        self.keep_aspect_ratio, self.antialias, self.bicubic_masks = keep_aspect_ratio, antialias, bicubic_masks


def preprocessing(resizing: Resizing = Resizing.LONGEST_SIDE) -> str:
    """Describe the preprocessing. An embedding cache records it, and is stale when it changes."""
    if resizing.keep_aspect_ratio:
        return f"RGB, longest side, Pillow bilinear, mean {PIXEL_MEAN}, std {PIXEL_STD}, zeros at right and bottom"
    kind = "antialiased bilinear" if resizing.antialias else "bilinear without antialiasing"
    return f"RGB, square, torch {kind} in float32, mean {PIXEL_MEAN}, std {PIXEL_STD}"


def check_image(image: Any) -> np.ndarray:
    """Return the image if it is RGB uint8 (H, W, 3).

    Raises:
        ValueError: if it is anything else.
    """
    if not isinstance(image, np.ndarray):
        raise ValueError(f"An image must be a NumPy array, RGB uint8 (H, W, 3), got {type(image).__name__}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"An image must be RGB uint8 (H, W, 3) with at least one pixel, got {image.dtype} {image.shape}. "
            "mobilesamv2.data.images has to_rgb(array), which converts grey, RGBA, 16-bit and float images, and "
            "read_rgb(path), which reads files of all kinds."
        )
    return image


@dataclass(frozen=True)
class ModelFrame:
    """How one image lies in the model's square input.

    Attributes:
        original_size: (H, W) pixels.
        side: S, pixels.
        resizing: the model's.

    Deviation from SAM: a side that would round to 0 pixels becomes 1.
    """

    original_size: tuple[int, int]
    side: int
    resizing: Resizing = Resizing.LONGEST_SIDE

    @property
    def resized(self) -> tuple[int, int]:
        """Return the image's (height, width) inside the model's input, pixels, without padding."""
        if not self.resizing.keep_aspect_ratio:
            return self.side, self.side
        scale = self.side / max(self.original_size)
        height, width = (max(1, int(length * scale + 0.5)) for length in self.original_size)
        return height, width

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resize an RGB uint8 image (H, W, 3) to ``resized``, with Pillow's antialiased bilinear filter."""
        height, width = self.resized
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    def coords_to_model(self, coords: Tensor) -> Tensor:
        """Convert (..., 2) xy from pixels of the original image to float32 pixels of the model's input."""
        scale = [new / old for new, old in zip(self.resized[::-1], self.original_size[::-1], strict=True)]
        return (coords.double() * torch.tensor(scale, dtype=torch.float64, device=coords.device)).float()

    def boxes_to_model(self, boxes_xyxy: Tensor) -> Tensor:
        """Convert (N, 4) xyxy from pixels of the original image to float32 pixels of the model's input."""
        return self.coords_to_model(boxes_xyxy.reshape(-1, 2, 2)).reshape(-1, 4)

    def boxes_to_original(self, boxes_xyxy: Tensor) -> Tensor:
        """Convert (N, 4) xyxy from pixels of the model's input to float32 pixels of the original image."""
        scale = [old / new for new, old in zip(self.resized[::-1], self.original_size[::-1], strict=True)]
        return (boxes_xyxy.double() * torch.tensor(scale * 2, dtype=torch.float64, device=boxes_xyxy.device)).float()

    def logits_to_original(self, low_res_logits: Tensor) -> Tensor:
        """Upscale logits to the original image by SAM's two bilinear steps, to S x S and to H x W, or a square's one.

        Args:
            low_res_logits: (D, S/4, S/4).

        Returns:
            (D, W, H) float32, transposed: run lengths are counted in this order.
        """
        low_res = low_res_logits.float().transpose(1, 2)[None]
        if not self.resizing.keep_aspect_ratio:
            mode = "bicubic" if self.resizing.bicubic_masks else "bilinear"
            return F.interpolate(low_res, size=self.original_size[::-1], mode=mode, align_corners=False)[0]
        full = F.interpolate(low_res, size=(self.side, self.side), mode="bilinear", align_corners=False)
        height, width = self.resized
        size = self.original_size[::-1]
        return F.interpolate(full[..., :width, :height], size=size, mode="bilinear", align_corners=False)[0]


def to_model_input(
    image: np.ndarray, side: int, mean: Tensor, std: Tensor, resizing: Resizing = Resizing.LONGEST_SIDE
) -> Tensor:
    """Return an image as the encoder's input: resized, normalised, padded with zeros.

    SAM resizes bytes with Pillow and rounds; models of square images resize floats with torch and do not.

    Args:
        image: RGB uint8 (H, W, 3).
        side: S, pixels.
        mean: (3, 1, 1), for values from 0 to 255.
        std: (3, 1, 1), for values from 0 to 255.
        resizing: the model's.

    Returns:
        (1, 3, S, S) float32 on the device of ``mean``.
    """
    if not resizing.keep_aspect_ratio:
        floats = torch.from_numpy(image.copy()).to(mean.device).permute(2, 0, 1)[None].float()
        square = F.interpolate(
            floats, size=(side, side), mode="bilinear", align_corners=False, antialias=resizing.antialias
        )
        return (square - mean) / std
    frame = ModelFrame((image.shape[0], image.shape[1]), side)
    pixels = torch.from_numpy(frame.resize(image).copy()).to(mean.device).permute(2, 0, 1)  # (3, h, w)
    normalised = (pixels - mean) / std
    height, width = frame.resized
    return F.pad(normalised, (0, side - width, 0, side - height))[None]
