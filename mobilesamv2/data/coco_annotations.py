"""The annotations of a file in COCO's layout: all checked when they are read, and kept in flat buffers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mobilesamv2.data.annotation_faults import Faults
from mobilesamv2.data.coco_images import CocoImages
from mobilesamv2.data.json_files import is_finite_number, shown, whole_number
from mobilesamv2.data.packed import PackedMasks, Segmentation, starts_of
from mobilesamv2.masks import areas, coordinate_bound, outline_bound, polygon_pieces, to_rle
from mobilesamv2.rle_validation import counts_are_valid
from mobilesamv2.structures import RLE

NO_NUMBER = np.iinfo(np.int64).min
"""Stands for an id that an annotation does not have."""

COORDINATES_FAULT = "polygon coordinates that are not finite, or lie far outside the image"
OUTLINE_FAULT = "polygons whose outline is longer than the pixels of the image"
RLE_FAULT = "an RLE that is broken, or not of its image's size"
BOX_FAULT = "a box and no mask"


class _BrokenPolygons(NamedTuple):
    """Takes the place of a segmentation that is no list of polygons."""

    must: str
    got: str


class _FaultError(Exception):
    """Why an annotation can't be used."""

    def __init__(self, kind: str, got: str) -> None:
        super().__init__(kind)
        self.kind = kind
        self.got = got


class _Annotation(NamedTuple):
    """A checked annotation; ``row`` is the index of its image, and NaN the area of one that has none."""

    row: int
    area: float
    category: int
    is_counted: bool  # neither ignored nor a crowd, unless crowds count
    is_box: bool
    segmentation: Segmentation


def pack_polygons(content: dict[str, Any]) -> dict[str, Any]:
    """Replace an annotation's polygons by arrays as soon as it is read: lists of numbers take four times the memory."""
    segmentation = content.get("segmentation")
    if isinstance(segmentation, list) and not _is_empty(segmentation):
        try:
            content["segmentation"] = polygon_pieces(segmentation)
        except ValueError as error:
            must, _, got = str(error).partition(", got ")
            content["segmentation"] = _BrokenPolygons(must, got)
    return content


class CocoAnnotations:
    """The objects that count, by image: all but ignored ones and, unless they are to count, crowds.

    An object without a segmentation, or with an empty one, has the pixels of its bbox as its mask.

    Args:
        annotations: of the file, read with ``pack_polygons``; the list is emptied, to free its memory.
        images: of the file.
        file: its path, for error messages.
        count_crowds: crowds are objects too.
    """

    def __init__(self, annotations: list[Any], images: CocoImages, file: Path, count_crowds: bool = False) -> None:
        self.faults = Faults(file, len(annotations))
        """Annotations that can't be used, and are left out."""
        row_of = {image_id: row for row, image_id in enumerate(images.ids)}
        found: list[_Annotation] = []
        numbers: list[tuple[int, int]] = []
        for number, annotation in enumerate(annotations):
            annotations[number] = None
            annotation_id = annotation.get("id") if isinstance(annotation, dict) else None
            try:
                found.append(_checked(annotation, row_of, images, count_crowds))
            except _FaultError as fault:
                self.faults.add(fault.kind, number, annotation_id, fault.got)
                continue
            whole = whole_number(annotation_id)
            numbers.append((number, NO_NUMBER if whole is None else whole))
        self._numbers, self._ids = np.array(numbers, dtype=np.int64).reshape(-1, 2).T
        self._rows = np.array([o.row for o in found], dtype=np.int64)
        self._areas = np.array([o.area for o in found], dtype=np.float64)
        self._categories = np.array([o.category for o in found], dtype=np.int64)
        self._is_box = np.array([o.is_box for o in found], dtype=bool)
        self._counts = np.array([o.is_counted for o in found], dtype=bool)
        self._masks = PackedMasks([o.segmentation for o in found])
        bounds = np.array([coordinate_bound(images.size(row)) for row in range(len(images))], dtype=np.float64)
        extents = self._masks.extents()
        far = ~(extents <= bounds[self._rows])
        self._drop(far, COORDINATES_FAULT, ", ".join(f"{extent:g}" for extent in extents[far][:1]))
        bounds = np.array([outline_bound(images.size(row)) for row in range(len(images))], dtype=np.float64)
        outlines = self._masks.outlines()
        long = ~far & (outlines > bounds[self._rows])
        self._drop(long, OUTLINE_FAULT, ", ".join(f"{outline:,.0f}" for outline in outlines[long][:1]))
        self._drop(self._broken_rles(images), RLE_FAULT, "run lengths that do not add up to the image's pixels")
        self._num_images = len(images)
        self._sort()

    @property
    def num_objects(self) -> int:
        """Return the number of objects that count."""
        return len(self._order)

    @property
    def num_boxes(self) -> int:
        """Return how many of them have a box and no mask."""
        return int(self._is_box[self._order].sum())

    @property
    def num_without_area(self) -> int:
        """Return how many of them have no area."""
        return int(np.isnan(self._areas[self._order]).sum())

    def drop_boxes(self) -> None:
        """Leave out the objects that have a box and no mask."""
        self._drop(self._is_box & self._counts, BOX_FAULT, "no segmentation")
        self._sort()

    def objects_of(self, row: int, size: tuple[int, int]) -> tuple[list[RLE], list[float], list[int | None]]:
        """Return masks, areas (NaN for one without) and category ids of an image's objects, in the file's order."""
        objects = self._order[self._first[row] : self._first[row + 1]]
        rles = [self._masks.rle(i, size) for i in objects.tolist()]
        categories = [None if c == NO_NUMBER else c for c in self._categories[objects].tolist()]
        return rles, self._areas[objects].tolist(), categories

    def _broken_rles(self, images: CocoImages) -> np.ndarray:
        """Return which objects are RLEs whose run lengths don't add up; images are checked as a whole first."""
        broken = np.zeros(len(self._rows), dtype=bool)
        indices = np.flatnonzero(self._masks.are_rles())
        by_image = indices[np.argsort(self._rows[indices], kind="stable")]
        for some in np.split(by_image, np.flatnonzero(np.diff(self._rows[by_image])) + 1):
            if len(some):
                height, width = images.size(int(self._rows[some[0]]))
                texts = [self._masks.counts(i) for i in some.tolist()]
                if not counts_are_valid(texts, height * width):
                    broken[some] = [not counts_are_valid([text], height * width) for text in texts]
        return broken

    def _drop(self, which: np.ndarray, kind: str, got: str) -> None:
        """Add annotations to the faults, and count them no more."""
        for i in np.flatnonzero(which).tolist():
            annotation_id = None if self._ids[i] == NO_NUMBER else self._ids[i]
            self.faults.add(kind, int(self._numbers[i]), annotation_id, got)
        self._counts &= ~which

    def _sort(self) -> None:
        """Sort the objects that count by image, in the file's order within each."""
        counted = np.flatnonzero(self._counts)
        self._order = counted[np.argsort(self._rows[counted], kind="stable")]
        self._first = starts_of(np.bincount(self._rows[counted], minlength=self._num_images))


def _checked(annotation: Any, row_of: Mapping[int, int], images: CocoImages, count_crowds: bool) -> _Annotation:
    """Return an annotation's values, all but the run lengths and coordinates of its mask checked."""
    if not isinstance(annotation, dict):
        raise _FaultError("something else than an object", shown(annotation))
    row = _row(annotation.get("image_id"), row_of)
    area, category = annotation.get("area"), annotation.get("category_id")
    if area is not None and (not is_finite_number(area) or area < 0):
        raise _FaultError("an area that is no number of at least 0", shown(area))
    category_id = NO_NUMBER if category is None else whole_number(category)
    if category_id is None:
        raise _FaultError("a category_id that is no integer", shown(category))
    is_crowd, is_ignored = _flag(annotation, "iscrowd"), _flag(annotation, "ignore")
    is_counted = not is_ignored and (count_crowds or not is_crowd)
    size = images.size(row)
    segmentation = annotation.get("segmentation")
    is_box = segmentation is None or _is_empty(segmentation)
    shape = _box_polygon(annotation.get("bbox")) if is_box else _mask(segmentation, size)
    return _Annotation(row, math.nan if area is None else float(area), category_id, is_counted, is_box, shape)


def _row(image_id: Any, row_of: Mapping[int, int]) -> int:
    """Return the index of an annotation's image."""
    number = image_id if type(image_id) is int else whole_number(image_id)
    if number is None:
        kind = "an image_id that is text, where ids are numbers" if isinstance(image_id, str) else "no integer image_id"
        raise _FaultError(kind, shown(image_id))
    if number not in row_of:
        raise _FaultError("an image_id that the file does not list", shown(image_id))
    return row_of[number]


def _flag(annotation: Mapping[str, Any], key: str) -> bool:
    """Return ``iscrowd`` or ``ignore``; absent or null is false."""
    value = annotation.get(key)
    if value is None or (isinstance(value, int | float) and value in (0, 1)):
        return bool(value)
    raise _FaultError(f"an {key} that is not 0 or 1", shown(value))


def _is_empty(segmentation: Any) -> bool:
    """Return whether a segmentation has nothing in it: ``[]``, ``[[]]`` or ``{}``."""
    if isinstance(segmentation, list):
        return all(isinstance(polygon, list) and not polygon for polygon in segmentation)
    return segmentation == {}


def _mask(segmentation: Any, size: tuple[int, int]) -> Segmentation:
    """Return a segmentation in the form that is kept."""
    if isinstance(segmentation, _BrokenPolygons):
        raise _FaultError(f"a broken segmentation ({segmentation.must})", segmentation.got)
    if isinstance(segmentation, list):
        return segmentation
    if not isinstance(segmentation, dict):
        raise _FaultError("a segmentation that is neither polygons nor an RLE", shown(segmentation))
    if segmentation.get("size") != list(size):
        raise _FaultError(RLE_FAULT, f"size {shown(segmentation.get('size'))} in an image of {list(size)}")
    counts = segmentation.get("counts")
    if isinstance(counts, str) and counts.isascii() and counts:
        return counts
    try:
        return to_rle(segmentation, size)["counts"]
    except ValueError as error:
        raise _FaultError(RLE_FAULT, str(error).rpartition("got ")[2]) from error


def _box_polygon(box: Any) -> Segmentation:
    """Return the outline of a bbox, xywh; sides of 0, which SA-1B's boxes of one pixel have, are a pixel long."""
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_finite_number, box)) and min(box[2:]) >= 0):
        raise _FaultError("neither a mask nor a box", f"bbox {shown(box)}")
    x, y, width, height = float(box[0]), float(box[1]), max(float(box[2]), 1.0), max(float(box[3]), 1.0)
    return [np.array([x, y, x, y + height, x + width, y + height, x + width, y])]


def evaluator_content(content: dict[str, Any], images: CocoImages, left_out: Sequence[int]) -> dict[str, Any]:
    """Return the content of a file as pycocotools and lvis-api require it.

    Whole floats become integers, an area that is absent is computed, and annotations that are left out or have no mask
    are not in it, nor are pieces of polygons of fewer than three points, which pycocotools reads as boxes if one is the
    first.

    Args:
        content: of the file, read anew.
        images: of the file.
        left_out: numbers of annotations in the file.
    """
    skipped, row_of = set(left_out), {image_id: row for row, image_id in enumerate(images.ids)}
    objects = []
    for number, annotation in enumerate(content["annotations"]):
        segmentation = None if number in skipped else annotation.get("segmentation")
        if segmentation is None or _is_empty(segmentation):
            continue
        image_id = whole_number(annotation["image_id"])
        assert image_id is not None  # it is not among those left out
        if isinstance(segmentation, list):
            segmentation = [piece.tolist() for piece in polygon_pieces(segmentation)]
        flags = {key: int(annotation.get(key) or 0) for key in ("iscrowd", "ignore")}
        fixed = {"image_id": image_id, "segmentation": segmentation, **flags}
        if annotation.get("category_id") is not None:
            fixed["category_id"] = whole_number(annotation["category_id"])
        if annotation.get("area") is None:
            fixed["area"] = int(areas([to_rle(segmentation, images.size(row_of[image_id]))])[0])
        objects.append(annotation | fixed)
    keys = ("id", "height", "width")
    return content | {
        "annotations": objects,
        "images": [image | {key: whole_number(image[key]) for key in keys} for image in content["images"]],
        "categories": [c | {"id": whole_number(c["id"])} for c in content.get("categories") or []],
    }
