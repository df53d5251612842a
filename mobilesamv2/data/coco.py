"""Annotations in COCO's layout."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mobilesamv2.data.annotated_images import AnnotatedImages, choose_images
from mobilesamv2.data.images import read_rgb
from mobilesamv2.data.provenance import sha256_of
from mobilesamv2.masks import to_rles
from mobilesamv2.structures import GroundTruth

MOST_PIXELS = 2**31 - 1
"""Of an image: run lengths are numbers of 32 bits."""


class CocoDataset(AnnotatedImages):
    """Images with their annotated objects, in the order of the annotation file.

    Args:
        annotations: a JSON file in COCO's layout: ``images``, ``annotations`` and ``categories``.
        images: the folder of the images; None where only the annotations are read.
        limit: at most so many images, or below 1 that share of them; None keeps all.
        subset_seed: draws them at random; None keeps the first.
        image_list: a text file of image ids, one a line; only these are kept.

    Raises:
        FileNotFoundError: the file, the folder or the list is not there.
        ValueError: the file is not in COCO's layout; the sentence names the entry.
    """

    published = "COCO is published at https://cocodataset.org/#download."
    """Where users of this class find its files."""

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None = None,
        limit: float | None = None,
        subset_seed: int | None = None,
        image_list: str | Path | None = None,
    ) -> None:
        self.require_files({"annotations": annotations, "images": images})
        self.annotations = Path(annotations)
        self.images = None if images is None else Path(images)
        content = read_json(self.annotations)
        if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
            raise ValueError(f"{self.annotations} is not in COCO's layout: it has no 'images' and 'annotations'.")
        lists = {key: content[key] for key in ("images", "annotations")}
        lists["categories"] = content.get("categories") or []
        for key, entries in lists.items():
            if not isinstance(entries, list):
                raise ValueError(f"{self.annotations} is not in COCO's layout: its '{key}' are no list.")
        records = self._checked_images(content["images"])
        self.records = [records[i] for i in choose_images([r["id"] for r in records], limit, subset_seed, image_list)]
        self._frequencies = self._checked_categories(lists["categories"])
        self.category_ids = set(self._frequencies)
        self._objects = self._checked_objects(content["annotations"], {r["id"] for r in content["images"]})

    @classmethod
    def require_files(cls, settings: Mapping[str, Any]) -> None:
        """Nothing, if the annotation file and the folder of images are there.

        Args:
            settings: what the data set is to be built with; images may be None.

        Raises:
            FileNotFoundError: naming what is missing, and where it is published.
        """
        annotations, images = settings["annotations"], settings.get("images")
        missing = [] if Path(annotations).is_file() else [f"There is no annotation file {annotations}."]
        if images is not None and not Path(images).is_dir():
            missing.append(f"There is no folder of images {images}.")
        if missing:
            hint = "Other places are named with dataset.annotations=FILE and dataset.images=FOLDER."
            raise FileNotFoundError("\n".join([*missing, cls.published, hint]))

    @property
    def image_ids(self) -> list[int]:
        """Ids of the images, in order."""
        return [record["id"] for record in self.records]

    @property
    def provenance(self) -> dict[str, Any]:
        """The annotation file, its SHA-256, and the folder of the images."""
        return {
            "annotations": str(self.annotations),
            "annotations_sha256": self._sha256,
            "images": None if self.images is None else str(self.images),
        }

    @cached_property
    def _sha256(self) -> str:
        return sha256_of([self.annotations])

    def load_image(self, index: int) -> np.ndarray:
        """RGB uint8 (H, W, 3).

        Raises:
            FileNotFoundError: the image is not there.
            ValueError: it can't be decoded, or its size disagrees with the annotation file.
        """
        record = self.records[index]
        path = self._find(record)
        image = read_rgb(path, str(path))
        stated = self.size_of(index)
        if image.shape[:2] != stated:
            raise ValueError(f"{path} is {image.shape[:2]} (height, width), and {self.annotations} says {stated}.")
        return image

    def stored_image(self, index: int) -> tuple[str, bytes]:
        """The image's file.

        Raises:
            FileNotFoundError: the image is not there.
        """
        path = self._find(self.records[index])
        return path.suffix, path.read_bytes()

    def ground_truth(self, index: int) -> GroundTruth:
        """The objects of an image, without crowds and ignored ones.

        Raises:
            ValueError: a segmentation is broken; the sentence names the annotation.
        """
        record, size = self.records[index], self.size_of(index)
        objects = [o for o in self._objects[record["id"]] if not o.get("iscrowd") and not o.get("ignore")]
        return GroundTruth(
            image_id=record["id"],
            size=size,
            rles=to_rles(
                [o["segmentation"] for o in objects],
                size,
                lambda i: f"Annotation {objects[i].get('id')} of {self.annotations}",
            ),
            areas=[float(o["area"]) for o in objects],
            frequencies=[self._frequencies.get(o.get("category_id")) for o in objects],
        )

    def size_of(self, index: int) -> tuple[int, int]:
        """(H, W) of an image, pixels."""
        return self.records[index]["height"], self.records[index]["width"]

    def check_images(self) -> None:
        """Nothing, if every image is there.

        Raises:
            FileNotFoundError: an image is missing; the sentence names the first one and says how many are.
        """
        missing = [record for record in self.records if not any(path.is_file() for path in self.paths(record))]
        if missing:
            try:
                self._find(missing[0])
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{error} {len(missing)} of {len(self)} images are missing.") from None

    def paths(self, record: dict[str, Any]) -> list[Path]:
        """Where the image of a record may lie, the likeliest first."""
        return [self.images / record["file_name"]] if self.images is not None and "file_name" in record else []

    def _find(self, record: dict[str, Any]) -> Path:
        candidates = self.paths(record)
        for path in candidates:
            if path.is_file():
                return path
        places = " and ".join(map(str, candidates)) or "nothing, since it has no file_name"
        raise FileNotFoundError(f"Image {record['id']} of {self.annotations} is missing; looked for {places}.")

    def _checked_images(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen: set[int] = set()
        for i, record in enumerate(records):
            name = f"Image number {i} of {self.annotations}"
            if not isinstance(record, dict):
                raise ValueError(f"{name} is a {type(record).__name__}, not id, height and width.")
            for key, least in (("id", -(2**63)), ("height", 1), ("width", 1)):
                value = record.get(key)
                if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
                    raise ValueError(f"{name} has no {key}, or one that is no such number: {value}.")
            for key in ("file_name", "coco_url"):
                if not isinstance(record.get(key, ""), str):
                    raise ValueError(f"{name} has a {key} that is no text: {record[key]}.")
            if record["height"] * record["width"] > MOST_PIXELS:
                size = f"{record['height']} x {record['width']}"
                raise ValueError(f"{name} is {size} pixels, more than a mask can count.")
            if record["id"] in seen:
                raise ValueError(f"{self.annotations} has two images of id {record['id']}.")
            seen.add(record["id"])
        return records

    def _checked_categories(self, categories: list[Any]) -> dict[int | None, str | None]:
        """The frequency of each category by its id; None where it is not said."""
        frequencies: dict[int | None, str | None] = {}
        for i, category in enumerate(categories):
            if not isinstance(category, dict) or not isinstance(category.get("id"), int):
                raise ValueError(f"Category number {i} of {self.annotations} has no id that is a number: {category}.")
            frequencies[category["id"]] = category.get("frequency")
        return frequencies

    def _checked_objects(self, objects: list[dict[str, Any]], known: set[int]) -> dict[int, list[dict[str, Any]]]:
        by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for i, annotation in enumerate(objects):
            if not isinstance(annotation, dict):
                raise ValueError(f"Annotation number {i} of {self.annotations} is a {type(annotation).__name__}.")
            name = f"Annotation {annotation.get('id', f'number {i}')} of {self.annotations}"
            missing = [key for key in ("image_id", "segmentation", "area") if key not in annotation]
            if missing:
                raise ValueError(f"{name} has no {missing[0]}.")
            if not isinstance(annotation["image_id"], int) or annotation["image_id"] not in known:
                raise ValueError(f"{name} is on image {annotation['image_id']}, which the file does not list.")
            if not is_finite_number(annotation["area"]) or annotation["area"] < 0:
                raise ValueError(f"{name} has an area that is no number of pixels: {annotation['area']}.")
            if not isinstance(annotation.get("category_id"), int | None):
                raise ValueError(f"{name} has a category_id that is no number: {annotation['category_id']}.")
            by_image[annotation["image_id"]].append(annotation)
        return by_image


def is_finite_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise ValueError(f"{path} is not valid JSON: {error}") from error
