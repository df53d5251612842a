"""Finding and decoding image files."""

from __future__ import annotations

import glob
import logging
import os
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from mobilesamv2.data.deep_images import (
    DEEP_MODES,
    has_lower_bytes,
    has_upper_bytes,
    is_deep,
    is_deep_ppm,
    ppm_values,
    take_lower_bytes,
    uses_its_range,
)
from mobilesamv2.data.orientation import (
    DECODER_ERRORS,
    AnnotatedSize,
    Upright,
    check_upright,
    exif_orientation,
    turned,
)
from mobilesamv2.data.pixel_values import ValueRange, check_value_range, to_rgb

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2", ".j2k",
    ".jpx", ".jpf", ".mpo", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".heic", ".heif",
)  # fmt: skip
"""Suffixes of the files that count as images of a folder, as far as Pillow can decode them here."""

UNREAD_SUFFIXES = (
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".jxl", ".dcm", ".exr", ".psd",
)  # fmt: skip
"""Suffixes of images that are not read: raw ones of cameras, JPEG XL, DICOM, OpenEXR and Photoshop's."""

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")

BLOCK = 4096
"""Bytes of each part of a file that ``checksum_of_blocks`` reads."""

MAX_DECODED_PIXELS = 178_956_970
"""Pixels of the largest image that is decoded by default: Pillow's limit, as small files can expand to gigabytes."""


COPIED_FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
}
"""Pillow's name of a format -> its suffixes that ultralytics and OpenCV know, of what they read as Pillow does."""


class TooManyPixelsError(ValueError):
    """An image has more pixels than are allowed."""


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """Return the image files that paths, folders and patterns name, each once, in order.

    Files that a Mac leaves beside others (``._NAME``) are no images. Those of a folder in formats that are not read are
    counted in a warning.

    Args:
        paths: files, folders (the images directly in them, by name) or patterns (``images/**/*.jpg``).

    Raises:
        FileNotFoundError: if one of them names no image.
    """
    found: dict[Path, Path] = {}
    for given in paths:
        path, others = Path(given), ""
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.is_file())
            images, others = choose_image_files(files), unread_note(files)
            if others and images:
                logger.warning("%s: %s", path, others)
        elif path.is_file():
            images = [path]
        else:
            matches = sorted(map(Path, glob.glob(str(given), recursive=True)))
            images = [p for p in matches if p.is_file() and not is_sidecar(p)]
        if not images:
            suffixes = ", ".join(readable_suffixes())
            raise FileNotFoundError(f"There is no image at {given}. Of a folder, {suffixes} are read. {others}".strip())
        found |= {image.resolve(): found.get(image.resolve(), image) for image in images}
    return list(found.values())


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of all folders in it, each folder's sorted by name, through links to folders too.

    Hidden files and folders, among them those that a Mac leaves beside others (``._NAME``), are passed over.
    """
    entered: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:  # two links to it, or a link to a folder that contains the link
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(parent, name)


def is_sidecar(path: str | Path) -> bool:
    """Return whether a file is what a Mac writes beside another one of that name: ``._NAME``."""
    return os.path.basename(path).startswith("._")


def choose_image_files(files: Iterable[Path]) -> list[Path]:
    """Return the files that are images, by their suffix."""
    suffixes = readable_suffixes()
    return [file for file in files if file.suffix.lower() in suffixes and not is_sidecar(file)]


def unread_note(files: Iterable[Path]) -> str:
    """Return a sentence that counts images in formats that are not read here; nothing if there are none."""
    unread = {*IMAGE_SUFFIXES, *UNREAD_SUFFIXES} - set(readable_suffixes())
    counts = Counter(suffix for f in files if (suffix := f.suffix.lower()) in unread and not is_sidecar(f))
    if not counts:
        return ""
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    hint = " `pip install pillow-heif` adds .heic and .heif." if counts.keys() & {".heic", ".heif"} else ""
    return f"Passed over, in formats that are not read here: {kinds}.{hint}"


@cache
def readable_suffixes() -> tuple[str, ...]:
    """Return those of ``IMAGE_SUFFIXES`` that Pillow can decode here, with pillow-heif if it is installed."""
    try:
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]

        register_heif_opener()
    except ImportError:
        pass
    known = Image.registered_extensions()
    formats = {*Image.OPEN, "MPO"}  # which is opened as a JPEG
    return tuple(suffix for suffix in IMAGE_SUFFIXES if known.get(suffix) in formats)


def check_decoding(upright: Upright, value_range: ValueRange | None, max_pixels: int) -> None:
    """Check the settings of ``read_rgb``, before the first image.

    Raises:
        ValueError: if one is invalid; see there.
    """
    check_upright(upright)
    check_value_range(value_range)
    if max_pixels < 1:
        raise ValueError(f"max_pixels must be a positive number of pixels, got {max_pixels}.")


def decoding_record(upright: Upright, value_range: ValueRange | None) -> dict[str, Any]:
    """Return the settings of decoding that differ from the defaults, for the record of a result."""
    settings = {"upright": upright, "value_range": None if value_range is None else list(value_range)}
    defaults = {"upright": "auto", "value_range": None}
    return {key: value for key, value in settings.items() if value != defaults[key]}


def file_signature(num_bytes: int, upright: Upright, value_range: ValueRange | None) -> str:
    """Return the signature of an image that is a file: its length in bytes, and how it is decoded."""
    return f"{num_bytes} bytes, {decoding_record(upright, value_range)}"


def checksum_of_blocks(file: Path) -> str:
    """Return a checksum of the first, the middle and the last 4 KiB of an image's file, nothing for a JPEG.

    Uncompressed images of one size are files of one length, which a JPEG's tells from others by itself.
    """
    if file.suffix.lower() in JPEG_SUFFIXES:
        return ""
    length, checksum = file.stat().st_size, 0
    with file.open("rb", buffering=0) as opened:
        for offset in sorted({0, max(0, (length - BLOCK) // 2), max(0, length - BLOCK)}):
            opened.seek(offset)
            checksum = zlib.crc32(opened.read(BLOCK), checksum)
    return f", checksum {checksum:08x}"


def read_rgb(
    file: str | Path | IO[bytes],
    name: str | None = None,
    upright: Upright = "never",
    value_range: ValueRange | None = None,
    max_pixels: int = MAX_DECODED_PIXELS,
    annotated_size: AnnotatedSize | None = None,
    max_deep_pixels: int | None = None,
) -> np.ndarray:
    """Load an image of any mode as RGB uint8 (H, W, 3); alpha is dropped, the first frame of an animation is used.

    Args:
        file: a path or an open file.
        name: name of the image in error messages; None is the path.
        upright: turn it as its EXIF orientation says; see ``Upright``.
        value_range: the values that become 0 and 255 where it has more than 8 bits; None is the rule of ``to_rgb``.
        max_pixels: an image of more is refused.
        annotated_size: of the image, which ``upright="auto"`` goes by.
        max_deep_pixels: an image of more than 8 bits per value is refused if it has more; None is ``max_pixels``.

    Raises:
        TooManyPixelsError: if it has more pixels than are allowed; a ValueError.
        ValueError: if it can't be decoded, or an argument is invalid.
    """
    check_decoding(upright, value_range, max_pixels)
    name = str(file) if name is None else name
    readable_suffixes()  # registers what is installed
    try:
        with _open(file, name, max_pixels, max_deep_pixels) as image:
            if is_deep_ppm(image):  # which has no EXIF data
                return to_rgb(ppm_values(image), value_range, name)
            is_halved, has_lower = has_upper_bytes(image), has_lower_bytes(image)
            oriented = turned(image, name, upright, annotated_size)
            if oriented.mode in DEEP_MODES:
                return to_rgb(np.asarray(oriented), value_range, name)
            rgb = _as_rgb(oriented)
            if not is_halved or (value_range is None and uses_its_range(rgb)):
                return np.asarray(rgb)
        upper = np.asarray(rgb)
        del image, oriented, rgb  # before it is decoded again, for its memory
        lower = _lower_bytes(file, name, upright, annotated_size) if has_lower else np.zeros_like(upper)
        values = upper[:, :, : lower.shape[2]].astype(np.uint16)
        values <<= 8
        values |= lower
        return to_rgb(values, value_range, name)
    except TooManyPixelsError:
        raise
    except (*DECODER_ERRORS, ImportError, Image.DecompressionBombError) as error:
        # ultralytics, once imported, makes Pillow look for a HEIF decoder where it knows no format
        reason = error.__context__ if isinstance(error, ImportError) else error
        raise ValueError(f"{name} can't be decoded: {reason}") from error


def suffix_to_copy(file: Path | IO[bytes], suffix: str) -> str | None:
    """Return the suffix under which other programs read a file as this one does; None where it has to be written anew.

    They keep the upper 8 of more bits, turn images by their EXIF orientation, and do not know each format.

    Args:
        file: an image, which is not decoded as far as its format has all this in the header.
        suffix: its own, which is returned if it is one of its format's.
    """
    try:
        with _open(file, "", None) as image:
            suffixes = COPIED_FORMATS.get(image.format or "")
            if suffixes is None or image.mode == "CMYK" or is_deep(image) or exif_orientation(image) != 1:
                return None
            return suffix if suffix.lower() in suffixes else suffixes[0]
    except (*DECODER_ERRORS, ImportError):
        return None


_OPENING = threading.Lock()
"""Held while Pillow's own limit, which is global, is lifted."""


@contextmanager
def _open(
    file: str | Path | IO[bytes], name: str, max_pixels: int | None, max_deep_pixels: int | None = None
) -> Iterator[Image.Image]:
    """Open an image of at most so many pixels, None for any number; it is decoded later."""
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            opened = Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with opened as image:
        if max_deep_pixels is not None and is_deep(image):
            max_pixels = max_deep_pixels
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise TooManyPixelsError(
                f"{name} can't be decoded: it has {image.width} x {image.height} pixels, more than max_pixels="
                f"{max_pixels} allows (dataset.max_pixels=N, --max-pixels N)."
            )
        yield image


def _as_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB, itself if it is, since a copy of a large one costs as much again."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _lower_bytes(
    file: str | Path | IO[bytes], name: str, upright: Upright, annotated_size: AnnotatedSize | None
) -> np.ndarray:
    """Decode the lower bytes (H, W, 1 or 3) of an image of 16 bits per colour, which Pillow drops."""
    with _open(file, name, None) as image:
        channels = take_lower_bytes(image)
        return np.asarray(_as_rgb(turned(image, name, upright, annotated_size)))[:, :, channels]
