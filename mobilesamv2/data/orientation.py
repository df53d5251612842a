"""Images that EXIF turns: stored in one orientation, shown and mostly annotated in another."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal, get_args

from PIL import ExifTags, Image, ImageOps

from mobilesamv2.data.warn_once import WarnOnce

logger = logging.getLogger(__name__)

Upright = Literal["auto", "always", "never"]
"""Whether an image is turned as its EXIF orientation says.

``auto``: where exactly one of the two sizes, stored and turned, is the annotated one, that one is taken. Where both are
(square images, images upside down), and where none is annotated, the image is turned, since viewers and annotation
tools show it so. ``never`` keeps the pixels as they are stored. TIFF and HEIF files are upright in any case: their
decoders turn them."""

AnnotatedSize = Callable[[], tuple[int, int] | None]
"""Returns the annotated (H, W), which is looked up for images with an EXIF orientation alone; None if there is none."""

DECODER_ERRORS = (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, struct.error)
"""What Pillow's decoders raise on bytes that are no image; some use them as numbers and offsets without a check."""

_warn_of_sizes = WarnOnce(logger)
_warn_of_guess = WarnOnce(logger)


def check_upright(upright: Any) -> Upright:
    """Return whether images are turned.

    Raises:
        ValueError: if it is not one of ``Upright``.
    """
    if upright not in get_args(Upright):
        raise ValueError(f"upright must be {', '.join(get_args(Upright)[:-1])} or never, got {upright}.")
    return upright


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded image, 2 to 8; 1 if it is stored upright or its EXIF data is broken."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DECODER_ERRORS:
        return 1
    return orientation if orientation in range(2, 9) else 1


def turned(image: Image.Image, name: str, upright: Upright, annotated_size: AnnotatedSize | None) -> Image.Image:
    """Return a loaded image, turned as its EXIF orientation says where ``upright`` has it turned.

    Args:
        image: the image as it is stored.
        name: name of the image in messages.
        upright: see ``Upright``.
        annotated_size: of the image; None if it has no annotations.
    """
    orientation = exif_orientation(image)
    if upright == "never" or orientation == 1:
        return image
    if upright == "auto" and annotated_size is not None:
        stored = (image.height, image.width)
        upright_size = stored[::-1] if _swaps_sides(orientation) else stored
        annotated, about = annotated_size(), f"{name} has the EXIF orientation {orientation} and is turned upright"
        if annotated == upright_size != stored:
            _warn_of_sizes(f"{about}, as its annotated size says; so are others like it. dataset.upright=auto does it.")
        elif annotated == stored == upright_size:
            _warn_of_guess(
                f"{about}, though its annotated size fits both ways: annotation tools show images upright. So are "
                "others like it; dataset.upright=never keeps images as they are stored."
            )
        elif annotated is not None:
            return image
    try:
        return ImageOps.exif_transpose(image)
    except DECODER_ERRORS:  # of other tags, which are written anew
        return image


def is_turned_when_shown(file: Path | IO[bytes]) -> bool:
    """Return whether a file has an EXIF orientation, by which viewers turn it; not if it can't be opened."""
    return _orientation_of(file) != 1


def mismatch_note(file: Path | IO[bytes], upright: Upright) -> str:
    """Return a sentence, after a blank, on the EXIF orientation of a file whose size is not the annotated one."""
    orientation = _orientation_of(file)
    if orientation == 1:
        return ""
    note = f" Its EXIF orientation is {orientation}"
    return note + (
        ", and neither stored nor turned does it fit."
        if upright == "auto"
        else f", and dataset.upright is {upright}; auto takes the way round that fits the annotated size."
    )


def _orientation_of(file: Path | IO[bytes]) -> int:
    """Return the EXIF orientation of a file, without decoding its pixels where its format has it in the header."""
    try:
        with Image.open(file) as image:
            if image.format in ("TIFF", "HEIF"):  # which decoders turn
                return 1
            return exif_orientation(image)
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return 1


def _swaps_sides(orientation: int) -> bool:
    """Return whether height and width change places."""
    return orientation >= 5
