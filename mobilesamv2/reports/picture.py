"""Images beside the masks that evaluations kept, in one picture."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.data.results_files import Scored, read_results
from mobilesamv2.masks import iou
from mobilesamv2.reports.result_files import read_counts, read_result
from mobilesamv2.reports.table import check_comparable
from mobilesamv2.structures import RLE
from mobilesamv2.visualize import overlay, panels

MATCH_IOU = 0.5
"""IoU that a mask needs to be drawn as an object's."""

SMALLEST_SIDE = 512
"""Pixels that the longer side of a panel should have."""


def result_picture(runs: dict[str, Path], num_images: int = 4) -> Image.Image:
    """Draw the panels of ``result_panels`` in one picture; small images are enlarged.

    Args:
        runs: folders of evaluations on one data set with ``task.save_masks=true``, by the name of their column.
        num_images: number of rows.

    Raises:
        FileNotFoundError: if a folder has no result or no masks, or the data set has moved.
        ValueError: if the data set is not in COCO's layout, or the runs are on different images.
    """
    titles, rows = result_panels(runs, num_images)
    return panels([[_enlarged(image) for image in row] for row in rows], titles)


def result_panels(runs: dict[str, Path], num_images: int = 4) -> tuple[list[str], list[list[np.ndarray]]]:
    """Return one row per image, the first ones by id: the image, its objects, and each run's best mask of every object.

    An object has one colour in all columns. It is left out where no mask has an IoU of .5 with it; masks of no object
    are left out too.

    Args:
        runs: folders of evaluations on one data set with ``task.save_masks=true``, by the name of their column.
        num_images: number of rows.

    Returns:
        The names of the columns, and the rows of RGB uint8 (H, W, 3).

    Raises:
        FileNotFoundError: if a folder has no result or no masks, or the data set has moved.
        ValueError: if the data set is not in COCO's layout, or the runs are on different images.
    """
    results = {name: read_result(run) for name, run in runs.items()}
    check_comparable(results)
    first, protocol = next(iter(runs.values())), next(iter(results.values()))["protocol"]
    if not all(isinstance(protocol.get(key), str) for key in ("annotations", "images")):
        raise ValueError(
            "The data set of the evaluations must be in COCO's or LVIS's layout, got one without an image folder."
        )
    decoding = {key: protocol[key] for key in ("upright", "value_range") if key in protocol}
    # what was left out of the evaluation is left out here, and no image is too large that it could read
    as_evaluated = {"bad_annotations": "leave_out", "max_pixels": sys.maxsize}
    dataset = LvisDataset(protocol["annotations"], protocol["images"], **decoding, **as_evaluated)
    dataset.require_masks()
    image_ids = read_counts(first)["image_ids"][:num_images].tolist()
    if not set(image_ids) <= set(dataset.image_ids):
        raise ValueError(f"{first / 'per_image.npz'} must be of images of {protocol['annotations']}, got others.")
    columns = [_saved_masks(run, dataset, image_ids) for run in runs.values()]
    rows = []
    for i in (dataset.image_ids.index(image_id) for image_id in image_ids):
        image, truth = dataset[i]
        objects = overlay(image, truth.rles, objects=range(len(truth.rles)))
        rows.append([image, objects, *(_draw_found(image, masks.get(i), truth.rles) for masks in columns)])
    return ["image", "objects", *runs], rows


def _draw_found(image: np.ndarray, scored: Scored | None, objects: list[RLE]) -> np.ndarray:
    """Draw the mask of highest IoU with each object, where it is high enough."""
    rles = scored[0] if scored else []
    ious = iou(rles, objects)  # (D, G)
    best = ious.argmax(0) if ious.size else np.zeros(0, dtype=np.int64)
    found = [k for k, i in enumerate(best.tolist()) if ious[i, k] >= MATCH_IOU]
    return overlay(image, [rles[best[k]] for k in found], objects=found)


def _enlarged(image: np.ndarray) -> np.ndarray:
    """Return an image of whole multiples of its pixels, so that small ones are seen."""
    factor = max(1, SMALLEST_SIDE // max(image.shape[:2]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _saved_masks(run: Path, dataset: LvisDataset, image_ids: list[int]) -> dict[int, Scored]:
    """Return the masks that a run saved for some images, by index in the data set."""
    if not (run / "masks").is_dir():
        raise FileNotFoundError(f"{run} has no saved masks; run its evaluation with task.save_masks=true.")
    indices = {dataset.image_ids.index(image_id) for image_id in image_ids}
    found: dict[int, Scored] = {}
    for i, scored in read_results(run / "masks", dataset, ignore_others=True):
        if i in indices:
            found[i] = scored
        if len(found) == len(indices):
            break
    return found
