"""Overlays of masks on images, and tables of images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mobilesamv2.masks import areas, boxes_from_rles, decode, encode
from mobilesamv2.structures import RLE

GOLDEN_RATIO = 0.618034
"""Hue step between masks, so that consecutive ones differ clearly."""

_MARGIN = 8
"""Pixels between panels."""


def overlay(
    image: np.ndarray,
    masks: Sequence[RLE] | np.ndarray,
    alpha: float = 0.5,
    objects: Sequence[int] | None = None,
) -> np.ndarray:
    """Draw masks over an image, each in its own colour with an outline, the largest first.

    Args:
        image: RGB uint8 (H, W, 3).
        masks: D masks at (H, W), as RLE or as bool (D, H, W).
        alpha: opacity of the colour.
        objects: number of the object that each mask is of, which decides its colour, so that overlays can be compared;
            without numbers each mask has a colour of its own.

    Returns:
        RGB uint8 (H, W, 3).
    """
    rles = encode(torch.from_numpy(masks).transpose(1, 2)) if isinstance(masks, np.ndarray) else list(masks)
    sizes, boxes = areas(rles), boxes_from_rles(rles).int().tolist()
    canvas = image.astype(np.float32)
    drawn = [i for i in sizes.argsort(descending=True, stable=True).tolist() if sizes[i]]
    for rank, i in enumerate(drawn):
        x0, y0, x1, y1 = boxes[i]
        box = np.s_[y0 : y1 + 1, x0 : x1 + 1]  # most masks cover a small part of the image
        mask, part = decode(rles[i])[box], canvas[box]
        colour = _colour(rank if objects is None else objects[i])
        part[mask] = (1 - alpha) * part[mask] + alpha * colour
        part[_outline(mask)] = 0.6 * colour
    return canvas.round().astype(np.uint8)


def _colour(number: int) -> np.ndarray:
    """Return a colour (3,) 0 to 255 for a number."""
    return 255 * np.array(colorsys.hsv_to_rgb(number * GOLDEN_RATIO % 1, 0.75, 1.0), dtype=np.float32)


def panels(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> Image.Image:
    """Arrange images in a table, with a title above each column.

    Args:
        rows: RGB uint8 (H, W, 3) each; the images of a row have one size.
        titles: one per column.
    """
    widths = [max(row[c].shape[1] for row in rows) for c in range(len(titles))]
    font_size = max(13, max(widths) // 20)  # readable where the picture is scaled down
    font, title_height = ImageFont.load_default(font_size), 2 * font_size
    widths = [max(w, int(font.getlength(title)) + 1) for w, title in zip(widths, titles, strict=True)]
    heights = [row[0].shape[0] for row in rows]
    size = (sum(widths) + _MARGIN * (len(widths) + 1), title_height + sum(heights) + _MARGIN * (len(heights) + 1))
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    x = _MARGIN
    for column, (title, width) in enumerate(zip(titles, widths, strict=True)):
        pen.text((x, 4), title, fill="black", font=font)
        y = title_height + _MARGIN
        for row, height in zip(rows, heights, strict=True):
            canvas.paste(Image.fromarray(row[column]), (x, y))
            y += height + _MARGIN
        x += width + _MARGIN
    return canvas


def _outline(mask: np.ndarray) -> np.ndarray:
    """Return the mask pixels that have a neighbour outside the mask, (H, W) bool."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
