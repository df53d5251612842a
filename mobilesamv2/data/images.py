"""Decoding photos."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Pillow's modes of more than 8 bits, which its own conversion would cut off at 255."""


BROKEN = (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, struct.error)
"""What Pillow's decoders raise on bytes that are no photo; some read them as numbers and places without a check."""


def read_rgb(file: Path | IO[bytes], name: str, upright: bool = False) -> np.ndarray:
    """A photo of any mode as RGB uint8 (H, W, 3); 16 bits are scaled to 8.

    Args:
        file: a path or an open file.
        name: what an error calls the photo.
        upright: turn it as its EXIF data says. Annotations go with the pixels as they are stored.

    Raises:
        ValueError: it can't be decoded; the sentence names it.
    """
    try:
        with Image.open(file) as image:
            turned = _upright(image) if upright else image
            return _eight_bits(turned) if turned.mode in DEEP_MODES else np.asarray(turned.convert("RGB"))
    except (*BROKEN, ImportError, Image.DecompressionBombError) as error:
        # ultralytics, once imported, makes Pillow look for a HEIF decoder where it knows no format
        reason = error.__context__ if isinstance(error, ImportError) else error
        raise ValueError(f"{name} can't be decoded: {reason}") from error


def _upright(image: Image.Image) -> Image.Image:
    """A photo turned as its EXIF data says; as it is where they are broken, since its pixels need not be."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except BROKEN:
        return image


def _eight_bits(image: Image.Image) -> np.ndarray:
    """A grey photo of integers up to 65535, or of numbers up to 255, as RGB uint8 (H, W, 3)."""
    grey = np.nan_to_num(np.asarray(image).astype(np.float64))
    if grey.max(initial=0) > 255:
        grey = grey / 257
    return np.repeat(grey.clip(0, 255).round().astype(np.uint8)[:, :, None], 3, axis=2)
