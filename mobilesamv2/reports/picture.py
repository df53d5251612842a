"""Photos with the masks that evaluations kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.data.results_files import Scored, read_results
from mobilesamv2.reports.table import read_result
from mobilesamv2.visualize import overlay, panels

MASKS_DRAWN = 30
"""Of an image, the best; more would hide it."""


def result_picture(runs: dict[str, Path], num_images: int = 4) -> Image.Image:
    """A row for each of the first images: the photo, its objects, and the masks of each run.

    Args:
        runs: folders of evaluations on one data set that ran with ``save_masks=true``, by the name of their column.
        num_images: rows.

    Raises:
        FileNotFoundError: a folder has no result or no masks, or the data set has moved.
        ValueError: the data set is not in COCO's layout.
    """
    protocol = read_result(next(iter(runs.values())))["protocol"]
    if not protocol.get("images"):
        raise ValueError("Pictures are made of evaluations on images in COCO's or LVIS's layout.")
    dataset = LvisDataset(protocol["annotations"], protocol["images"], limit=num_images)
    columns = [_kept(run, dataset) for run in runs.values()]
    rows = []
    for i in range(len(dataset)):
        image, truth = dataset[i]
        rows.append([image, overlay(image, truth.rles), *(overlay(image, _best(kept.get(i))) for kept in columns)])
    return panels(rows, ["image", "objects", *runs])


def _kept(run: Path, dataset: LvisDataset) -> dict[int, Scored]:
    if not (run / "masks").is_dir():
        raise FileNotFoundError(f"{run} kept no masks; run its evaluation with save_masks=true.")
    return dict(read_results(run / "masks", dataset, ignore_others=True))


def _best(scored: Scored | None) -> list[dict]:
    rles, scores = scored or ([], [])
    order: Sequence[int] = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [rles[i] for i in order[:MASKS_DRAWN]]
