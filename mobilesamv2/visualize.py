"""Overlays of masks on images, and tables of images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mobilesamv2.masks import areas, boxes_from_rles, decode, encode, iou_at_least, to_rles
from mobilesamv2.structures import RLE, Masks
from mobilesamv2.transforms import check_image

GOLDEN_RATIO = 0.618034
"""Hue step between masks, so that consecutive ones differ clearly."""

SAME_OBJECT_IOU = 0.7
"""IoU from which on masks are of one object, as boxes are to the mask generator of SAM."""

_MARGIN = 8
"""Pixels between panels."""


def overlay(
    image: np.ndarray,
    masks: Masks
    | RLE
    | Sequence[RLE]
    | Sequence[np.ndarray]
    | tuple[Any, ...]
    | np.ndarray
    | torch.Tensor
    | Image.Image,
    alpha: float = 0.5,
    objects: Sequence[int] | None = None,
) -> np.ndarray:
    """Draw masks over an image, each in its own colour with an outline, the largest first.

    Args:
        image: RGB uint8 (H, W, 3).
        masks: the result of ``SegEvery`` or ``SegAny``: D masks at (H, W), as ``Masks``, RLEs, results in COCO's
            layout, a ``Prediction``, or bool (D, H, W), (H, W) for one mask, or (N, M, H, W), as an array, a tensor, a
            list or an image of Pillow.
        alpha: opacity of the colour.
        objects: number of the object that each mask is of, which decides its colour, so that overlays can be compared,
            see ``same_objects``; without numbers each mask has a colour of its own.

    Returns:
        RGB uint8 (H, W, 3).

    Raises:
        ValueError: if the image is not RGB uint8, or the masks are not masks of its size.

    Example:
        >>> from mobilesamv2.visualize import overlay
        >>> masks = SegEvery.from_pretrained("mini_conv")(image)
        >>> overlay(image, masks).shape == image.shape
        True
        >>> overlay(image, masks[0]).shape == image.shape  # one of them
        True
    """
    check_image(image)
    rles = _as_rles(masks, (image.shape[0], image.shape[1]))
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


def same_objects(masks: list[RLE]) -> list[int]:
    """Return the number of the object that each mask is of, which is the place of the object's first mask.

    A mask is of the object whose first mask has the highest IoU with it, of .7 or more, or of one that is new.

    Example:
        >>> sam = load_pretrained("mini_conv")
        >>> first, second = SegEvery(sam, Grid(8))(image), SegEvery(sam, Grid(12))(image)
        >>> objects = same_objects(first.rles + second.rles)  # what both found has one colour
        >>> left = overlay(image, first, objects=objects[: len(first)])
        >>> right = overlay(image, second, objects=objects[len(first) :])
    """
    ious = iou_at_least(masks, masks, SAME_OBJECT_IOU)
    numbers: list[int] = []
    firsts: list[int] = []
    for i in range(len(masks)):
        best = firsts[int(ious[i, firsts].argmax())] if firsts else i
        numbers.append(best if ious[i, best] >= SAME_OBJECT_IOU else i)
        if numbers[i] == i:
            firsts.append(i)
    return numbers


def _as_rles(masks: Any, size: tuple[int, int]) -> list[RLE]:
    """Return masks of any form that ``overlay`` takes as RLEs of an image's size."""
    if isinstance(masks, Masks):
        if masks.size != size:
            raise ValueError(f"masks must have the image's size {list(size)} (height, width), got {list(masks.size)}.")
        return masks.rles
    if isinstance(masks, tuple) and hasattr(masks, "_fields"):
        masks = getattr(masks, "masks", masks)
    if isinstance(masks, dict):
        masks = [masks]
    if isinstance(masks, list | tuple) and all(isinstance(mask, dict) for mask in masks):
        return to_rles([mask.get("segmentation", mask) for mask in masks], size, lambda i: f"Mask number {i}")
    try:
        pixels = masks.cpu().numpy() if isinstance(masks, torch.Tensor) else np.asarray(masks)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a GPU in a list
        raise ValueError(f"masks must be masks of the image, all of its size, got {type(masks).__name__}.") from error
    if pixels.dtype.kind not in "bui" or pixels.shape[-2:] != size or not 2 <= pixels.ndim <= 4:
        raise ValueError(
            f"masks must be bool (D, {size[0]}, {size[1]}), as the image, got {pixels.dtype} {pixels.shape}. "
            "Logits become masks by logits > 0."
        )
    return encode(torch.from_numpy(pixels.reshape(-1, *size) != 0).transpose(1, 2))


def _colour(number: int) -> np.ndarray:
    """Return a colour (3,) 0 to 255 for a number."""
    return 255 * np.array(colorsys.hsv_to_rgb(number * GOLDEN_RATIO % 1, 0.75, 1.0), dtype=np.float32)


def panels(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> Image.Image:
    """Arrange images in a table, with a title above each column.

    Args:
        rows: RGB uint8 (H, W, 3) each; the images of a row have one size.
        titles: one per column, of one or several lines.
    """
    widths = [max(row[c].shape[1] for row in rows) for c in range(len(titles))]
    font_size = max(13, max(widths) // 16)  # readable where the picture is scaled down
    font, lines = ImageFont.load_default(font_size), [title.splitlines() or [""] for title in titles]
    title_height = int(1.3 * font_size * max(map(len, lines))) + font_size // 2
    widths = [max(w, *(int(font.getlength(line)) + 1 for line in each)) for w, each in zip(widths, lines, strict=True)]
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
