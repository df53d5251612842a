"""Results files of masks, in COCO's layout: one JSON file, or a folder of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilesamv2.data.annotated_images import AnnotatedImages
from mobilesamv2.data.coco import read_json
from mobilesamv2.masks import to_rle
from mobilesamv2.structures import RLE

Scored = tuple[list[RLE], list[float]]
"""Masks of an image and their scores, in the order of the file."""


def read_results(
    path: str | Path, dataset: AnnotatedImages, *, ignore_others: bool = False
) -> Iterator[tuple[int, Scored]]:
    """Index in the data set, masks and scores of each image that has masks, one file at a time.

    Args:
        path: a JSON list of ``{"image_id", "segmentation", "score"}``, RLE or polygons, or a folder of such files, each
            image's masks in one of them.
        dataset: the images that the results are on.
        ignore_others: pass over results on other images, instead of refusing them.

    Raises:
        FileNotFoundError: there is no such file, or no JSON file in the folder.
        ValueError: not a results file, an unknown image, one in two files, a broken or missing mask, a score that is
            not finite; the sentence names the entry.
    """
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"There is no JSON file in the folder {path}.")
    indices = {image_id: i for i, image_id in enumerate(dataset.image_ids)}
    seen_in: dict[int, Path] = {}
    listing = str(dataset.provenance["annotations"])
    for file in files:
        for image_id, entries in _by_image(file, None if ignore_others else indices, listing).items():
            if image_id not in indices:
                continue
            if image_id in seen_in:
                raise ValueError(f"Image {image_id} has results in {seen_in[image_id]} and in {file}; join them first.")
            seen_in[image_id] = file
            size = dataset.ground_truth(indices[image_id]).size
            yield indices[image_id], _scored(file, image_id, entries, size)


def _by_image(path: Path, known: dict[int, int] | None, listing: str) -> dict[int, list[tuple[int, dict[str, Any]]]]:
    """The entries of a file with their numbers, by image."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not a COCO-results file: it holds a {type(entries).__name__}, not a list.")
    found: dict[int, list[tuple[int, dict[str, Any]]]] = {}
    for i, entry in enumerate(entries):
        name = f"Result number {i} of {path}"
        if not isinstance(entry, dict):
            raise ValueError(f"{name} is a {type(entry).__name__}, not image_id, segmentation and score.")
        missing = [key for key in ("image_id", "segmentation", "score") if key not in entry]
        if missing:
            raise ValueError(f"{name} has no {missing[0]}.")
        image_id, score = entry["image_id"], entry["score"]
        if known is not None and image_id not in known:
            raise ValueError(f"{name} is on image {image_id}, which {listing} does not list, or was not chosen of it.")
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(f"{name}, on image {image_id}, has a score of {score}; scores are finite numbers.")
        found.setdefault(image_id, []).append((i, entry))
    return found


def _scored(path: Path, image_id: int, entries: list[tuple[int, dict[str, Any]]], size: tuple[int, int]) -> Scored:
    rles: list[RLE] = []
    for i, entry in entries:
        try:
            rles.append(to_rle(entry["segmentation"], size))
        except ValueError as error:
            raise ValueError(f"Result number {i} of {path}, on image {image_id}: {error}.") from error
    return rles, [float(entry["score"]) for _, entry in entries]
