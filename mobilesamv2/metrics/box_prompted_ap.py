"""AP of instance masks, by pycocotools for COCO and lvis-api for LVIS."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilesamv2.metrics.result_record import Results, percent, time_lines

COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs@100", "ARm@100", "ARl@100")
"""Of COCOeval's ``stats``, in order."""


def coco_ap(
    annotations: str | Path, results: list[dict[str, Any]], image_ids: Sequence[int]
) -> dict[str, float | None]:
    """COCO's twelve numbers of instance masks, as fractions.

    Args:
        annotations: a file in COCO's layout.
        results: masks as COCO results.
        image_ids: of the images that count.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not results:
        return dict.fromkeys(COCO_NAMES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")  # pyright: ignore
        evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: _or_none(value) for name, value in zip(COCO_NAMES, evaluation.stats, strict=True)}


def lvis_ap(
    annotations: str | Path, results: list[dict[str, Any]], image_ids: Sequence[int]
) -> dict[str, float | None]:
    """LVIS's AP of instance masks, by size and frequency, and AR@300, as fractions.

    Args:
        annotations: a file in LVIS's layout.
        results: masks as COCO results; the best 300 of an image count.
        image_ids: of the images that count.
    """
    with _numpy_as_lvis_knows_it():
        from lvis import LVIS, LVISEval, LVISResults

        truth = LVIS(str(annotations))
        if not results:
            return {"AP": 0.0}
        evaluation = LVISEval(truth, LVISResults(truth, results), "segm")
        evaluation.params.img_ids = list(image_ids)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.run()
    return {name: _or_none(value) for name, value in evaluation.get_results().items()}


@contextlib.contextmanager
def _numpy_as_lvis_knows_it() -> Iterator[None]:
    """Lvis 0.5.3 uses ``np.float``, which NumPy dropped."""
    missing = not hasattr(np, "float")
    if missing:
        np.float = float  # pyright: ignore
    try:
        yield
    finally:
        if missing:
            del np.float  # pyright: ignore


def _or_none(value: float) -> float | None:
    """-1 is how both say that nothing counts."""
    return None if value < 0 else float(value)


def read_masks(folder: Path) -> list[dict[str, Any]]:
    """All entries of the COCO-results files in a folder."""
    return [entry for path in sorted(folder.glob("*.json")) for entry in json.loads(path.read_bytes())]


def format_ap(results: Results) -> str:
    """The table that is printed, percent."""
    lines = [f"{name:<12}{percent(value):>8}" for name, value in results["metrics"].items()]
    protocol = results["protocol"]
    return "\n".join(
        ["mask AP (%)", *lines, f"{protocol['num_images']} images; boxes of {protocol['boxes']}", *time_lines(results)]
    )
