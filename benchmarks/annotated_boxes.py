"""How far annotation files' boxes are from the boxes of their masks' pixels, which this project prompts with.

    python benchmarks/annotated_boxes.py --coco instances_val2014_100.json --lvis lvis_v0.5_val_100.json    # seconds

Counts the objects of 100 images of COCO and of LVIS v0.5 by the largest distance of an edge; writes
benchmarks/results/annotated_boxes.csv and the sentence of docs/evaluate.md. The COCO API has the first file as an
example.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import numpy as np
from accuracy_texts import EVALUATE, count
from figures import Figure, Figures, read_figures, write_figures
from result_pages import RESULTS, write_pages

from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.json_files import read_json
from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.masks import tight_boxes
from mobilesamv2.reports.stated import LINE_WIDTH

ANNOTATED_BOXES = RESULTS / "annotated_boxes.csv"


def main() -> None:
    """Compare the boxes, and write the figures and the sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, required=True, metavar="FILE")
    parser.add_argument("--lvis", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    figures = {"coco": figures_of_boxes(args.coco), "lvis": figures_of_boxes(args.lvis, LvisDataset)}
    write_figures(ANNOTATED_BOXES, figures)
    write_pages([EVALUATE], {"annotated_boxes": text(read_figures(ANNOTATED_BOXES))})


def figures_of_boxes(path: Path, kind: type[CocoDataset] = CocoDataset) -> dict[str, Figure]:
    """Return the share of a file's objects, crowds apart, whose box is off by more than 1 and 100 pixels."""
    dataset, given = kind(path, None), read_json(path)["annotations"]
    distances = []
    for index, image_id in enumerate(dataset.image_ids):
        boxes = [each["bbox"] for each in given if each["image_id"] == image_id and not each.get("iscrowd")]
        if boxes:
            xyxy = np.array(boxes, dtype=np.float64)
            xyxy[:, 2:] += xyxy[:, :2]
            distances.append(np.abs(xyxy - tight_boxes(dataset.ground_truth(index).rles).numpy()).max(1))
    off = np.concatenate(distances)
    shares = {f"over_{pixels}": Figure(float((off > pixels).mean())) for pixels in (1, 100)}
    return {"images": Figure(len(dataset.image_ids)), "objects": Figure(len(off)), **shares}


def text(figures: Figures) -> str:
    """Return the sentence of docs/evaluate.md."""
    coco, lvis = figures["coco"], figures["lvis"]
    return textwrap.fill(
        f"The two differ by more than a pixel for {coco['over_1'].value:.0%} of the {count(coco['objects'])} objects "
        f"of {count(coco['images'])} images of COCO and {lvis['over_1'].value:.0%} of the {count(lvis['objects'])} of "
        f"{count(lvis['images'])} images of LVIS v0.5, there for {lvis['over_100'].value:.0%} by more than 100 pixels.",
        LINE_WIDTH,
    )


if __name__ == "__main__":
    main()
