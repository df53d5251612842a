"""Processor time of AP's 95% intervals for as many boxes as COCO val2017 has: 2,000 resamples of drawn matches.

    python benchmarks/ap_intervals.py            # a minute of a core
    python benchmarks/ap_intervals.py --write    # the documentation's figures

A box's score is random, and so is whether it finds an object; the time depends on the numbers alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from result_pages import RESULTS, ROOT, digits, paragraph, read_figures, write_figures, write_pages

from mobilesamv2.metrics.ap_interval import bootstrap_ap, collect_matches
from mobilesamv2.metrics.average_precision import COCO_EVALUATED
from mobilesamv2.metrics.bootstrap import RESAMPLES

AP_INTERVALS = RESULTS / "ap_intervals.csv"
PAGES = [ROOT / "docs" / "evaluate.md"]
IMAGES, CATEGORIES, BOXES, OBJECTS = 5000, 80, 500_000, 36_000
"""COCO val2017 has 36,335 objects, and a detector 100 boxes on each of its 5,000 images."""


def evaluated() -> list[dict[str, Any] | None]:
    """Return what COCOeval keeps of each category and image: scores, and what each of ten thresholds matched."""
    rng = np.random.default_rng(0)
    boxes = rng.multinomial(BOXES, np.full(IMAGES * CATEGORIES, 1 / (IMAGES * CATEGORIES)))
    objects = rng.multinomial(OBJECTS, np.full(IMAGES * CATEGORIES, 1 / (IMAGES * CATEGORIES)))
    found: list[dict[str, Any] | None] = []
    for number, wanted in zip(boxes.tolist(), objects.tolist(), strict=True):
        if not number and not wanted:
            found.append(None)
            continue
        matches = np.zeros((10, number))
        for threshold in range(10):
            hits = min(number, rng.binomial(wanted, 0.7 - 0.05 * threshold))
            matches[threshold, rng.permutation(number)[:hits]] = 1
        found.append(
            {
                "dtScores": np.sort(rng.random(number))[::-1].tolist(),
                "dtMatches": matches,
                "dtIgnore": np.zeros((10, number), bool),
                "gtIgnore": np.zeros(wanted, bool),
            }
        )
    return found


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return texts(read_figures(AP_INTERVALS))


def texts(figures: Mapping[str, float]) -> dict[str, str]:
    """Return the documentation's text by its name."""
    return {
        "ap_intervals": paragraph(
            f"The {RESAMPLES:,} resamples take {digits(figures['s'])} s of CPU time for as many boxes as COCO val2017 "
            f"has ({BOXES:,}; LVIS val has more)."
        )
    }


def main() -> None:
    """Print the seconds, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the file of results, and the docs")
    args = parser.parse_args()
    matches = collect_matches(evaluated(), 1, IMAGES, COCO_EVALUATED)
    began = time.process_time()
    interval = bootstrap_ap(matches)
    figures = {"s": time.process_time() - began}
    print(f"{figures['s']:.1f} s; {interval}")
    if args.write:
        write_figures(AP_INTERVALS, figures)
        write_pages(PAGES, stated())


if __name__ == "__main__":
    main()
