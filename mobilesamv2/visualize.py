"""Pictures of masks."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mobilesamv2.masks import areas, boxes_from_rles, decode, encode
from mobilesamv2.structures import RLE

GOLDEN = 0.618034
"""Steps of hue that keep neighbours in a list apart."""

_MARGIN, _TITLE = 8, 22
"""Pixels between panels, and for a title above each."""


def overlay(image: np.ndarray, masks: Sequence[RLE] | np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """Masks over a photo, each in a colour of its own with an outline, the largest first.

    Args:
        image: RGB uint8 (H, W, 3).
        masks: D masks at (H, W), as RLE or as bool (D, H, W).
        alpha: opacity of the colour.

    Returns:
        RGB uint8 (H, W, 3).
    """
    rles = encode(torch.from_numpy(masks).transpose(1, 2)) if isinstance(masks, np.ndarray) else list(masks)
    sizes, boxes = areas(rles), boxes_from_rles(rles).int().tolist()
    canvas = image.astype(np.float32)
    drawn = [i for i in sizes.argsort(descending=True, stable=True).tolist() if sizes[i]]
    for rank, i in enumerate(drawn):
        x0, y0, x1, y1 = boxes[i]
        place = np.s_[y0 : y1 + 1, x0 : x1 + 1]  # a photo has many masks, most of them a small part of it
        mask, part = decode(rles[i])[place], canvas[place]
        colour = 255 * np.array(colorsys.hsv_to_rgb(rank * GOLDEN % 1, 0.75, 1.0), dtype=np.float32)
        part[mask] = (1 - alpha) * part[mask] + alpha * colour
        part[_outline(mask)] = 0.6 * colour
    return canvas.round().astype(np.uint8)


def panels(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> Image.Image:
    """A table of pictures, with a title above each column.

    Args:
        rows: RGB uint8 (H, W, 3) each; the pictures of a row are of one size.
        titles: one for each column.
    """
    font = ImageFont.load_default(13)
    widths = [max(row[c].shape[1] for row in rows) for c in range(len(titles))]
    widths = [max(w, int(font.getlength(title)) + 1) for w, title in zip(widths, titles, strict=True)]
    heights = [row[0].shape[0] for row in rows]
    size = (sum(widths) + _MARGIN * (len(widths) + 1), _TITLE + sum(heights) + _MARGIN * (len(heights) + 1))
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    x = _MARGIN
    for column, (title, width) in enumerate(zip(titles, widths, strict=True)):
        pen.text((x, 4), title, fill="black", font=font)
        y = _TITLE + _MARGIN
        for row, height in zip(rows, heights, strict=True):
            canvas.paste(Image.fromarray(row[column]), (x, y))
            y += height + _MARGIN
        x += width + _MARGIN
    return canvas


def _outline(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels of a mask beside one that is not."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
