"""Annotations in COCO's layout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from mobilesamv2.data.base import ImageDataset, choose_images
from mobilesamv2.data.images import read_rgb
from mobilesamv2.data.json_files import is_finite_number, read_json
from mobilesamv2.files import sha256_of
from mobilesamv2.masks import to_rles
from mobilesamv2.structures import GroundTruth

MAX_PIXELS = 2**31 - 1
"""Pixels of an image; run lengths are 32-bit integers."""


class CocoDataset(ImageDataset):
    """Images with their annotated objects, in the order of the annotation file.

    Args:
        annotations: a JSON file in COCO's layout: ``images``, ``annotations`` and ``categories``.
        images: the folder of the images; None where only the annotations are read.
        limit: at most N images, or below 1 that share of them; None keeps all.
        subset_seed: draws them at random; None keeps the first.
        image_list: text file with one image id per line; only these images are kept.

    Raises:
        FileNotFoundError: if the file, the folder or the list is missing.
        ValueError: if the file is not in COCO's layout.
    """

    published = "COCO is published at https://cocodataset.org/#download."
    """Where the files are published, for error messages."""

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
            raise ValueError(f"{self.annotations} is not in COCO's layout: missing 'images' or 'annotations'.")
        lists = {key: content[key] for key in ("images", "annotations")}
        lists["categories"] = content.get("categories") or []
        for key, entries in lists.items():
            if not isinstance(entries, list):
                found = type(entries).__name__
                raise ValueError(f"{self.annotations} is not in COCO's layout: '{key}' must be a list, got {found}.")
        records = self._checked_images(content["images"])
        if not records:
            raise ValueError(f"{self.annotations} lists no image: the data set is empty.")
        self.records = [records[i] for i in choose_images([r["id"] for r in records], limit, subset_seed, image_list)]
        self._frequencies = self._checked_categories(lists["categories"])
        self.category_ids = set(self._frequencies)
        self._objects = self._checked_objects(content["annotations"], {r["id"] for r in content["images"]})

    @classmethod
    @override
    def require_files(cls, settings: Mapping[str, Any]) -> None:
        annotations, images = settings["annotations"], settings.get("images")
        missing = [] if Path(annotations).is_file() else [f"There is no annotation file {annotations}."]
        if images is not None and not Path(images).is_dir():
            missing.append(f"There is no folder of images {images}.")
        if missing:
            hint = "Set other paths with dataset.annotations=FILE and dataset.images=FOLDER."
            raise FileNotFoundError("\n".join([*missing, cls.published, hint]))

    @property
    @override
    def image_ids(self) -> list[int]:
        return [record["id"] for record in self.records]

    @property
    @override
    def provenance(self) -> dict[str, Any]:
        """Return the annotation file, its SHA-256, and the folder of the images."""
        return {
            "annotations": str(self.annotations),
            "annotations_sha256": self._sha256,
            "images": None if self.images is None else str(self.images),
        }

    @cached_property
    def _sha256(self) -> str:
        return sha256_of([self.annotations])

    @override
    def load_image(self, index: int) -> np.ndarray:
        """Load an image, RGB uint8 (H, W, 3).

        Raises:
            FileNotFoundError: if the image is missing.
            ValueError: if it can't be decoded, or its size is not that of the annotation file.
        """
        record = self.records[index]
        path = self._find(record)
        image = read_rgb(path, str(path))
        expected = self.size_of(index)
        if image.shape[:2] != expected:
            raise ValueError(
                f"{path} must have the (height, width) {expected} that {self.annotations} lists, got {image.shape[:2]}."
            )
        return image

    @override
    def stored_image(self, index: int) -> tuple[str, bytes]:
        """Return the suffix and the content of an image's file.

        Raises:
            FileNotFoundError: if the image is missing.
        """
        path = self._find(self.records[index])
        return path.suffix, path.read_bytes()

    @override
    def ground_truth(self, index: int) -> GroundTruth:
        """Return the objects of an image, without crowds and ignored ones.

        Raises:
            ValueError: if a segmentation is broken.
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

    @override
    def size_of(self, index: int) -> tuple[int, int]:
        return self.records[index]["height"], self.records[index]["width"]

    @override
    def check_images(self) -> None:
        """Check that every image exists.

        Raises:
            FileNotFoundError: if an image is missing; the message contains the first one and how many are missing.
        """
        missing = [record for record in self.records if not any(path.is_file() for path in self.paths(record))]
        if missing:
            try:
                self._find(missing[0])
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{error} {len(missing)} of {len(self)} images are missing.") from None

    def paths(self, record: dict[str, Any]) -> list[Path]:
        """Return where the image of a record may lie, the likeliest path first."""
        return [self.images / record["file_name"]] if self.images is not None and "file_name" in record else []

    def _find(self, record: dict[str, Any]) -> Path:
        candidates = self.paths(record)
        for path in candidates:
            if path.is_file():
                return path
        tried = " and ".join(map(str, candidates)) or "nothing, since it has no file_name"
        raise FileNotFoundError(f"Image {record['id']} of {self.annotations} is missing; looked for {tried}.")

    def _checked_images(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen: set[int] = set()
        for i, record in enumerate(records):
            name = f"Image number {i} of {self.annotations}"
            if not isinstance(record, dict):
                raise ValueError(f"{name} must be an object with id, height and width, got {type(record).__name__}.")
            for key, minimum in (("id", -(2**63)), ("height", 1), ("width", 1)):
                value = record.get(key)
                if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value < 2**63:
                    kind = "64-bit integer" if minimum < 0 else "positive 64-bit integer"
                    raise ValueError(f"{name} must have a {kind} as {key}, got {value}.")
            for key in ("file_name", "coco_url"):
                if not isinstance(record.get(key, ""), str):
                    raise ValueError(f"{name} must have a string as {key}, got {record[key]}.")
            if record["height"] * record["width"] > MAX_PIXELS:
                size = f"{record['height']} x {record['width']}"
                raise ValueError(f"{name} must have at most {MAX_PIXELS} pixels, for 32-bit run lengths, got {size}.")
            if record["id"] in seen:
                raise ValueError(f"{self.annotations} has two images of id {record['id']}.")
            seen.add(record["id"])
        return records

    def _checked_categories(self, categories: list[Any]) -> dict[int | None, str | None]:
        """Return the frequency of each category by its id; None where the file has none."""
        frequencies: dict[int | None, str | None] = {}
        for i, category in enumerate(categories):
            if not isinstance(category, dict) or not isinstance(category.get("id"), int):
                raise ValueError(f"Category number {i} of {self.annotations} must have an integer id, got {category}.")
            frequencies[category["id"]] = category.get("frequency")
        return frequencies

    def _checked_objects(self, objects: list[dict[str, Any]], image_ids: set[int]) -> dict[int, list[dict[str, Any]]]:
        by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for i, annotation in enumerate(objects):
            if not isinstance(annotation, dict):
                kind = type(annotation).__name__
                raise ValueError(f"Annotation number {i} of {self.annotations} must be an object, got {kind}.")
            name = f"Annotation {annotation.get('id', f'number {i}')} of {self.annotations}"
            missing = [key for key in ("image_id", "segmentation", "area") if key not in annotation]
            if missing:
                raise ValueError(f"{name} has no {missing[0]}.")
            if not isinstance(annotation["image_id"], int) or annotation["image_id"] not in image_ids:
                raise ValueError(f"{name} is on image {annotation['image_id']}, which the file does not list.")
            if not is_finite_number(annotation["area"]) or annotation["area"] < 0:
                raise ValueError(f"{name} must have an area of 0 or more square pixels, got {annotation['area']}.")
            if not isinstance(annotation.get("category_id"), int | None):
                raise ValueError(f"{name} must have an integer as category_id, got {annotation['category_id']}.")
            by_image[annotation["image_id"]].append(annotation)
        return by_image
