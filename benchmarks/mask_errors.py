"""Where the masks of mini_conv fall short: by the objects' pieces and sizes, beside those of LVIS.

    python benchmarks/mask_errors.py --lvis FILE        # about 4 minutes of one CPU core; a stopped run resumes
    python benchmarks/mask_errors.py --write-only       # the text again, from benchmarks/results/mask_errors.csv

Prompts mini_conv by the boxes of all objects of the 100 scenes of accuracy.py, and again with inputs of 384 and 512
pixels, for which it was not trained. The objects of FILE, annotations in LVIS's layout, are those that the scenes' are
compared with; the documentation's are of 100 images of LVIS v0.5. Writes benchmarks/results/mask_errors.csv and the
text of mobilesamv2/weights/README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise, starmap
from pathlib import Path

import cv2
import numpy as np
from accuracy import DRAWN, measure_each
from accuracy_texts import SCENE_SEED, SCENES, WEIGHTS, count
from figures import Figure, Figures, read_evaluations, write_evaluations
from result_pages import RESULTS, paragraph, write_pages
from tqdm import tqdm

from mobilesamv2 import SegAny
from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.evaluation.prompted_masks import predict_chosen
from mobilesamv2.masks import decode, tight_boxes
from mobilesamv2.metrics.mask_choice import mask_ious
from mobilesamv2.metrics.prompt_iou import object_prompts
from mobilesamv2.reports.table import as_markdown
from mobilesamv2.structures import GroundTruth

MASK_ERRORS = RESULTS / "mask_errors.csv"
PAGES = (WEIGHTS,)
PIECES = {"in one piece": (1, 2), "in two": (2, 3), "in three or more": (3, np.inf)}
SIDES = (0, 8, 16, 32, 64, np.inf)
"""Bounds of the square roots of areas, pixels: those of COCO's small, medium and large are 32 and 96."""
SIZES = (384, 512)
"""Inputs, pixels, beside the model's own 256."""
FILLING = "whose box fills .8 of the image"


def main() -> None:
    """Measure, and write the results and the text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--lvis", type=Path, metavar="FILE", help="annotations in LVIS's layout")
    what.add_argument("--write-only", action="store_true", help="write the text from the results that there are")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/mask_errors"), help="folder of evaluations")
    args = parser.parse_args()
    if args.lvis:
        write_evaluations(MASK_ERRORS, measure(args.lvis, args.output))
    write_pages(PAGES, stated())


def measure(lvis: Path, output: Path) -> Figures:
    """Return the share of each group of objects, here and there, and its mean IoU; and the prompt mIoU by input."""
    scenes, photos = SyntheticDataset(SCENES, seed=SCENE_SEED, split="test"), LvisDataset(lvis, None)
    drawn, annotated = objects_of(scenes.ground_truth(i) for i in range(SCENES)), objects_of(truths(photos))
    ious = np.concatenate(list(box_ious(scenes)))
    found = {
        name: {
            "share": Figure(inside.mean()),
            "share in LVIS": Figure(members(annotated)[name].mean()),
            "mIoU box": Figure(ious[inside].mean()),
        }
        for name, inside in members(drawn).items()
    }
    given = {
        f"input_{size}": ["model=mini_conv", "task=evaluate_prompts", "task.kinds=[box]", f"model.image_size={size}"]
        for size in (256, *SIZES)
    }
    scenes_100 = [*DRAWN, f"dataset.limit={SCENES}"]
    return found | measure_each({name: [*overrides, *scenes_100] for name, overrides in given.items()}, output)


def truths(dataset: LvisDataset) -> Iterator[GroundTruth]:
    """Yield the objects of each image."""
    return (dataset.ground_truth(i) for i in range(len(dataset.image_ids)))


def objects_of(images: Iterable[GroundTruth]) -> np.ndarray:
    """Return side, pixels, number of pieces, and the box's share of the image of each object, (N, 3)."""
    rows = []
    for truth in images:
        x0, y0, x1, y1 = tight_boxes(truth.rles).numpy().T
        shares = (x1 - x0) * (y1 - y0) / (truth.size[0] * truth.size[1])
        for mask, share in zip(map(decode, truth.rles), shares, strict=True):
            rows.append((np.sqrt(mask.sum()), cv2.connectedComponents(mask.astype(np.uint8))[0] - 1, share))
    return np.array(rows)


def members(objects: np.ndarray) -> dict[str, np.ndarray]:
    """Return which of N objects belong to each group, (N,) bool."""
    side, pieces, boxes = objects.T
    found = {name: (low <= pieces) & (pieces < high) for name, (low, high) in PIECES.items()}
    found |= {_side_name(low, high): (low <= side) & (side < high) for low, high in pairwise(SIDES)}
    return found | {FILLING: boxes >= 0.8}


def _side_name(low: float, high: float) -> str:
    if np.isinf(high):
        return f"of {low} pixels and more a side"
    return f"of {low} to {high} pixels a side" if low else f"of less than {high} pixels a side"


def box_ious(scenes: SyntheticDataset) -> Iterator[np.ndarray]:
    """Yield the IoUs (N,) of the masks that mini_conv gives for the boxes of a scene's objects."""
    segany = SegAny.from_pretrained("mini_conv")
    for index in tqdm(range(len(scenes.image_ids)), unit="scene"):
        image, truth = scenes[index]
        segany.set_image(image)
        (asked,) = object_prompts(truth, ("box",), seed=0)
        yield mask_ious(predict_chosen(segany, asked.prompts, "single").masks, np.stack([*map(decode, truth.rles)]))


def stated() -> dict[str, str]:
    """Return the documentation's text by its name, of the file of results."""
    return {"mask_errors": text(read_evaluations(MASK_ERRORS))}


def text(figures: Mapping[str, Mapping[str, Figure]]) -> str:
    """Return the table of mobilesamv2/weights/README.md and what was tried."""
    rows = [["objects", "share, %", "share in LVIS, %", "mIoU from boxes"]]
    for name in (*PIECES, *starmap(_side_name, pairwise(SIDES)), FILLING):
        one = figures[name]
        shares = [f"{100 * one[key].value:.1f}" for key in ("share", "share in LVIS")]
        rows.append([name, *shares, one["mIoU box"].percent()])
    inputs = {size: figures[f"input_{size}"] for size in (256, *SIZES)}
    by_size = ", ".join(
        f"{inputs[size]['mIoU box'].percent()} at {size} pixels (small objects {inputs[size]['mIoUs box'].percent()}, "
        f"large {inputs[size]['mIoUl box'].percent()})"
        for size in inputs
    )
    tried = paragraph(
        f"The {count(inputs[256]['objects'])} objects of the {count(inputs[256]['images'])} scenes; a side is the root",
        f"of an area. A larger input, for which the weights are not trained, helps small objects alone: {by_size}.",
    )
    return f"{as_markdown(rows)}\n\n{tried}"


if __name__ == "__main__":
    main()
