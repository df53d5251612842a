"""AP of instance masks, by pycocotools for COCO and lvis-api for LVIS."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mobilesamv2.metrics.ap_interval import Matches, collect_matches

COCO_NAMES = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    *(f"COCO {ar}" for ar in ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")),
)
"""Names of COCOeval's ``stats``, in order; its AR is a mean over categories, not the AR@K of proposals."""

COCO_EVALUATED = {
    "scores": "dtScores",
    "matches": "dtMatches",
    "ignore": "dtIgnore",
    "objects_ignore": "gtIgnore",
}
LVIS_EVALUATED = {
    "scores": "dt_scores",
    "matches": "dt_matches",
    "ignore": "dt_ignore",
    "objects_ignore": "gt_ignore",
}

Annotations = dict[str, Any]


class Precision(NamedTuple):
    """What an evaluator has found.

    Attributes:
        values: by name, fractions.
        matches: of which AP's interval is computed.
    """

    values: dict[str, float | None]
    matches: Matches


def coco_ap(annotations: Annotations, results: list[dict[str, Any]], image_ids: Sequence[int]) -> Precision:
    """Compute COCO's twelve numbers of instance masks.

    Args:
        annotations: the content of a file in COCO's layout.
        results: masks as COCO results, at least one.
        image_ids: ids of the images that count.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = evaluator_annotations(annotations, image_ids)  # pyright: ignore
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(entry) for entry in results]), "segm")  # pyright: ignore
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = {name: _none_if_negative(value) for name, value in zip(COCO_NAMES, evaluation.stats, strict=True)}
    params = evaluation.params
    matches = collect_matches(evaluation.evalImgs, len(params.areaRng), len(params.imgIds), COCO_EVALUATED)
    return Precision(values, matches)


def lvis_ap(annotations: Annotations, results: list[dict[str, Any]], image_ids: Sequence[int]) -> Precision:
    """Compute LVIS's AP of instance masks, by size and frequency, and AR@300 over categories.

    Args:
        annotations: the content of a file in LVIS's layout.
        results: masks as COCO results, at least one; the 300 of the highest scores per image count.
        image_ids: ids of the images that count.
    """
    with _numpy_float_alias(), tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        from lvis import LVIS, LVISEval, LVISResults

        json.dump(evaluator_annotations(annotations, image_ids), file)
        file.flush()
        truth = LVIS(file.name)
        evaluation = LVISEval(truth, LVISResults(truth, [dict(entry) for entry in results]), "segm")
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.run()
    values = {name: _none_if_negative(value) for name, value in evaluation.get_results().items()}
    params = evaluation.params
    matches = collect_matches(list(evaluation.eval_imgs), len(params.area_rng), len(params.img_ids), LVIS_EVALUATED)
    return Precision(
        {name if name.startswith("AP") else f"LVIS {name}": value for name, value in values.items()}, matches
    )


def evaluator_annotations(content: Annotations, image_ids: Sequence[int]) -> Annotations:
    """Return the annotations of some images in the form that both evaluators require.

    Ids start at 1, since both treat an object of id 0 as none. A missing ``iscrowd`` is 0, ignored objects are omitted,
    missing lists of negative or not exhaustively annotated categories are empty, and a missing frequency is "frequent".
    """
    chosen = set(image_ids)
    defaults = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    objects = [a for a in content["annotations"] if a["image_id"] in chosen and not a.get("ignore")]
    return {
        "info": {},
        "images": [defaults | image for image in content["images"] if image["id"] in chosen],
        "annotations": [{"iscrowd": 0, "bbox": [0, 0, 0, 0]} | a | {"id": i} for i, a in enumerate(objects, start=1)],
        "categories": [{"frequency": "f"} | category for category in content["categories"]],
    }


@contextlib.contextmanager
def _numpy_float_alias() -> Iterator[None]:
    """Provide ``np.float``, which lvis 0.5.3 uses and NumPy removed."""
    missing = not hasattr(np, "float")
    if missing:
        np.float = float  # pyright: ignore
    try:
        yield
    finally:
        if missing:
            del np.float  # pyright: ignore


def _none_if_negative(value: float) -> float | None:
    """Return None for -1, which both evaluators use where nothing counts."""
    return None if value < 0 else float(value)
