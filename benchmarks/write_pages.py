"""Write the documentation's texts anew from the files of results, without measuring: after their words have changed.

    python benchmarks/write_pages.py

Each script's ``--write`` measures, and writes its texts too.
"""

from __future__ import annotations

from importlib import import_module

from result_pages import write_pages

SCRIPTS = (
    "accuracy_texts",
    "annotated_boxes",
    "annotation_files",
    "ap_intervals",
    "encoder",
    "exported",
    "fastsam_masks",
    "loading_texts",
    "lvis_scale_texts",
    "mask_errors",
    "parity",
    "photos",
    "pretrained_start",
    "prompt_head",
    "recipes_texts",
    "sam2_mini",
    "segevery_sam2",
    "segevery_texts",
)
"""Modules with the texts that ``stated()`` makes of a file of results, and ``PAGES`` that these stand on."""


def main() -> None:
    """Write the texts of all of them."""
    for name in SCRIPTS:
        script = import_module(name)
        write_pages(script.PAGES, script.stated())


if __name__ == "__main__":
    main()
