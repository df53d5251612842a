"""Annotations in COCO's layout."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from mobilesamv2.data.base import ImageDataset, choose_images
from mobilesamv2.data.coco_annotations import CocoAnnotations, evaluator_content, pack_polygons
from mobilesamv2.data.coco_images import CocoImages, find_file, paths_of
from mobilesamv2.data.images import (
    MAX_DECODED_PIXELS,
    check_decoding,
    checksum_of_blocks,
    decoding_record,
    file_signature,
    read_rgb,
    suffix_to_copy,
)
from mobilesamv2.data.json_files import read_json, shown, whole_number
from mobilesamv2.data.orientation import Upright, mismatch_note
from mobilesamv2.data.pixel_values import ValueRange
from mobilesamv2.files import sha256_of
from mobilesamv2.masks import areas
from mobilesamv2.ranges import Count, NonNegativeInt, Positive
from mobilesamv2.structures import GroundTruth

logger = logging.getLogger(__name__)


class CocoDataset(ImageDataset):
    """Images with their annotated objects, in the order of the annotation file.

    All annotations are checked when the file is read. They are kept in a few flat buffers, which the workers of a
    loader share.

    Args:
        annotations: a JSON file in COCO's layout, ``.json`` or ``.json.gz``: ``images``, ``annotations`` and
            ``categories``.
        images: the folder of the images; None where only the annotations are read.
        limit: at most N images, or below 1 that share of them; None keeps all.
        subset_seed: draws them at random; None keeps the first.
        image_list: text file with one image id per line; only these images are kept.
        upright: turn images as their EXIF orientation says; see ``Upright``.
        value_range: the values that become 0 and 255 in images of more than 8 bits; None is the rule of ``to_rgb``.
        max_pixels: an image of more is refused.
        bad_annotations: ``error`` refuses a file with annotations that can't be used, ``leave_out`` leaves them out,
            and ``provenance`` counts them.
        crowds: ``count`` takes annotations with ``iscrowd`` as objects, which AP and AR@K leave out.

    Raises:
        FileNotFoundError: if the file, the folder or the list is missing.
        ValueError: if the file is not in COCO's layout, has annotations that can't be used, or a setting is invalid.
    """

    published = "COCO is published at https://cocodataset.org/#download."
    """Where the files are published, for error messages."""

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None = None,
        limit: Positive | None = None,
        subset_seed: NonNegativeInt | None = None,
        image_list: str | Path | None = None,
        upright: Upright = "auto",
        value_range: ValueRange | None = None,
        max_pixels: Count = MAX_DECODED_PIXELS,
        bad_annotations: Literal["error", "leave_out"] = "error",
        crowds: Literal["leave_out", "count"] = "leave_out",
    ) -> None:
        if bad_annotations not in ("error", "leave_out"):
            raise ValueError(f"bad_annotations must be error or leave_out, got {bad_annotations!r}.")
        if crowds not in ("leave_out", "count"):
            raise ValueError(f"crowds must be leave_out or count, got {crowds!r}.")
        check_decoding(upright, value_range, max_pixels)
        self.upright: Upright = upright
        self.value_range = value_range
        self.max_pixels = max_pixels
        self.require_files({"annotations": annotations, "images": images})
        self.annotations = Path(annotations)
        self.images = None if images is None else Path(images)
        self.bad_annotations = bad_annotations
        self.crowds = crowds
        content = read_json(self.annotations, pack_polygons)
        if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
            raise ValueError(f"{self.annotations} is not in COCO's layout: missing 'images' or 'annotations'.")
        lists = {key: content[key] for key in ("images", "annotations")}
        lists["categories"] = content.get("categories") or []
        for key, entries in lists.items():
            if not isinstance(entries, list):
                found = type(entries).__name__
                raise ValueError(f"{self.annotations} is not in COCO's layout: '{key}' must be a list, got {found}.")
        self._listed = CocoImages(content["images"], self.annotations)
        if not self._listed.ids:
            raise ValueError(f"{self.annotations} lists no image: the data set is empty.")
        self._rows = choose_images(self._listed.ids, limit, subset_seed, image_list)
        self._ids = [self._listed.ids[row] for row in self._rows]
        self._frequencies = self._checked_categories(lists["categories"])
        self.category_ids = set(self._frequencies)
        self._objects = CocoAnnotations(
            content["annotations"], self._listed, self.annotations, count_crowds=crowds == "count"
        )
        self._refuse_faults()
        self._report()

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
        return self._ids

    @property
    @override
    def provenance(self) -> dict[str, Any]:
        """Return the file, its SHA-256, how many annotations are left out or incomplete, and the images' folder."""
        return {
            "annotations": str(self.annotations),
            "annotations_sha256": self._sha256,
            "annotations_left_out": self._objects.faults.counts,
            "annotations_without_area": self._objects.num_without_area,
            "annotations_without_mask": self._objects.num_boxes,
            "images": None if self.images is None else str(self.images),
            **({"crowds": self.crowds} if self.crowds == "count" else {}),
            **decoding_record(self.upright, self.value_range),
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
        path = self._find(index)
        expected = self.size_of(index)
        image = read_rgb(path, str(path), self.upright, self.value_range, self.max_pixels, lambda: expected)
        if image.shape[:2] != expected:
            raise ValueError(
                f"{path} must have the (height, width) {expected} that {self.annotations} lists, got {image.shape[:2]}."
                + mismatch_note(path, self.upright)
            )
        return image

    @override
    def stored_image(self, index: int) -> tuple[str, bytes]:
        """Return the suffix and the content of an image's file, or a PNG of what ``load_image`` returns.

        It is a PNG where other programs would read the file in another way; see ``suffix_to_copy``.

        Raises:
            FileNotFoundError: if the image is missing.
            ValueError: if it is written anew and can't be decoded.
        """
        path = self._find(index)
        suffix = suffix_to_copy(path, path.suffix)
        return super().stored_image(index) if suffix is None else (suffix, path.read_bytes())

    @override
    def signature(self, index: int) -> str:
        return file_signature(self._find(index).stat().st_size, self.upright, self.value_range)

    @override
    def pixel_signature(self, index: int) -> str:
        annotated = f", annotated {self.size_of(index)}" if self.upright == "auto" else ""  # which decides how it lies
        return self.signature(index) + annotated + checksum_of_blocks(self._find(index))

    @override
    def content_hash(self, index: int) -> str:
        return sha256_of([self._find(index)])

    @override
    def ground_truth(self, index: int) -> GroundTruth:
        size = self.size_of(index)
        rles, given_areas, categories = self._objects.objects_of(self._rows[index], size)
        if any(area != area for area in given_areas):  # NaN
            pairs = zip(given_areas, areas(rles).tolist(), strict=True)
            given_areas = [float(pixels) if area != area else area for area, pixels in pairs]
        frequencies = [self._frequencies.get(category) for category in categories]
        return GroundTruth(self._ids[index], size, rles, given_areas, frequencies)

    @override
    def size_of(self, index: int) -> tuple[int, int]:
        return self._listed.size(self._rows[index])

    @override
    def file_name(self, index: int) -> str | None:
        return self._listed.file_name(self._rows[index]) or None

    @override
    def require_masks(self) -> None:
        boxes, total = self._objects.num_boxes, self._objects.num_objects
        if not boxes:
            return
        if boxes == total:
            raise ValueError(
                f"{self.annotations} must have masks for this task, got {boxes:,} boxes without a segmentation. "
                "Distillation (but task=tinysam), detectors (task=detect, task=evaluate_detector) and prompt heads "
                "(task=train_prompt_head prompt_sampler=null) need none."
            )
        self._objects.drop_boxes()
        self._refuse_faults()
        logger.warning("%s objects of %s have a box and no mask, and are left out.", f"{boxes:,}", self.annotations)

    def evaluator_content(self) -> dict[str, Any]:
        """Read the file anew, as pycocotools and lvis-api require it, without the annotations that are left out."""
        return evaluator_content(read_json(self.annotations), self._listed, self._objects.faults.numbers)

    @override
    def check_images(self) -> None:
        """Check that every image exists.

        Raises:
            FileNotFoundError: if an image is missing; the message contains the first one and how many are missing.
        """
        missing = [index for index in range(len(self)) if find_file(self.paths(index)) is None]
        if missing:
            try:
                self._find(missing[0])
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{error} {len(missing)} of {len(self)} images are missing.") from None

    def paths(self, index: int) -> list[Path]:
        """Return where an image's file may lie, the likeliest path first."""
        return [] if self.images is None else paths_of(self._listed.file_name(self._rows[index]), self.images)

    def _find(self, index: int) -> Path:
        candidates = self.paths(index)
        found = find_file(candidates)
        if found is None:
            tried = " and ".join(map(str, candidates)) or "nothing, since it has no file_name"
            raise FileNotFoundError(f"Image {self._ids[index]} of {self.annotations} is missing; looked for {tried}.")
        return found

    def _refuse_faults(self) -> None:
        """Raise an error that lists the annotations that can't be used, unless they are to be left out."""
        if self._objects.faults and self.bad_annotations == "error":
            way_out = "Repair them, or leave them out, counted in the result: dataset.bad_annotations=leave_out."
            raise ValueError("\n".join([*self._objects.faults.lines(), way_out]))

    def _report(self) -> None:
        """Log what is left out of the file, or is not in it."""
        objects = self._objects
        if objects.faults:
            logger.warning("\n".join([*objects.faults.lines(), "They are left out."]))
        of = f"of the {objects.num_objects:,} objects of {self.annotations}"
        if objects.num_without_area:
            logger.warning("%s %s have no area; it is counted in their masks.", f"{objects.num_without_area:,}", of)
        if objects.num_boxes:
            box = "have no segmentation; the pixels of their bbox are their mask where a task needs no other"
            logger.warning("%s %s %s.", f"{objects.num_boxes:,}", of, box)

    def _checked_categories(self, categories: list[Any]) -> dict[int | None, str | None]:
        """Return the frequency of each category by its id; None where the file has none."""
        frequencies: dict[int | None, str | None] = {}
        for i, category in enumerate(categories):
            category_id = whole_number(category.get("id")) if isinstance(category, dict) else None
            if category_id is None:
                got = shown(category.get("id") if isinstance(category, dict) else category)
                raise ValueError(f"Category number {i} of {self.annotations} must have an integer id, got {got}.")
            frequencies[category_id] = category.get("frequency")
        return frequencies
