"""The metrics of an evaluation, computed again from the counts of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.evaluation.results import read_masks, stack_values
from mobilesamv2.evaluation.shards import ImageResult
from mobilesamv2.files import sha256_of
from mobilesamv2.metrics.ap_interval import bootstrap_ap
from mobilesamv2.metrics.average_precision import Precision, coco_ap, lvis_ap
from mobilesamv2.metrics.average_recall import AverageRecall
from mobilesamv2.metrics.clicks import bootstrap_click_metrics, click_metrics
from mobilesamv2.metrics.mask_metric import bootstrap_metrics
from mobilesamv2.metrics.prompt_iou import bootstrap_mean_ious, mean_ious


class Recomputed(NamedTuple):
    """What an evaluation must have written.

    Attributes:
        metrics: by name.
        interval: [low, high] under the same names; None where there are none.
        per_image: arrays of per_image.npz, beside the ids.
    """

    metrics: Mapping[str, float | None]
    interval: Mapping[str, list[float] | None] | None
    per_image: Mapping[str, np.ndarray]


def recompute(
    result: Mapping[str, Any], images: Sequence[ImageResult], folder: Path, annotations: Path | None
) -> Recomputed:
    """Compute the metrics of a result from its images.

    Args:
        result: the content of results.json.
        images: of ``read_images``, at least one.
        folder: of the evaluation; AP is computed of its masks.
        annotations: file that AP is computed against; None is the one that the result names.

    Raises:
        ValueError: if the metrics are of a kind that can't be computed again, or the annotations are others.
        FileNotFoundError: if the annotations of AP are missing.
        KeyError: if the images lack the counts of this kind.
    """
    protocol, seed, arrays = result["protocol"], result["run"]["seed"], stack_values(images)
    if "ks" in protocol:
        metric = AverageRecall(protocol["ks"], protocol["k_caps"])
        sums = {name: each.sum(0) for name, each in arrays.items()}
        return Recomputed(metric.summarize(sums), bootstrap_metrics(metric, arrays, seed), metric.per_image(arrays))
    if "kinds" in protocol:
        kinds, ious, n_gt = protocol["kinds"], arrays["iou_sums"], arrays["n_gt"]
        per_image = {"iou_sums": ious, "n_gt": n_gt, "kinds": np.array(kinds)}
        metrics = mean_ious(ious.sum(0), n_gt.sum(0), kinds)
        return Recomputed(metrics, bootstrap_mean_ious(ious, n_gt, kinds, seed), per_image)
    if "noc_ious" in protocol:
        ious, clicked, n_gt = protocol["noc_ious"], arrays["sums"], arrays["n_gt"]
        first = 0 if protocol["first_prompt"] == "box" else 1
        metrics = click_metrics(clicked.sum(0), n_gt.sum(0), ious, first)
        interval = bootstrap_click_metrics(clicked, n_gt, ious, first, seed)
        return Recomputed(metrics, interval, {"sums": clicked, "n_gt": n_gt})
    if "boxes" in protocol:
        values, matches = _precision(protocol, images, folder, annotations)
        return Recomputed(values, dict.fromkeys(values) | bootstrap_ap(matches, seed), arrays)
    raise ValueError("its metrics are of a kind that can't be computed again from its images")


def _precision(
    protocol: Mapping[str, Any], images: Sequence[ImageResult], folder: Path, annotations: Path | None
) -> Precision:
    """Return AP of the masks that an evaluation kept."""
    path = Path(protocol["annotations"]) if annotations is None else annotations
    if not path.is_file():
        raise FileNotFoundError(f"AP is computed against {path}, which is not there: --annotations FILE.")
    if sha256_of([path]) != protocol["annotations_sha256"]:
        raise ValueError(f"its annotations are not those of {path}")
    kind, score = (LvisDataset, lvis_ap) if protocol["evaluator"] == "lvis_ap" else (CocoDataset, coco_ap)
    ids = [image.image_id for image in images]
    return score(kind(path).evaluator_content(), read_masks(folder / "masks"), ids)
