"""Images and objects in ultralytics' own layout, for those who train with ``yolo train``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mobilesamv2.data.annotated_images import AnnotatedImages
from mobilesamv2.data.augment import upright
from mobilesamv2.data.detection_samples import objects_in_sight
from mobilesamv2.masks import boxes_from_rles, decode
from mobilesamv2.structures import RLE, GroundTruth
from mobilesamv2.whole_files import named_in_errors, write_whole


class Written(NamedTuple):
    """How many images and objects were written, and how many objects left out as duplicates of a box."""

    images: int
    objects: int
    merged: int


def write_yolo(
    dataset: AnnotatedImages, indices: Iterable[int], folder: Path, split: str, masks: bool = True
) -> Written:
    """Writes ``images/SPLIT`` and ``labels/SPLIT``: a text file for each image, a line for each object, all of class 0.

    Images are copied as they are stored, without being decoded.

    Args:
        dataset: the images.
        indices: which of them.
        folder: of the data set; images that are there are written over.
        split: ``train`` or ``val``.
        masks: outlines of the masks, without holes, their parts joined by lines; otherwise boxes.
    """
    images, labels = folder / "images" / split, folder / "labels" / split
    for place in (images, labels):
        place.mkdir(parents=True, exist_ok=True)
    count, objects, merged = 0, 0, 0
    for index in indices:
        truth = dataset.ground_truth(index)
        suffix, content = dataset.stored_image(index)
        with named_in_errors(photo := images / f"{truth.image_id}{suffix}"):
            photo.write_bytes(content)
        found = objects_in_sight(truth, upright(truth.size, max(truth.size)))
        lines = [_line(truth, rle, masks) for rle in found.rles]
        with named_in_errors(label := labels / f"{truth.image_id}.txt"):
            label.write_text("".join(lines))
        count, objects, merged = count + 1, objects + len(lines), merged + found.merged
    return Written(count, objects, merged)


def write_data_yaml(folder: Path, splits: Iterable[str]) -> Path:
    """Writes ``data.yaml``, which ``yolo train data=`` takes; without a split ``val`` it validates on ``train``."""
    known = set(splits)
    path = folder / "data.yaml"
    write_whole(
        path,
        f"path: {json.dumps(str(folder.resolve()))}\ntrain: images/train\n"
        f"val: images/{'val' if 'val' in known else 'train'}\nnames:\n  0: object\n",
    )
    return path


def _line(truth: GroundTruth, rle: RLE, masks: bool) -> str:
    """An object's line: class 0, and its outline or its box, in shares of the image's sides."""
    x0, y0, x1, y1 = boxes_from_rles([rle])[0].tolist()
    if masks:
        points = np.array([x0, y0]) + outline(decode(rle)[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1])
    else:
        points = np.array([[(x0 + x1 + 1) / 2, (y0 + y1 + 1) / 2], [x1 + 1 - x0, y1 + 1 - y0]])
    values = (points / (truth.size[1], truth.size[0])).flatten()
    return " ".join(["0", *(f"{value:.6g}" for value in values)]) + "\n"


def outline(mask: np.ndarray) -> np.ndarray:
    """One polygon around a mask (H, W), along the outer edges of its pixels, (P, 2) xy in pixels.

    Holes and gaps of one pixel are filled, inner corners cut, and parts that lie apart joined by lines there and back,
    as ultralytics does with COCO's.
    """
    corners = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.uint8)  # of pixels
    for rows in (slice(None, -1), slice(1, None)):
        for columns in (slice(None, -1), slice(1, None)):
            corners[rows, columns] |= mask.astype(np.uint8)
    parts, _ = cv2.findContours(corners, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    ordered = sorted((part[:, 0].astype(np.float64) for part in parts), key=len, reverse=True)
    joined = ordered[0]
    for part in ordered[1:]:
        distances = np.square(joined[:, None] - part[None]).sum(-1)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        around = np.concatenate([part[there:], part[: there + 1]])
        joined = np.concatenate([joined[: here + 1], around, joined[here:]])
    return joined
