"""Segment everything in photos of one's own: pictures of the masks, and one file in COCO's layout."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

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
        kept: how many photos an earlier run had segmented in the same way.
    """

    masks: list[int]
    broken: list[str]
    written: Path
    kept: int


def find_photos(given: Sequence[str]) -> list[Path]:
    """Photos by their paths, folders and patterns, each once, in order.

    Args:
        given: a file, a folder (its photos, not those of folders within), or a pattern (``photos/**/*.jpg``).

    Raises:
        FileNotFoundError: one of these gives no photo.
    """
    found: dict[Path, Path] = {}
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
        found |= {photo.resolve(): found.get(photo.resolve(), photo) for photo in photos}
    return list(found.values())


def segment_photos(
    photos: Sequence[Path], segment: Callable[[np.ndarray], Masks], output: Path, made_by: Mapping[str, Any]
) -> Segmented:
    """Writes a picture of the masks over each photo, a JSON file beside it, and ``masks.json``, all of them together.

    Each JSON file is in SA-1B's layout, one photo's ``image`` and ``annotations``; ``masks.json`` is in COCO's. Photos
    of several folders keep these below ``output``. A photo whose EXIF data says that it was taken sideways is turned
    upright first; its masks are those of the upright photo. A photo that can't be read is left out, and named in the
    result. A run that was stopped goes on: a photo that has its JSON file, of the same ``made_by``, is kept as it is.

    Args:
        photos: their paths.
        segment: a photo, RGB uint8 (H, W, 3), to its masks; a ``SegEvery``.
        output: folder to write into.
        made_by: what the masks depend on beside the photo, as plain values.

    Raises:
        ValueError: two photos would be written as one picture, pictures beside the photos, or all into a file.
        OSError: a file can't be written.
    """
    pictures = _picture_paths(photos, output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; the pictures want a folder.")
    records: list[Path] = []
    counts, broken, kept = [], [], 0
    for photo in tqdm(photos, desc="segmenting", unit="photo", disable=None):
        picture, record = pictures[photo], pictures[photo].with_suffix(".json")
        size, changed_ns = photo.stat().st_size, photo.stat().st_mtime_ns
        wanted = dict(made_by) | {"photo": str(photo), "photo_bytes": size, "photo_changed_ns": changed_ns}
        count = _annotations_of(record, wanted) if picture.is_file() else None
        if count is None:
            try:
                image = read_rgb(photo, str(photo), upright=True)
            except ValueError as error:
                broken.append(str(error))
                continue
            count = _segment_photo(image, str(photo), segment, picture, wanted)
        else:
            kept += 1
        records.append(record)
        counts.append(count)
    written = output / "masks.json"
    with whole_file(written) as partial, partial.open("w") as file:
        _gather(records, file)
    return Segmented(counts, broken, written, kept)


def _segment_photo(
    image: np.ndarray, name: str, segment: Callable[[np.ndarray], Masks], picture: Path, made_by: Mapping[str, Any]
) -> int:
    """Writes a photo's picture and, last, its JSON file; the number of masks."""
    masks = segment(image)
    with whole_file(picture) as partial:
        Image.fromarray(overlay(image, masks.rles)).save(partial, "PNG", compress_level=1)  # 6 takes four times as long
    about = {"file_name": name, "height": masks.size[0], "width": masks.size[1]}
    content = {"image": about, "annotations": _annotations(masks), "made_by": made_by}
    write_whole(picture.with_suffix(".json"), json.dumps(content))
    return len(masks)


def _annotations_of(record: Path, made_by: Mapping[str, Any]) -> int | None:
    """The number of masks in a photo's JSON file; None where it is not of this photo and these settings."""
    try:
        content = json.loads(record.read_text())
        return len(content["annotations"]) if content["made_by"] == json.loads(json.dumps(made_by)) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _gather(records: Sequence[Path], file: TextIO) -> None:
    """Writes COCO's layout from the files of the photos, one in memory at a time."""
    images, number = [], 0
    file.write('{"annotations": [')
    for image_id, record in enumerate(records, 1):
        content = json.loads(record.read_text())
        images.append({"id": image_id} | content["image"])
        for annotation in content["annotations"]:
            file.write(", " if number else "")
            number += 1
            file.write(json.dumps(annotation | {"id": number, "image_id": image_id}))
    file.write(f'], "images": {json.dumps(images)}, "categories": {json.dumps([{"id": 1, "name": "object"}])}}}')


def _picture_paths(photos: Sequence[Path], output: Path) -> dict[Path, Path]:
    """A picture for each photo: below ``output`` as the photo is below the folder that all share."""
    folders = [photo.resolve().parent for photo in photos]
    root = Path(os.path.commonpath(folders))
    names = [folder.relative_to(root) / photo.stem for folder, photo in zip(folders, photos, strict=True)]
    times = Counter(names)
    pictures: dict[Path, Path] = {}
    for photo, name in zip(photos, names, strict=True):
        # a photo of two formats keeps their names, and masks.json is the name of all together
        whole = name.with_name(photo.name) if times[name] > 1 or name == Path("masks") else name
        pictures[photo] = output / whole.with_name(f"{whole.name}.png")
    beside = {picture.parent.resolve() for picture in pictures.values()} & set(folders)
    if beside:
        raise ValueError(f"The pictures would be written beside the photos of {beside.pop()}: choose another folder.")
    if len(set(pictures.values())) < len(photos):
        raise ValueError("Two of the photos would be written as one picture: segment them apart.")
    return pictures


def _annotations(masks: Masks) -> list[dict[str, Any]]:
    """COCO annotations of one image, the best first, numbered from 1."""
    results = masks.to_coco(1)
    sizes = areas([result["segmentation"] for result in results]).tolist()
    numbered = enumerate(zip(results, sizes, strict=True), 1)
    return [{"id": i, "area": size, "iscrowd": 0, **result} for i, (result, size) in numbered]
