"""Masks of YOLO's prototypes at the size of a photo, here and by ultralytics' function: seconds and bytes.

    python benchmarks/fastsam_masks.py            # a minute; wants the extra [detector]
    python benchmarks/fastsam_masks.py --write    # the documentation's figures

Prototypes, boxes and coefficients are random. Processor time of one thread, the best of three; ultralytics' masks are
not encoded, ours are. Memory of theirs is that of the masks that its function returns, at the size of the photo.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping

import torch
from processor_time import cpu_seconds
from result_pages import RESULTS, ROOT, digits, paragraph, read_figures, write_figures, write_pages

FASTSAM_MASKS = RESULTS / "fastsam_masks.csv"
PAGES = [ROOT / "docs" / "evaluate.md"]
MASKS, SIZE, REPEATS = 200, (1500, 2250), 3
HALF_SIDES = (20, 400)
"""Of the boxes, pixels; their logarithms are drawn evenly."""

CELLS = (176, 256)
"""Of the prototypes for such a photo in a network of 1024 pixels: 704 x 1024, a quarter of it."""


def measure() -> dict[str, float]:
    """Return the figures by name."""
    from mobilesamv2.models.ultralytics_import import ultralytics_module
    from mobilesamv2.models.yolo_masks import encode_prototype_masks

    generator = torch.Generator().manual_seed(0)
    prototypes, coefficients = (torch.randn(shape, generator=generator) for shape in ((32, *CELLS), (MASKS, 32)))
    centres = torch.rand(MASKS, 2, generator=generator) * torch.tensor([SIZE[1], SIZE[0]])
    low, high = (math.log(each) for each in HALF_SIDES)
    reach = torch.exp(torch.empty(MASKS, 2).uniform_(low, high, generator=generator))
    boxes = torch.cat([centres - reach, centres + reach], 1)
    boxes[:, 0::2], boxes[:, 1::2] = boxes[:, 0::2].clamp(0, SIZE[1]), boxes[:, 1::2].clamp(0, SIZE[0])
    theirs = ultralytics_module("utils.ops").process_mask_native
    return {
        "ours s": cpu_seconds(lambda: encode_prototype_masks(prototypes, coefficients, boxes, SIZE), REPEATS),
        "ultralytics s": cpu_seconds(lambda: theirs(prototypes, coefficients, boxes, SIZE), REPEATS),
        "ultralytics MB": theirs(prototypes, coefficients, boxes, SIZE).nbytes / 1e6,
    }


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return texts(read_figures(FASTSAM_MASKS))


def texts(figures: Mapping[str, float]) -> dict[str, str]:
    """Return the documentation's text by its name."""
    ours, theirs, megabytes = (figures[name] for name in ("ours s", "ultralytics s", "ultralytics MB"))
    return {
        "fastsam_masks": paragraph(
            f"{MASKS} on {SIZE[0]} x {SIZE[1]} pixels take {digits(ours)} s of one CPU thread, encoded, where "
            f"ultralytics' function takes {digits(theirs)} s, and its masks are {digits(megabytes, 3)} MB before "
            f"anything is encoded (`python benchmarks/fastsam_masks.py`: random prototypes, boxes of "
            f"{2 * HALF_SIDES[0]} to {2 * HALF_SIDES[1]} pixels a side)."
        )
    }


def main() -> None:
    """Print the figures, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the file of results, and the docs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure()
    for name, value in figures.items():
        print(f"{name:16}{value:10.2f}")
    if args.write:
        write_figures(FASTSAM_MASKS, figures)
        write_pages(PAGES, stated())


if __name__ == "__main__":
    main()
