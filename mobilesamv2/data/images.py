"""Finding and decoding image files."""

from __future__ import annotations

import glob
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes of the files that count as images of a folder."""

DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Pillow's modes of more than 8 bits, which its own conversion would clip at 255."""


DECODER_ERRORS = (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, struct.error)
"""What Pillow's decoders raise on bytes that are no image; some use them as numbers and offsets without a check."""


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """Return the image files that paths, folders and patterns name, each once, in order.

    Args:
        paths: files, folders (the images directly in them, by name) or patterns (``images/**/*.jpg``).

    Raises:
        FileNotFoundError: if one of them names no image.
    """
    found: dict[Path, Path] = {}
    for given in paths:
        path = Path(given)
        if path.is_dir():
            images = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        elif path.is_file():
            images = [path]
        else:
            images = sorted(p for p in map(Path, glob.glob(str(given), recursive=True)) if p.is_file())
        if not images:
            raise FileNotFoundError(f"There is no image at {given}. Of a folder, {', '.join(IMAGE_SUFFIXES)} are read.")
        found |= {image.resolve(): found.get(image.resolve(), image) for image in images}
    return list(found.values())


def read_rgb(file: Path | IO[bytes], name: str, upright: bool = False) -> np.ndarray:
    """Load an image of any mode as RGB uint8 (H, W, 3); 16 bits are scaled to 8.

    Args:
        file: a path or an open file.
        name: name of the image in error messages.
        upright: rotate it as its EXIF orientation says. Annotations refer to the pixels as they are stored.

    Raises:
        ValueError: if it can't be decoded.
    """
    try:
        with Image.open(file) as image:
            oriented = _exif_transpose(image) if upright else image
            return _to_8_bits(oriented) if oriented.mode in DEEP_MODES else np.asarray(oriented.convert("RGB"))
    except (*DECODER_ERRORS, ImportError, Image.DecompressionBombError) as error:
        # ultralytics, once imported, makes Pillow look for a HEIF decoder where it knows no format
        reason = error.__context__ if isinstance(error, ImportError) else error
        raise ValueError(f"{name} can't be decoded: {reason}") from error


def _exif_transpose(image: Image.Image) -> Image.Image:
    """Rotate an image as its EXIF orientation says; with broken EXIF data, keep it as stored."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except DECODER_ERRORS:
        return image


def _to_8_bits(image: Image.Image) -> np.ndarray:
    """Convert a grey image of integers up to 65535, or of floats up to 255, to RGB uint8 (H, W, 3)."""
    grey = np.nan_to_num(np.asarray(image).astype(np.float64))
    if grey.max(initial=0) > 255:
        grey = grey / 257
    return np.repeat(grey.clip(0, 255).round().astype(np.uint8)[:, :, None], 3, axis=2)
