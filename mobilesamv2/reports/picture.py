"""Photos with the masks that evaluations kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.data.results_files import Scored, read_results
from mobilesamv2.reports.table import check_alike, read_result
from mobilesamv2.visualize import overlay, panels
from mobilesamv2.whole_files import read_arrays

MASKS_DRAWN = 30
"""Of an image, the best; more would hide it."""


def result_picture(runs: dict[str, Path], num_images: int = 4) -> Image.Image:
    """A row for each of the first images by id: the photo, its objects, and the masks of each run.

    Args:
        runs: folders of evaluations on one data set that ran with ``save_masks=true``, by the name of their column.
        num_images: rows.

    Raises:
        FileNotFoundError: a folder has no result or no masks, or the data set has moved.
        ValueError: the data set is not in COCO's layout, or the runs are on other images.
    """
    results = {name: read_result(run) for name, run in runs.items()}
    check_alike(results)
    first, protocol = next(iter(runs.values())), next(iter(results.values()))["protocol"]
    if not protocol.get("images"):
        raise ValueError("Pictures are made of evaluations on images in COCO's or LVIS's layout.")
    dataset = LvisDataset(protocol["annotations"], protocol["images"])
    image_ids = read_arrays(first / "per_image.npz")["image_ids"][:num_images].tolist()
    columns = [_kept(run, dataset, image_ids) for run in runs.values()]
    rows = []
    for i in (dataset.image_ids.index(image_id) for image_id in image_ids):
        image, truth = dataset[i]
        rows.append([image, overlay(image, truth.rles), *(overlay(image, _best(kept.get(i))) for kept in columns)])
    return panels(rows, ["image", "objects", *runs])


def _kept(run: Path, dataset: LvisDataset, image_ids: list[int]) -> dict[int, Scored]:
    """The masks that a run kept of some images, by their index in the data set."""
    if not (run / "masks").is_dir():
        raise FileNotFoundError(f"{run} kept no masks; run its evaluation with save_masks=true.")
    wanted = {dataset.image_ids.index(image_id) for image_id in image_ids}
    found: dict[int, Scored] = {}
    for i, scored in read_results(run / "masks", dataset, ignore_others=True):
        if i in wanted:
            found[i] = scored
        if len(found) == len(wanted):
            break
    return found


def _best(scored: Scored | None) -> list[dict]:
    rles, scores = scored or ([], [])
    order: Sequence[int] = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [rles[i] for i in order[:MASKS_DRAWN]]
