"""AP of instance masks, by pycocotools for COCO and lvis-api for LVIS."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilesamv2.data.coco import read_json
from mobilesamv2.metrics.result_record import Results, percent, time_lines

COCO_NAMES = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    *(f"COCO {ar}" for ar in ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")),
)
"""Of COCOeval's ``stats``, in order; its AR is a mean over categories, and no AR@K of proposals."""

Annotations = dict[str, Any]


def coco_ap(
    annotations: str | Path, results: list[dict[str, Any]], image_ids: Sequence[int]
) -> dict[str, float | None]:
    """COCO's twelve numbers of instance masks, as fractions.

    Args:
        annotations: a file in COCO's layout.
        results: masks as COCO results, one or more.
        image_ids: of the images that count.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = sound_annotations(annotations, image_ids)  # pyright: ignore
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(entry) for entry in results]), "segm")  # pyright: ignore
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: _or_none(value) for name, value in zip(COCO_NAMES, evaluation.stats, strict=True)}


def lvis_ap(
    annotations: str | Path, results: list[dict[str, Any]], image_ids: Sequence[int]
) -> dict[str, float | None]:
    """LVIS's AP of instance masks, by size and frequency, and AR@300 over categories, as fractions.

    Args:
        annotations: a file in LVIS's layout.
        results: masks as COCO results, one or more; the best 300 of an image count.
        image_ids: of the images that count.
    """
    with _numpy_as_lvis_knows_it(), tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        from lvis import LVIS, LVISEval, LVISResults

        json.dump(sound_annotations(annotations, image_ids), file)
        file.flush()
        truth = LVIS(file.name)
        evaluation = LVISEval(truth, LVISResults(truth, [dict(entry) for entry in results]), "segm")
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.run()
    values = {name: _or_none(value) for name, value in evaluation.get_results().items()}
    return {name if name.startswith("AP") else f"LVIS {name}": value for name, value in values.items()}


def sound_annotations(path: str | Path, image_ids: Sequence[int]) -> Annotations:
    """The annotations of some images, as both evaluators want them.

    Ids run from 1, since both take an object of id 0 for none; ``iscrowd`` is 0 where it is not said; ignored objects
    are left out; an image of which nothing is said lacks no category, and a category of unsaid frequency is frequent.
    """
    content = read_json(Path(path))
    chosen = set(image_ids)
    said = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    objects = [a for a in content["annotations"] if a["image_id"] in chosen and not a.get("ignore")]
    return {
        "info": {},
        "images": [said | image for image in content["images"] if image["id"] in chosen],
        "annotations": [{"iscrowd": 0, "bbox": [0, 0, 0, 0]} | a | {"id": i} for i, a in enumerate(objects, start=1)],
        "categories": [{"frequency": "f"} | category for category in content["categories"]],
    }


def read_masks(folder: Path) -> list[dict[str, Any]]:
    """All entries of the COCO-results files in a folder."""
    return [entry for path in sorted(folder.glob("*.json")) for entry in json.loads(path.read_bytes())]


def format_ap(results: Results) -> str:
    """The table that is printed, percent."""
    lines = [f"{name:<12}{percent(value):>8}" for name, value in results["metrics"].items()]
    protocol = results["protocol"]
    images = f"{protocol['num_images']} images, {protocol['images_without_boxes']} without boxes"
    return "\n".join(["mask AP (%)", *lines, f"{images}; boxes of {protocol['boxes']}", *time_lines(results)])


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
