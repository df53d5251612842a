"""Augmentation of images with boxes and masks: mosaic, scale, shift, flip and colour, all drawn from one generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

Size = tuple[int, int]
"""(H, W), pixels."""


class Placement(NamedTuple):
    """Where an image comes to lie in the model's input: ``xy = scale * xy_of_the_image + offset``, within a window.

    Attributes:
        scale: pixels of the input for one of the image.
        offset: (x, y), pixels of the input.
        window: x0, y0, x1, y1, whole pixels of the input; nothing of the image is seen outside.
    """

    scale: float
    offset: tuple[float, float]
    window: tuple[int, int, int, int]

    def source(self, size: Size) -> tuple[float, float, float, float]:
        """The window in pixels of the image, xyxy, as far as the image reaches."""
        bounds = (size[1], size[0]) * 2
        shifts = self.offset * 2
        values = ((w - shift) / self.scale for w, shift in zip(self.window, shifts, strict=True))
        x0, y0, x1, y1 = (min(max(v, 0.0), float(bound)) for v, bound in zip(values, bounds, strict=True))
        return x0, y0, x1, y1


@dataclass(frozen=True)
class Augmentation:
    """What is left to chance in a sample.

    Attributes:
        mosaic: probability that a sample is put together from four images around a random centre.
        scale: a sample is enlarged by a factor between 1 minus and 1 plus this.
        translate: and shifted by up to this share of the input's side, either way.
        flip: probability of a horizontal flip.
        hue: largest shift, as a share of the colour circle.
        saturation: is multiplied by 1 minus to 1 plus this.
        brightness: and so is the value of HSV.

    Raises:
        ValueError: a share or probability that is below 0 or above 1, or a scale of 1, which would leave no image.

    Source: the defaults are ultralytics'; what MobileSAMv2 trained with is unpublished.
    """

    mosaic: float = 1.0
    scale: float = 0.5
    translate: float = 0.1
    flip: float = 0.5
    hue: float = 0.015
    saturation: float = 0.7
    brightness: float = 0.4

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1 or (name == "scale" and value == 1):
                raise ValueError(f"samples.augmentation.{name} lies between 0 and 1, and is {value}.")

    def placements(self, sizes: list[Size], side: int, rng: np.random.Generator) -> list[Placement]:
        """Where one image, or the four of a mosaic, come to lie in an input of ``side`` x ``side`` pixels.

        A mosaic is a canvas of twice the side, whose centre is the middle of the input before scale and shift; the
        images touch at a point drawn from its inner half.
        """
        factor = 1 + rng.uniform(-self.scale, self.scale)
        shift = rng.uniform(-self.translate, self.translate, 2) * side + side / 2
        if len(sizes) == 1:
            whole = _fit(sizes[0], side)
            corners, spaces, middle = [(0.0, 0.0)], [(0.0, 0.0, float(side), float(side))], side / 2
            scales = [whole]
        else:
            x, y = rng.uniform(side / 2, 3 * side / 2, 2)
            scales = [_fit(size, side) for size in sizes]
            corners = [
                (x - (i % 2 == 0) * scale * width, y - (i < 2) * scale * height)
                for i, (scale, (height, width)) in enumerate(zip(scales, sizes, strict=True))
            ]
            end = 2.0 * side
            spaces = [(0.0, 0.0, x, y), (x, 0.0, end, y), (0.0, y, x, end), (x, y, end, end)]
            middle = float(side)
        found = []
        for size, scale, corner, space in zip(sizes, scales, corners, spaces, strict=True):
            offset = [factor * (c - middle) + s for c, s in zip(corner, shift, strict=True)]
            extent = [*offset, offset[0] + factor * scale * size[1], offset[1] + factor * scale * size[0]]
            free = [factor * (s - middle) + shift[i % 2] for i, s in enumerate(space)]
            low = [max(a, b, 0.0) for a, b in zip(extent[:2], free[:2], strict=True)]
            high = [min(a, b, float(side)) for a, b in zip(extent[2:], free[2:], strict=True)]
            window = tuple(int(v + 0.5) for v in (*low, *map(max, low, high)))
            found.append(Placement(factor * scale, (offset[0], offset[1]), window))  # pyright: ignore
        return found

    def recolour(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """RGB uint8 (H, W, 3) in other colours: hue shifted, saturation and value multiplied."""
        hue, saturation, brightness = rng.uniform(-1, 1, 3) * (self.hue, self.saturation, self.brightness)
        if not hue and not saturation and not brightness:
            return image
        levels = np.arange(256)
        tables = (
            (levels + round(hue * 256)) % 256,  # Pillow's circle has 256 steps
            np.clip(levels * (1 + saturation), 0, 255),
            np.clip(levels * (1 + brightness), 0, 255),
        )
        hsv = Image.fromarray(image).convert("HSV")
        return np.asarray(hsv.point([int(v) for table in tables for v in table]).convert("RGB"))


def upright(size: Size, side: int) -> Placement:
    """The image at the left and the top of the input, its longest side as long as the input's."""
    scale = _fit(size, side)
    height, width = (max(1, int(scale * length + 0.5)) for length in size)
    return Placement(scale, (0.0, 0.0), (0, 0, width, height))


def paint(canvas: np.ndarray, image: np.ndarray, placement: Placement) -> None:
    """Draws an image, RGB uint8 (H, W, 3), into the model's input (S, S, 3), antialiased bilinear."""
    x0, y0, x1, y1 = placement.window
    source = placement.source((image.shape[0], image.shape[1]))
    if x1 <= x0 or y1 <= y0 or source[2] <= source[0] or source[3] <= source[1]:
        return
    part = Image.fromarray(image).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=source)
    canvas[y0:y1, x0:x1] = np.asarray(part)


def _fit(size: Size, side: int) -> float:
    """Pixels of the input for one of an image whose longest side becomes the input's."""
    return side / max(size)
