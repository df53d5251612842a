"""Images beside the masks that evaluations kept, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.data.results_files import Scored, read_results
from mobilesamv2.files import read_arrays
from mobilesamv2.masks import iou
from mobilesamv2.reports.table import check_comparable, read_result
from mobilesamv2.structures import RLE
from mobilesamv2.visualize import overlay, panels

MASKS_DRAWN = 30
"""Masks drawn per image, those of the highest scores; more would hide the image."""

MATCH_IOU = 0.5
"""From which IoU on a mask has the colour of an object."""

SMALLEST_SIDE = 512
"""Pixels that the longer side of a panel should have."""


def result_picture(runs: dict[str, Path], num_images: int = 4) -> Image.Image:
    """Draw one row per image, the first ones by id: the image, its objects, and the masks of each run.

    Args:
        runs: folders of evaluations on one data set with ``task.save_masks=true``, by the name of their column.
        num_images: number of rows.

    Raises:
        FileNotFoundError: if a folder has no result or no masks, or the data set has moved.
        ValueError: if the data set is not in COCO's layout, or the runs are on different images.
    """
    results = {name: read_result(run) for name, run in runs.items()}
    check_comparable(results)
    first, protocol = next(iter(runs.values())), next(iter(results.values()))["protocol"]
    if not protocol.get("images"):
        raise ValueError(
            "The data set of the evaluations must be in COCO's or LVIS's layout, got one without an image folder."
        )
    dataset = LvisDataset(protocol["annotations"], protocol["images"])
    image_ids = read_arrays(first / "per_image.npz")["image_ids"][:num_images].tolist()
    columns = [_saved_masks(run, dataset, image_ids) for run in runs.values()]
    rows = []
    for i in (dataset.image_ids.index(image_id) for image_id in image_ids):
        image, truth = dataset[i]
        shown = [truth.rles, *(_highest_scoring(masks.get(i)) for masks in columns)]
        drawn = [overlay(image, rles, objects=_matched(rles, truth.rles)) for rles in shown]
        rows.append([_enlarged(each) for each in (image, *drawn)])
    return panels(rows, ["image", "objects", *runs])


def _matched(rles: list[RLE], objects: list[RLE]) -> list[int | None]:
    """Return the object of highest IoU of each mask; None for one that no object has an IoU of .5 with."""
    ious = iou(rles, objects)  # (D, G)
    if not ious.size:
        return [None] * len(rles)
    return [int(best) if row[best] >= MATCH_IOU else None for best, row in zip(ious.argmax(1), ious, strict=True)]


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


def _highest_scoring(scored: Scored | None) -> list[RLE]:
    rles, scores = scored or ([], [])
    order: Sequence[int] = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [rles[i] for i in order[:MASKS_DRAWN]]
