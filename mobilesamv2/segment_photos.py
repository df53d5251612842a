"""Segment everything in photos of one's own: pictures of the masks, and one file in COCO's layout."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from mobilesamv2.data.images import read_rgb
from mobilesamv2.masks import areas
from mobilesamv2.structures import Masks
from mobilesamv2.visualize import overlay
from mobilesamv2.whole_files import whole_file, write_whole

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Of the photos that are taken from a folder."""


class Segmented(NamedTuple):
    """What came of some photos.

    Attributes:
        masks: number of masks of each photo.
        broken: a sentence for each photo that could not be read.
        written: the file in COCO's layout.
    """

    masks: list[int]
    broken: list[str]
    written: Path


def find_photos(given: Sequence[str]) -> list[Path]:
    """Photos by their paths, folders and patterns, each once, in order.

    Args:
        given: a file, a folder (its photos, not those of folders within), or a pattern (``photos/**/*.jpg``).

    Raises:
        FileNotFoundError: one of these gives no photo.
    """
    found: dict[Path, None] = {}
    for text in given:
        path = Path(text)
        if path.is_dir():
            photos = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        elif path.is_file():
            photos = [path]
        else:
            photos = sorted(p for p in map(Path, glob.glob(text, recursive=True)) if p.is_file())
        if not photos:
            raise FileNotFoundError(f"There is no photo {text}. Of a folder, {', '.join(SUFFIXES)} are taken.")
        found |= dict.fromkeys(photos)
    return list(found)


def segment_photos(photos: Sequence[Path], segment: Callable[[np.ndarray], Masks], output: Path) -> Segmented:
    """Writes ``NAME.png``, the masks over each photo, and ``masks.json``, all of them in COCO's layout, with scores.

    A photo whose EXIF data says that it was taken sideways is turned upright first; its masks are those of the upright
    photo. A photo that can't be read is left out, and named in the result.

    Args:
        photos: their paths.
        segment: a photo, RGB uint8 (H, W, 3), to its masks; a ``SegEvery``.
        output: folder to write into.

    Raises:
        ValueError: two photos would be written as one picture, a picture over its photo, or all into a file.
        OSError: a file can't be written.
    """
    pictures = _picture_paths(photos, output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; the pictures want a folder.")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    counts, broken = [], []
    for photo in tqdm(photos, desc="segmenting", unit="photo", disable=None):
        try:
            image = read_rgb(photo, str(photo), upright=True)
        except ValueError as error:
            broken.append(str(error))
            continue
        masks = segment(image)
        with whole_file(pictures[photo]) as partial:
            Image.fromarray(overlay(image, masks.rles)).save(partial, "PNG")
        image_id = len(images) + 1
        images.append({"id": image_id, "file_name": str(photo), "height": masks.size[0], "width": masks.size[1]})
        annotations += _annotations(masks, image_id, len(annotations))
        counts.append(len(masks))
    written = output / "masks.json"
    categories = [{"id": 1, "name": "object"}]
    write_whole(written, json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return Segmented(counts, broken, written)


def _picture_paths(photos: Sequence[Path], output: Path) -> dict[Path, Path]:
    taken: dict[Path, Path] = {}
    for photo in photos:
        picture = output / f"{photo.stem}.png"
        if picture in taken:
            raise ValueError(f"{taken[picture]} and {photo} would both be written to {picture}: segment them apart.")
        if picture.resolve() == photo.resolve():
            raise ValueError(f"The picture of {photo} would be written over it: choose another output folder.")
        taken[picture] = photo
    return {photo: picture for picture, photo in taken.items()}


def _annotations(masks: Masks, image_id: int, before: int) -> list[dict[str, Any]]:
    """COCO annotations, the best first, numbered from ``before`` + 1."""
    results = masks.to_coco(image_id)
    sizes = areas([result["segmentation"] for result in results]).tolist()
    return [
        {"id": before + i + 1, "area": size, "iscrowd": 0, **result}
        for i, (result, size) in enumerate(zip(results, sizes, strict=True))
    ]
