"""Measure the masks of a COCO-results file, whatever program wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from mobilesamv2.data.results_files import read_results
from mobilesamv2.evaluation.results import mask_metric_record
from mobilesamv2.metrics.mask_metric import MaskMetric, measure_image
from mobilesamv2.recipes.build import output_folder
from mobilesamv2.recipes.evaluation import Evaluation, build_dataset, hash_of, image_list_record, require_unset
from mobilesamv2.recipes.run_folder import write_hydra_record
from mobilesamv2.structures import RLE

UNKNOWN = ("sampler", "predicted_iou", "stability", "nms_iou", "nms_score", "mask_threshold")
"""Settings that a results file does not record of how its masks were made."""


class FileMasks(NamedTuple):
    """The masks of one image in a results file."""

    rles: list[RLE]
    scores: Tensor


def score(cfg: DictConfig, metric: MaskMetric) -> Evaluation:
    """Measure the masks of a results file."""
    require_unset(cfg, "predictions=FILE runs no model.", "compile", "onnx_encoder", "batch_size")
    if cfg.task.save_masks:
        raise ValueError("task.save_masks must not be set: predictions=FILE has the masks already.")
    if metric.needs_prompt_ranks:
        raise ValueError("A results file does not record which masks share a prompt: task.metric.k_caps=masks.")
    dataset = build_dataset(cfg, with_images=False)
    values: dict[int, dict[str, np.ndarray]] = {}

    def measure(i: int, rles: list[RLE], scores: list[float]) -> None:
        masks = FileMasks(rles, torch.tensor(scores, dtype=torch.float64))
        values[i] = measure_image(metric, dataset.ground_truth(i), masks)

    with tqdm(total=len(dataset), desc="scoring", unit="image", disable=None) as progress:
        for i, (rles, scores) in read_results(cfg.predictions, dataset):
            measure(i, rles, scores)
            progress.update()
    skip = cfg.task.skip_images_without_results
    without = [i for i in range(len(dataset)) if i not in values]
    if without and not skip:
        print(
            f"{len(without)} of {len(dataset)} images have no mask in {cfg.predictions}, and their objects count as "
            "missed; task.skip_images_without_results=true leaves these images out."
        )
        for i in without:
            measure(i, [], [])
    if not values:
        raise ValueError(f"{cfg.predictions} has no mask on any image, and skip_images_without_results leaves all out.")
    protocol: dict[str, Any] = dict.fromkeys(UNKNOWN) | {
        "predictions": str(cfg.predictions),
        "predictions_sha256": hash_of(Path(cfg.predictions)),
        "rank_by": "score",
        "skip_images_without_results": skip,
        **image_list_record(dataset, values),
    }
    write_hydra_record(cfg, output_folder(cfg))
    order = sorted(values, key=lambda i: dataset.image_ids[i])
    stacked = {name: np.stack([values[i][name] for i in order]) for name in values[order[0]]}
    run: dict[str, Any] = dict.fromkeys(("model", "detector", "device", "dtype"))
    ids = [dataset.image_ids[i] for i in order]
    return Evaluation(*mask_metric_record(metric, ids, stacked, cfg.seed, protocol, run, None))
