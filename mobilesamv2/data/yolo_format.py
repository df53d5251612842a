"""Export of a data set to ultralytics' layout, for training with ``yolo train``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mobilesamv2.data.augment import letterbox_placement
from mobilesamv2.data.base import ImageDataset
from mobilesamv2.data.detection_samples import visible_objects
from mobilesamv2.files import named_in_errors, write_text_atomic
from mobilesamv2.masks import boxes_from_rles, decode
from mobilesamv2.structures import RLE, GroundTruth


class WriteCounts(NamedTuple):
    """Counts of what was written.

    Attributes:
        images: images written.
        objects: objects written.
        merged: objects skipped because another one has the same box.
    """

    images: int
    objects: int
    merged: int


def write_yolo(
    dataset: ImageDataset, indices: Iterable[int], folder: Path, split: str, masks: bool = True
) -> WriteCounts:
    """Write ``images/SPLIT`` and ``labels/SPLIT``: one text file per image, one line per object, all of class 0.

    JPEG, PNG, BMP and WebP of 8 bits are copied as they are stored. Others, such as images of more bits, TIFFs and
    those that EXIF turns, become PNGs of 8 bits in the frame of their annotations, since ultralytics would read them
    otherwise or pass them over.

    Args:
        dataset: the images.
        indices: indices of the images to write.
        folder: root folder of the output; existing files are overwritten.
        split: ``train`` or ``val``.
        masks: write outlines of the masks, without holes, their parts joined by lines; otherwise boxes.

    Raises:
        OSError: if a file can't be written.
        ValueError: if an image that has to be written anew can't be decoded.
    """
    images, labels = folder / "images" / split, folder / "labels" / split
    for directory in (images, labels):
        directory.mkdir(parents=True, exist_ok=True)
    count, objects, merged = 0, 0, 0
    for index in indices:
        truth = dataset.ground_truth(index)
        suffix, content = dataset.stored_image(index)
        for earlier in images.glob(f"{truth.image_id}.*"):  # of another format, it would be a second image
            earlier.unlink()
        with named_in_errors(image := images / f"{truth.image_id}{suffix}"):
            image.write_bytes(content)
        visible = visible_objects(truth, letterbox_placement(truth.size, max(truth.size)))
        lines = [_label_line(truth, rle, masks) for rle in visible.rles]
        with named_in_errors(label := labels / f"{truth.image_id}.txt"):
            label.write_text("".join(lines))
        count, objects, merged = count + 1, objects + len(lines), merged + visible.merged
    return WriteCounts(count, objects, merged)


def write_data_yaml(folder: Path, splits: Iterable[str]) -> Path:
    """Write ``data.yaml``, which ``yolo train data=`` reads; without a split ``val`` it validates on ``train``."""
    val = "val" if "val" in set(splits) else "train"
    path = folder / "data.yaml"
    write_text_atomic(
        path,
        f"path: {json.dumps(str(folder.resolve()))}\ntrain: images/train\nval: images/{val}\nnames:\n  0: object\n",
    )
    return path


def _label_line(truth: GroundTruth, rle: RLE, masks: bool) -> str:
    """Format the line of an object: class 0, and its outline or its box, in shares of the image's sides."""
    x0, y0, x1, y1 = boxes_from_rles([rle])[0].tolist()
    if masks:
        points = np.array([x0, y0]) + outline(decode(rle)[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1])
    else:
        points = np.array([[(x0 + x1 + 1) / 2, (y0 + y1 + 1) / 2], [x1 + 1 - x0, y1 + 1 - y0]])
    values = (points / (truth.size[1], truth.size[0])).flatten()
    return " ".join(["0", *(f"{value:.6g}" for value in values)]) + "\n"


def outline(mask: np.ndarray) -> np.ndarray:
    """Trace one polygon around a mask (H, W), along the outer edges of its pixels, (P, 2) xy in pixels.

    Holes and gaps of one pixel are filled, inner corners cut, and separate parts joined by lines there and back, as
    ultralytics does with COCO's.
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
