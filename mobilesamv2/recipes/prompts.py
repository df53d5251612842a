"""Prompt the model for every object: mean IoU, against the annotated objects or a teacher's masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from mobilesamv2.evaluation.results import result_record, stack_values
from mobilesamv2.evaluation.shards import ResultShards
from mobilesamv2.masks import MASK_THRESHOLD
from mobilesamv2.metrics.prompt_iou import GROUPS, bootstrap_mean_ious, mean_ious
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
    """Return checks of annotations, images, and the weights of model and teacher."""
    return [*dataset_checks(cfg.dataset), *weight_checks(cfg.model, cfg.teacher), *encoder_check(cfg)]


def evaluate(cfg: DictConfig) -> Evaluation:
    """Prompt the model for every object."""
    require_unset(cfg, "task=evaluate_prompts takes one image at a time.", "predictions", "batch_size")
    dataset, sam = build_dataset(cfg, crowds=cfg.task.crowds), inference_model(cfg)
    teacher = instantiate(cfg.teacher, _convert_="all").for_inference() if cfg.teacher else None
    protocol = {
        "kinds": list(cfg.task.kinds),
        **object_record(cfg.task),
        "mask_choice": cfg.task.mask_choice,
        "mask_refinements": cfg.task.mask_refinements,
        "boundary_dilation_ratio": cfg.task.boundary_dilation_ratio,
        "against": "annotated objects" if teacher is None else f"masks of the teacher, {teacher.name}",
        "mask_threshold": MASK_THRESHOLD,
        **image_list_record(dataset, range(len(dataset))),
    }

    def build(shards: ResultShards) -> Any:
        return build_task(cfg, OPTIONS, sam=sam, teacher=teacher, shards=shards, seed=cfg.seed)

    task, run = run_task(cfg, dataset, build, protocol, model_record(cfg, sam, teacher=cfg.teacher))
    run["encoder_cost"] = encoder_cost_of(sam)
    arrays = stack_values(task.results)
    sums, n_gt, kinds = arrays["iou_sums"], arrays["n_gt"], protocol["kinds"]
    results = result_record(
        mean_ious(sums.sum(0), n_gt.sum(0), kinds),
        bootstrap_mean_ious(sums, n_gt, kinds, cfg.seed),
        dict(zip(GROUPS, n_gt.sum(0).tolist(), strict=True)),
        {"num_images": len(task.results), **protocol},
        run,
        cfg.seed,
        task.results,
    )
    ids = np.array([image.image_id for image in task.results])
    return Evaluation(results, {"image_ids": ids, "iou_sums": sums, "n_gt": n_gt, "kinds": np.array(kinds)})
