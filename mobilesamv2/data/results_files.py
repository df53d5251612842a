"""Readers of results files in COCO's layout: masks from one JSON file or a folder of them, boxes from one file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mobilesamv2.data.base import ImageDataset
from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.coco_images import comparable_name
from mobilesamv2.data.json_files import is_finite_number, json_files_of, read_json, shown, whole_number
from mobilesamv2.masks import to_rles
from mobilesamv2.structures import RLE

_MASK_KEYS, _BOX_KEYS = ("image_id", "segmentation", "score"), ("image_id", "category_id", "bbox", "score")

MERGED_FILE = "masks.json"
"""Name of the file in which ``segment`` merges those of its images."""

Scored = tuple[list[RLE], list[float]]
"""Masks of an image and their scores, in the order of the file."""


class Boxes(NamedTuple):
    """Boxes of a detector on one image.

    Attributes:
        boxes_xyxy: (N, 4) xyxy, pixels of the original image.
        scores: N scores.
        category_ids: N ids of categories.
    """

    boxes_xyxy: Tensor
    scores: list[float]
    category_ids: list[int]


def read_boxes(path: str | Path, dataset: CocoDataset, max_boxes: int | None = None) -> dict[int, Boxes]:
    """Read the boxes of a detector's results file, by image id; boxes on images outside the data set are skipped.

    Args:
        path: a JSON list of ``{"image_id", "category_id", "bbox", "score"}``, boxes in COCO's xywh, or such a list
            under the key ``annotations``; ``images`` and ``image`` of the file count as in ``read_results``.
        dataset: the images.
        max_boxes: keep at most N boxes per image, those with the highest scores; None keeps all.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a file, a box is broken, a score is not finite, or no box is on any of the images.
    """
    if max_boxes is not None and max_boxes < 1:
        raise ValueError(f"max_boxes must be at least 1, or null for all boxes, got {max_boxes}.")
    path, chosen = Path(path), set(dataset.image_ids)
    boxes_by_image: dict[int, Boxes] = {}
    by_image = _by_image(path, read_json(path), dataset, _BOX_KEYS, refuse_others=False)
    for image_id, entries in by_image.items():
        if image_id not in chosen:
            continue
        entries.sort(key=lambda numbered: -numbered[1]["score"])
        entries = entries[:max_boxes]
        boxes = torch.tensor([_box(path, i, entry["bbox"]) for i, entry in entries], dtype=torch.float64)
        boxes[:, 2:] += boxes[:, :2]
        scores = [float(entry["score"]) for _, entry in entries]
        category_ids = [_category(path, i, entry["category_id"], dataset) for i, entry in entries]
        boxes_by_image[image_id] = Boxes(boxes, scores, category_ids)
    if not boxes_by_image:
        raise ValueError(f"{path} has no box on any of the {len(chosen)} images.")
    return boxes_by_image


def _category(path: Path, i: int, category: Any, dataset: CocoDataset) -> int:
    number = whole_number(category)
    if number is None or number not in dataset.category_ids:
        raise ValueError(
            f"Result number {i} of {path} must have a category that the annotations list, got {shown(category)}."
        )
    return number


def _box(path: Path, i: int, box: Any) -> list[float]:
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite_number, box)) or min(box[2:]) < 0:
        raise ValueError(f"Result number {i} of {path} must have a bbox of x, y, width and height, got {shown(box)}.")
    return [float(value) for value in box]


def read_results(
    path: str | Path, dataset: ImageDataset, *, ignore_others: bool = False
) -> Iterator[tuple[int, Scored]]:
    """Yield the index in the data set, masks and scores of each image that has masks, one file at a time.

    Args:
        path: a JSON list of ``{"image_id", "segmentation", "score"}``, RLE or polygons, or such a list under the key
            ``annotations``, as ``mobilesamv2 segment`` writes it; or a folder of such files, each image's masks in one
            of them. Where a file lists ``images`` of its own, or is of one ``image``, their file names count, not the
            ids. Files of one image that a ``masks.json`` beside them lists are passed over.
        dataset: the images of the results.
        ignore_others: skip results on other images, instead of refusing them.

    Raises:
        FileNotFoundError: if there is no such file, or no JSON file in the folder.
        ValueError: if it is not a results file, an image is unknown or in two files, a mask is broken or missing, or a
            score is not finite.
    """
    path = Path(path)
    files = json_files_of(path)
    if not files:
        raise FileNotFoundError(f"There is no JSON file in the folder {path}.")
    merged = _names_in(path / MERGED_FILE) if len(files) > 1 and path / MERGED_FILE in files else set()
    indices = {image_id: i for i, image_id in enumerate(dataset.image_ids)}
    seen_in: dict[int, Path] = {}
    for file in files:
        content = read_json(file)
        if _is_of_one_image(content) and _name_of(content["image"]) in merged:
            continue
        by_image = _by_image(file, content, dataset, _MASK_KEYS, refuse_others=not ignore_others)
        for image_id, entries in by_image.items():
            if image_id not in indices:
                continue
            if image_id in seen_in:
                raise ValueError(
                    f"Image {image_id} has results in {seen_in[image_id]} and in {file}; merge them into one file."
                )
            seen_in[image_id] = file
            i = indices[image_id]
            yield i, _scored(file, image_id, entries, dataset.size_of(i))


Entries = list[tuple[int, dict[str, Any]]]
"""Entries of a results file with their numbers."""


def _by_image(
    path: Path, content: Any, dataset: ImageDataset, keys: tuple[str, ...], refuse_others: bool
) -> dict[int, Entries]:
    """Return the entries of a file by image; unless ``refuse_others``, on images outside the data set too."""
    entries, ids = _entries(path, content, dataset)
    chosen = set(dataset.image_ids) if refuse_others else None
    by_image: dict[int, Entries] = {}
    for i, entry in enumerate(entries):
        name = f"Result number {i} of {path}"
        if not isinstance(entry, dict):
            raise ValueError(f"{name} must be an object with {', '.join(keys)}, got {type(entry).__name__}.")
        missing = [key for key in keys if key not in entry]
        if missing:
            raise ValueError(f"{name} has no {missing[0]}.")
        image_id, score = whole_number(entry["image_id"]), entry["score"]
        if image_id is None:
            raise ValueError(f"{name} must have an integer image_id, got {shown(entry['image_id'])}.")
        if ids is not None:
            image_id = ids.get(image_id)
        if image_id is None or (chosen is not None and image_id not in chosen):
            if not refuse_others:
                continue
            listing = dataset.provenance["annotations"]
            got = shown(entry["image_id"])
            raise ValueError(f"{name} must be on an image of {listing} that is evaluated, got image {got}.")
        if not is_finite_number(score):
            raise ValueError(f"{name}, on image {image_id}, must have a finite score, got {shown(score)}.")
        by_image.setdefault(image_id, []).append((i, entry))
    return by_image


def _names_in(path: Path) -> set[str | None]:
    """Return the file names of the images that a results file lists; it may list none."""
    content = read_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    return {_name_of(image) for image in images} - {None} if isinstance(images, list) else set()


def _name_of(image: Any) -> str | None:
    name = image.get("file_name") if isinstance(image, dict) else None
    return name if isinstance(name, str) else None


def _is_of_one_image(content: Any) -> bool:
    """Return whether a file has SA-1B's layout, with one ``image``, as ``segment`` writes it for each of its images."""
    return isinstance(content, dict) and "image" in content and content.get("images") is None


def _entries(path: Path, content: Any, dataset: ImageDataset) -> tuple[list[Any], dict[int, int] | None]:
    """Return the entries of a file, and the data set's image ids by the file's, where it lists images of its own."""
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        kind = "an object without a list 'annotations'" if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} is not a COCO results file: it must contain a list, got {kind}.")
    images = content.get("images") if isinstance(content, dict) else None
    if _is_of_one_image(content):
        image = content["image"]
        images = [{**image, "id": 1} if isinstance(image, dict) else image]
        entries = [{**entry, "image_id": 1} if isinstance(entry, dict) else entry for entry in entries]
    return entries, None if images is None else _ids_by_name(path, images, dataset)


@lru_cache(maxsize=1)  # a folder may hold a file for each image
def _ids_of_names(dataset: ImageDataset) -> dict[str, list[tuple[str, int]]]:
    """Return the names, from the root of the images on, and ids of a data set's images by their last part."""
    by_name: dict[str, list[tuple[str, int]]] = {}
    for index, image_id in enumerate(dataset.image_ids):
        name = f"/{dataset.file_name(index) or ''}"
        by_name.setdefault(comparable_name(name).rpartition("/")[2], []).append((name, image_id))
    return by_name


def _ids_by_name(path: Path, images: Any, dataset: ImageDataset) -> dict[int, int]:
    """Return the data set's image ids by those of a results file, which numbers its images itself, by file names."""
    by_name = _ids_of_names(dataset)
    if set(by_name) <= {""}:
        raise ValueError(
            f"{path} lists images of its own, and the data set has no file names to find them by: write its "
            "annotations as a list, with the data set's image ids."
        )
    ids: dict[int, int] = {}
    named: set[int] = set()
    for image in images if isinstance(images, list) else [None]:
        number = whole_number(image.get("id")) if isinstance(image, dict) else None
        name = image.get("file_name") if isinstance(image, dict) else None
        if number is None or not isinstance(name, str):
            raise ValueError(f"{path} must have an integer id and a file_name for each image, got {shown(image)}.")
        name = f"/{name}"
        same_name = by_name.get(comparable_name(name).rpartition("/")[2], [])
        alike = same_name if len(same_name) == 1 else _in_the_same_folder(name, same_name)
        if len(alike) == 1:
            if alike[0][1] in named:
                got = f"two that {alike[0][0][1:]} may be: keep the folders in their names"
                raise ValueError(f"{path} must name each image once, got {got}.")
            ids[number] = alike[0][1]
            named.add(alike[0][1])
        elif same_name:
            got = f"{shown(name[1:])}, the name of {len(same_name)}"
            raise ValueError(f"{path} must name each image by a path that one image of the data set has, got {got}.")
    return ids


def _in_the_same_folder(name: str, known: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return those of some images that a path may be of; of several that differ in a suffix's case, the very one."""
    comparable = comparable_name(name)
    alike = [image for image in known if comparable.endswith(comparable_name(image[0]))]
    exact = [image for image in alike if name.replace("\\", "/").endswith(image[0].replace("\\", "/"))]
    return exact if len(exact) == 1 else alike


def _scored(path: Path, image_id: int, entries: list[tuple[int, dict[str, Any]]], size: tuple[int, int]) -> Scored:
    scores = [float(entry["score"]) for _, entry in entries]
    segmentations = [entry["segmentation"] for _, entry in entries]
    return to_rles(
        segmentations, size, lambda i: f"Result number {entries[i][0]} of {path}, on image {image_id}"
    ), scores
