"""Images of more than 8 bits per value, of which Pillow gives the upper 8 alone in many formats."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
from PIL import Image

from mobilesamv2.data.pixel_values import MAX_16_BITS, PERCENTILES

DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Pillow's modes of more than 8 bits, which its own conversion would clip at 255."""

DARK = 64
"""An image of 16 bits per colour whose upper 8 bits are below this does not use its range."""

JPEG2000_HEADER = 2**20
"""Bytes of a JPEG 2000 file in which its depth is looked for."""

ROWS_READ_AT_ONCE = 64


def is_deep(image: Image.Image) -> bool:
    """Return whether an opened image, which is not loaded yet, has more than 8 bits per value."""
    return image.mode in DEEP_MODES or has_upper_bytes(image) or is_deep_ppm(image)


def has_upper_bytes(image: Image.Image) -> bool:
    """Return whether Pillow keeps the upper 8 bits alone of an opened image's colours."""
    return has_lower_bytes(image) or (
        image.format == "JPEG2000" and image.mode in ("LA", "RGB", "RGBA") and _jpeg2000_bits(image) > 8
    )


def has_lower_bytes(image: Image.Image) -> bool:
    """Return whether an opened image has two bytes per colour of which Pillow can be told to keep the lower one."""
    packings = [_packing(tile[3]) for tile in _tiles(image)]
    return bool(packings) and all(re.fullmatch(r"(RGB|RGBA|RGBX|LA);16[BLN]", packing) for packing in packings)


def take_lower_bytes(image: Image.Image) -> slice:
    """Have an opened image decoded to its lower bytes; return the channels of RGB that will be they.

    Of colours, the order of the bytes is swapped. Of grey with alpha, where Pillow has no such order, the four bytes of
    a pixel are taken for four channels, and the lower byte of grey is the second.
    """
    swapped = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    tiles, channels = _tiles(image), slice(None)
    for i, tile in enumerate(tiles):
        packing = _packing(tile[3])
        if packing == "LA;16B":
            packing, channels = "RGBA", slice(1, 2)
        else:
            packing = packing[:-1] + swapped[packing[-1]]
        args = (packing, *tile[3][1:]) if isinstance(tile[3], tuple) else packing
        tiles[i] = type(tile)(*tile[:3], args)
    return channels


def uses_its_range(upper: Image.Image) -> bool:
    """Return whether an image of upper bytes, RGB, is bright enough to be shown as it is."""
    counts = np.array(upper.histogram(), dtype=np.int64).reshape(3, 256).sum(0)
    position = (counts.sum() - 1) * PERCENTILES[1] / 100
    below, above = np.searchsorted(counts.cumsum(), [np.floor(position), np.ceil(position)], side="right")
    return bool(below + (above - below) * (position % 1) >= DARK)


def is_deep_ppm(image: Image.Image) -> bool:
    """Return whether an opened image is a PGM or a PPM of two bytes per value whose decoder in Pillow is unfit.

    It keeps 8 bits of colours, and takes a microsecond per value.
    """
    return image.format == "PPM" and image.mode in ("I", "RGB") and any(
        tile[0] in ("ppm", "ppm_plain") and isinstance(tile[3], tuple) and tile[3][1] > 255 for tile in _tiles(image)
    )  # fmt: skip


def ppm_values(image: Image.Image) -> np.ndarray:
    """Read an opened PGM or PPM of two bytes per value: (H, W, 1 or 3) uint16, its greatest value as 65535.

    Raises:
        OSError: if the file ends too early.
        ValueError: if a value written as text is none.
    """
    [(codec, _, offset, args)] = _tiles(image)
    channels = 3 if image.mode == "RGB" else 1
    shape = (image.height, image.width, channels)
    if codec == "ppm_plain":  # its numbers in decimals, as of a grey image of three times the width
        setattr(image, "_mode", "I")  # noqa: B010
        setattr(image, "_size", (image.width * channels, image.height))  # noqa: B010
        setattr(image, "tile", [(codec, (0, 0, *image.size), offset, args)])  # noqa: B010
        return np.asarray(image).astype(np.uint16).reshape(shape)
    table = np.minimum(np.round(np.arange(2**16) / args[1] * MAX_16_BITS), MAX_16_BITS).astype(np.uint16)
    values = np.empty(shape, np.uint16)
    file: Any = getattr(image, "fp")  # noqa: B009
    file.seek(offset)
    for row in range(0, image.height, ROWS_READ_AT_ONCE):
        part = values[row : row + ROWS_READ_AT_ONCE]
        content = file.read(part.nbytes)
        if len(content) < part.nbytes:
            raise OSError("image file is truncated")
        part[:] = table[np.frombuffer(content, ">u2")].reshape(part.shape)
    return values


def _tiles(image: Image.Image) -> list[Any]:
    """Return the parts of an opened image: decoder, place, offset and the decoder's arguments of each."""
    return getattr(image, "tile", [])


def _packing(args: object) -> str:
    """Return how a decoder's pixels are packed, of its arguments: Pillow's raw mode."""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _jpeg2000_bits(image: Image.Image) -> int:
    """Return the bits per value that the header of an opened JPEG 2000 file declares.

    Source: ISO/IEC 15444-1, A.5.1 (marker SIZ) and I.5.3.1 (box ihdr).
    """
    file: Any = getattr(image, "fp")  # noqa: B009
    position = file.tell()
    file.seek(0)
    head = file.read(JPEG2000_HEADER)
    file.seek(position)
    if (start := head.find(b"\xff\x4f\xff\x51")) >= 0:
        declared = head[start + 42 : start + 42 + 3 * len(image.getbands()) : 3]
    else:
        start = head.find(b"ihdr")
        declared = head[start + 14 : start + 15]
    return max(((byte & 0x7F) + 1 for byte in declared), default=8)
