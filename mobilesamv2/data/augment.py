"""Augmentation of images with boxes and masks: mosaic, scale, shift, flip and colour, all drawn from one generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from PIL import Image

from mobilesamv2.ranges import Range, Share, check_ranges

Size = tuple[int, int]
"""(H, W), pixels."""


class Placement(NamedTuple):
    """Placement of an image in the model's input: ``input_xy = scale * image_xy + offset``, within a window.

    Attributes:
        scale: pixels of the input per pixel of the image.
        offset: (x, y), pixels of the input.
        window: x0, y0, x1, y1, integer pixels of the input; the image is not visible outside.
    """

    scale: float
    offset: tuple[float, float]
    window: tuple[int, int, int, int]

    def source(self, size: Size) -> tuple[float, float, float, float]:
        """Return the window in pixels of the image, xyxy, clipped to the image."""
        bounds = (size[1], size[0]) * 2
        shifts = self.offset * 2
        values = ((w - shift) / self.scale for w, shift in zip(self.window, shifts, strict=True))
        x0, y0, x1, y1 = (min(max(v, 0.0), float(bound)) for v, bound in zip(values, bounds, strict=True))
        return x0, y0, x1, y1


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of a sample.

    Attributes:
        mosaic: probability that a sample is composed of four images around a random centre.
        scale: a sample is scaled by a factor between 1 minus and 1 plus this.
        translate: largest shift in either direction, as a share of the input's side.
        flip: probability of a horizontal flip.
        hue: largest shift, as a share of the colour circle.
        saturation: saturation is multiplied by 1 minus to 1 plus this.
        brightness: the value of HSV is multiplied by 1 minus to 1 plus this.

    Raises:
        ValueError: if a share or probability is below 0 or above 1, or the scale is 1, which would leave no image.

    Source: the defaults are ultralytics'; MobileSAMv2's own settings are unpublished.
    """

    mosaic: Share = 1.0
    scale: Annotated[float, Range(0, below=1)] = 0.5
    translate: Share = 0.1
    flip: Share = 0.5
    hue: Share = 0.015
    saturation: Share = 0.7
    brightness: Share = 0.4

    def __post_init__(self) -> None:
        check_ranges(self, "samples.augmentation.")

    def placements(self, sizes: list[Size], side: int, rng: np.random.Generator) -> list[Placement]:
        """Draw the placements of one image, or of the four of a mosaic, in an input of ``side`` x ``side`` pixels.

        A mosaic is a canvas of twice the side, whose centre is the middle of the input before scale and shift; the
        images touch at a point drawn from its inner half.
        """
        factor = 1 + rng.uniform(-self.scale, self.scale)
        shift = rng.uniform(-self.translate, self.translate, 2) * side + side / 2
        if len(sizes) == 1:
            scales = [_fit_scale(sizes[0], side)]
            corners, cells, middle = [(0.0, 0.0)], [(0.0, 0.0, float(side), float(side))], side / 2
        else:
            x, y = rng.uniform(side / 2, 3 * side / 2, 2)
            scales = [_fit_scale(size, side) for size in sizes]
            corners = [
                (x - (i % 2 == 0) * scale * width, y - (i < 2) * scale * height)
                for i, (scale, (height, width)) in enumerate(zip(scales, sizes, strict=True))
            ]
            end = 2.0 * side
            cells = [(0.0, 0.0, x, y), (x, 0.0, end, y), (0.0, y, x, end), (x, y, end, end)]
            middle = float(side)
        placements = []
        for size, scale, corner, cell in zip(sizes, scales, corners, cells, strict=True):
            offset = [factor * (c - middle) + s for c, s in zip(corner, shift, strict=True)]
            extent = [*offset, offset[0] + factor * scale * size[1], offset[1] + factor * scale * size[0]]
            bounds = [factor * (edge - middle) + shift[i % 2] for i, edge in enumerate(cell)]
            low = [max(a, b, 0.0) for a, b in zip(extent[:2], bounds[:2], strict=True)]
            high = [min(a, b, float(side)) for a, b in zip(extent[2:], bounds[2:], strict=True)]
            window = tuple(int(v + 0.5) for v in (*low, *map(max, low, high)))
            placements.append(Placement(factor * scale, (offset[0], offset[1]), window))  # pyright: ignore
        return placements

    def recolour(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change the colours of an image, RGB uint8 (H, W, 3): shift the hue, multiply saturation and value."""
        hue, saturation, brightness = rng.uniform(-1, 1, 3) * (self.hue, self.saturation, self.brightness)
        if not hue and not saturation and not brightness:
            return image
        levels = np.arange(256)
        tables = (
            (levels + round(hue * 256)) % 256,  # Pillow's colour circle has 256 steps
            np.clip(levels * (1 + saturation), 0, 255),
            np.clip(levels * (1 + brightness), 0, 255),
        )
        hsv = Image.fromarray(image).convert("HSV")
        return np.asarray(hsv.point([int(v) for table in tables for v in table]).convert("RGB"))


def letterbox_placement(size: Size, side: int) -> Placement:
    """Return the placement at the left and the top of the input, the image's longest side as long as the input's."""
    scale = _fit_scale(size, side)
    height, width = (max(1, int(scale * length + 0.5)) for length in size)
    return Placement(scale, (0.0, 0.0), (0, 0, width, height))


def paint(canvas: np.ndarray, image: np.ndarray, placement: Placement) -> None:
    """Draw an image, RGB uint8 (H, W, 3), into the model's input (S, S, 3), antialiased bilinear."""
    x0, y0, x1, y1 = placement.window
    source = placement.source((image.shape[0], image.shape[1]))
    if x1 <= x0 or y1 <= y0 or source[2] <= source[0] or source[3] <= source[1]:
        return
    resized = Image.fromarray(image).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=source)
    canvas[y0:y1, x0:x1] = np.asarray(resized)


def _fit_scale(size: Size, side: int) -> float:
    """Return the scale that makes an image's longest side as long as the input's."""
    return side / max(size)
