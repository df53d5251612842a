"""How many objects of annotation files have a ``bbox`` that is not the box of their mask's pixels.

    python benchmarks/annotated_boxes.py FILE ...                        # seconds
    python benchmarks/annotated_boxes.py COCO_FILE LVIS_FILE --write     # the documentation's figures

The documentation's are those of the COCO API's own example, 100 images of val2014, and of 100 images of LVIS v0.5.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from result_pages import RESULTS, ROOT, paragraph, read_csv, write_csv, write_pages

from mobilesamv2.data.json_files import read_json
from mobilesamv2.masks import boxes_from_rles, to_rle

ANNOTATED_BOXES = RESULTS / "annotated_boxes.csv"
PAGES = [ROOT / "docs" / "evaluate.md"]
NAMES = ("COCO", "LVIS v0.5")


def differences(path: Path) -> tuple[int, np.ndarray]:
    """Return the number of images, and how far the farthest side of each object's box is from the pixels', pixels."""
    content = read_json(path)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    found = []
    for one in content["annotations"]:
        if one.get("iscrowd"):
            continue
        x0, y0, x1, y1 = boxes_from_rles([to_rle(one["segmentation"], sizes[one["image_id"]])])[0].tolist()
        x, y, width, height = one["bbox"]
        sides = np.array([x - x0, y - y0, x + width - (x1 + 1), y + height - (y1 + 1)])  # COCO's ends are exclusive
        found.append(np.abs(sides).max())
    return len(sizes), np.array(found)


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return texts(read_csv(ANNOTATED_BOXES))


def texts(rows: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return the documentation's text by its name, of the rows of the file of results."""
    shares = [
        f"{float(row['over 1 pixel']):.0%} of the {row['objects']} objects of {row['images']} images of {row['data']}"
        for row in rows
    ]
    return {
        "annotated_boxes": paragraph(
            f"It differs by more than a pixel for {' and '.join(shares)}, there for "
            f"{float(rows[-1]['over 100 pixels']):.0%} by more than 100 pixels."
        )
    }


def main() -> None:
    """Print a line for each file, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="annotations in COCO's or LVIS's layout")
    parser.add_argument("--write", action="store_true", help="write the file of results, and the docs")
    args = parser.parse_args()
    if args.write and len(args.files) != len(NAMES):
        parser.error(f"--write wants two files, of {' and '.join(NAMES)}.")
    rows = [["data", "images", "objects", "over 1 pixel", "over 100 pixels"]]
    for name, path in zip(NAMES if args.write else [path.name for path in args.files], args.files, strict=True):
        images, far = differences(path)
        rows.append([name, str(images), str(len(far)), *(f"{(far > limit).mean():.4f}" for limit in (1, 100))])
        print("   ".join(rows[-1]))
    if args.write:
        write_csv(ANNOTATED_BOXES, rows)
        write_pages(PAGES, stated())


if __name__ == "__main__":
    main()
