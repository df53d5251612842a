"""Click on every object until its mask is right: mIoU after each click, NoC and NoF."""

from __future__ import annotations

from typing import Any

import numpy as np
from omegaconf import DictConfig

from mobilesamv2.evaluation.results import result_record, stack_values
from mobilesamv2.evaluation.shards import ResultShards
from mobilesamv2.masks import MASK_THRESHOLD
from mobilesamv2.metrics.clicks import bootstrap_click_metrics, click_metrics
from mobilesamv2.metrics.prompt_iou import GROUPS
from mobilesamv2.recipes.checks import Check, dataset_checks, weight_checks
from mobilesamv2.recipes.evaluation import (
    Evaluation,
    build_dataset,
    build_task,
    encoder_check,
    encoder_cost_of,
    image_list_record,
    inference_model,
    model_record,
    object_record,
    require_unset,
    run_task,
)

NEEDS = ("dataset", "model", "trainer")
OPTIONS: dict[str, Any] = {"crowds": str}


def missing_files(cfg: DictConfig) -> list[Check]:
    """Return checks of annotations, images and weights."""
    return [*dataset_checks(cfg.dataset), *weight_checks(cfg.model), *encoder_check(cfg)]


def evaluate(cfg: DictConfig) -> Evaluation:
    """Click on every object."""
    require_unset(cfg, "task=evaluate_clicks takes one image at a time.", "predictions", "batch_size")
    dataset, sam = build_dataset(cfg, crowds=cfg.task.crowds), inference_model(cfg)
    keys = ("first_prompt", "next_click", "max_clicks", "mask_choice", "mask_input")
    protocol = {
        **{key: cfg.task[key] for key in keys},
        "noc_ious": list(cfg.task.ious),
        **object_record(cfg.task),
        "mask_threshold": MASK_THRESHOLD,
        **image_list_record(dataset, range(len(dataset))),
    }

    def build(shards: ResultShards) -> Any:
        return build_task(cfg, OPTIONS, sam=sam, shards=shards, seed=cfg.seed)

    task, run = run_task(cfg, dataset, build, protocol, model_record(cfg, sam))
    run["encoder_cost"] = encoder_cost_of(sam)
    arrays = stack_values(task.results)
    sums, n_gt = arrays["sums"], arrays["n_gt"]
    results = result_record(
        click_metrics(sums.sum(0), n_gt.sum(0), task.ious, task.first_step),
        bootstrap_click_metrics(sums, n_gt, task.ious, task.first_step, cfg.seed),
        dict(zip(GROUPS, n_gt.sum(0).tolist(), strict=True)),
        {"num_images": len(task.results), **protocol},
        run,
        cfg.seed,
        task.results,
    )
    ids = np.array([image.image_id for image in task.results])
    return Evaluation(results, {"image_ids": ids, "sums": sums, "n_gt": n_gt})
