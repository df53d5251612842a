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
tools show it so. ``never`` keeps the pixels as they are stored. HEIF files are upright in any case: their decoder turns
them."""

AnnotatedSize = Callable[[], tuple[int, int] | None]
"""Returns the annotated (H, W), which is looked up for images with an EXIF orientation alone; None if there is none."""

DECODER_ERRORS = (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, struct.error)
"""What Pillow's decoders raise on bytes that are no image; some use them as numbers and offsets without a check."""

_TURNED_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> how an upright image is stored."""

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
    """Return the EXIF orientation of an opened image, 2 to 8; 1 if it is stored upright or its EXIF data is broken."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DECODER_ERRORS:
        return 1
    return orientation if orientation in range(2, 9) else 1


def turned(image: Image.Image, name: str, upright: Upright, annotated_size: AnnotatedSize | None) -> Image.Image:
    """Load an opened image, turned as its EXIF orientation says where ``upright`` has it turned.

    Args:
        image: the image, not loaded yet: Pillow turns a TIFF when it loads it, and forgets its orientation.
        name: name of the image in messages.
        upright: see ``Upright``.
        annotated_size: of the image; None if it has no annotations.
    """
    is_turned = image.format == "TIFF"
    if not is_turned:
        image.load()  # a PNG may have its EXIF data behind the pixels
    orientation = exif_orientation(image)
    image.load()
    if orientation == 1:
        return image
    stored = (image.height, image.width)
    if is_turned and _swaps_sides(orientation):
        stored = (image.width, image.height)
    if not _is_to_be_turned(orientation, stored, name, upright, annotated_size):
        return image.transpose(_TURNED_BACK[orientation]) if is_turned else image
    if is_turned:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except DECODER_ERRORS:  # of other tags, which are written anew
        return image


def _is_to_be_turned(
    orientation: int, stored: tuple[int, int], name: str, upright: Upright, annotated_size: AnnotatedSize | None
) -> bool:
    """Return whether an image of this EXIF orientation and (H, W) as stored is to be turned, and say it once."""
    if upright != "auto" or annotated_size is None:
        return upright != "never"
    height, width = stored
    upright_size = (width, height) if _swaps_sides(orientation) else stored
    annotated, about = annotated_size(), f"{name} has the EXIF orientation {orientation} and is turned upright"
    if annotated == upright_size != stored:
        _warn_of_sizes(f"{about}, as its annotated size says; so are others like it. dataset.upright=auto does it.")
    elif annotated == stored == upright_size:
        _warn_of_guess(
            f"{about}, though its annotated size fits both ways: annotation tools show images upright. So are "
            "others like it; dataset.upright=never keeps images as they are stored."
        )
    return annotated is None or annotated == upright_size


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
            if image.format == "HEIF":  # which its decoder turns
                return 1
            return exif_orientation(image)
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return 1


def _swaps_sides(orientation: int) -> bool:
    """Return whether height and width change places."""
    return orientation >= 5
