"""Prompt the model with a detector's boxes: AP of instance masks, by pycocotools or lvis-api."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytorch_lightning as pl
from omegaconf import DictConfig

from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.data.results_files import read_boxes
from mobilesamv2.evaluation.results import read_masks, result_record, stack_values
from mobilesamv2.evaluation.shards import ResultShards
from mobilesamv2.masks import MASK_THRESHOLD
from mobilesamv2.metrics.ap_interval import bootstrap_ap
from mobilesamv2.metrics.average_precision import coco_ap, lvis_ap
from mobilesamv2.ranges import Range
from mobilesamv2.recipes.checks import Check, dataset_checks, require_file, weight_checks
from mobilesamv2.recipes.evaluation import (
    Evaluation,
    build_dataset,
    build_task,
    encoder_check,
    encoder_cost_of,
    hash_of,
    image_list_record,
    inference_model,
    model_record,
    require_unset,
    run_task,
)

NEEDS = ("dataset", "model", "trainer")
OPTIONS = {"boxes": str | None, "max_boxes": Annotated[int | None, Range(1)]}


def missing_files(cfg: DictConfig) -> list[Check]:
    """Return checks of annotations, images, weights and the detector's boxes."""
    if not cfg.task.boxes:
        raise ValueError("task.boxes must name a detector's boxes, a COCO-results file: task.boxes=FILE.")
    boxes = partial(require_file, cfg.task.boxes)
    return [*dataset_checks(cfg.dataset), *weight_checks(cfg.model), *encoder_check(cfg), boxes]


def evaluate(cfg: DictConfig) -> Evaluation:
    """Prompt the model with a detector's boxes, and score the masks by AP."""
    require_unset(cfg, "task=evaluate_boxes takes one image at a time.", "predictions", "batch_size")
    dataset, sam = build_dataset(cfg), inference_model(cfg)
    if not isinstance(dataset, CocoDataset):
        raise ValueError("AP requires annotations with categories, in COCO's or LVIS's layout: dataset=coco or lvis.")
    boxes = read_boxes(cfg.task.boxes, dataset, cfg.task.max_boxes)
    protocol = {
        "boxes": str(cfg.task.boxes),
        "boxes_sha256": hash_of(Path(cfg.task.boxes)),
        "max_boxes": cfg.task.max_boxes,
        "mask_choice": cfg.task.mask_choice,
        "mask_refinements": cfg.task.mask_refinements,
        "mask_threshold": MASK_THRESHOLD,
        **image_list_record(dataset, range(len(dataset))),
    }

    def build(shards: ResultShards) -> Any:
        return build_task(cfg, OPTIONS, sam=sam, boxes=boxes, shards=shards)

    task, run = run_task(cfg, dataset, build, protocol, model_record(cfg, sam), keep_masks=True)
    run["encoder_cost"] = encoder_cost_of(sam)
    score = lvis_ap if isinstance(dataset, LvisDataset) else coco_ap
    metrics: dict[str, float | None] = {}
    interval: dict[str, list[float] | None] = {}
    if pl.utilities.rank_zero_only.rank == 0:  # pyright: ignore
        metrics, matches = score(dataset.evaluator_content(), read_masks(task.shards.masks_folder), dataset.image_ids)
        interval = dict.fromkeys(metrics) | bootstrap_ap(matches, cfg.seed)
    arrays = stack_values(task.results)
    protocol |= {
        "num_images": len(task.results),
        "images_without_boxes": int((arrays["num_boxes"] == 0).sum()),
        "evaluator": score.__name__,
    }
    n_gt = {"all": int(arrays["n_gt"].sum())}
    results = result_record(metrics, interval, n_gt, protocol, run, cfg.seed, task.results)
    return Evaluation(results, arrays | {"image_ids": np.array([image.image_id for image in task.results])})
