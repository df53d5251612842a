"""Measure the masks of FastSAM, or of any YOLO with a segmentation head, which needs no prompts and no SAM."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from mobilesamv2.evaluation.results import mask_metric_record, stack_values
from mobilesamv2.evaluation.shards import ResultShards
from mobilesamv2.masks import MASK_THRESHOLD
from mobilesamv2.metrics.mask_metric import MaskMetric
from mobilesamv2.recipes.build import build_detector
from mobilesamv2.recipes.checks import Check, dataset_checks, weight_checks
from mobilesamv2.recipes.evaluation import (
    Evaluation,
    build_dataset,
    build_task,
    image_list_record,
    require_unset,
    run_task,
)
from mobilesamv2.recipes.records import config_record

NEEDS = ("dataset", "detector", "trainer")
OPTIONS = {"save_masks": bool, "metric": dict}


def missing_files(cfg: DictConfig) -> list[Check]:
    """Return checks of annotations, images and the network's weights."""
    return [*dataset_checks(cfg.dataset), *weight_checks(cfg.detector)]


def evaluate(cfg: DictConfig) -> Evaluation:
    """Take the masks of a network without prompts, and measure them."""
    require_unset(
        cfg, "FastSAM takes one image at a time, without SAM.", "predictions", "compile", "onnx_encoder", "batch_size"
    )
    metric: MaskMetric = instantiate(cfg.task.metric, _convert_="all")
    dataset, detector = build_dataset(cfg), build_detector(cfg.detector).fuse_()
    protocol = {
        "sampler": "prompt-free",
        "network": detector.architecture,
        "confidence": cfg.task.confidence,
        "nms_iou": cfg.task.nms_iou,
        "nms_score": "confidence",
        "max_masks": cfg.task.max_masks,
        "rank_by": "confidence",
        **metric.settings,
        "mask_threshold": MASK_THRESHOLD,
        **image_list_record(dataset, range(len(dataset))),
    }

    def build(shards: ResultShards) -> Any:
        return build_task(cfg, OPTIONS, detector=detector, metric=metric, shards=shards)

    networks = {"model": None, "detector": config_record(cfg.detector)}
    task, run = run_task(cfg, dataset, build, protocol, networks, cfg.task.save_masks)
    ids = [image.image_id for image in task.results]
    return Evaluation(
        *mask_metric_record(metric, ids, stack_values(task.results), cfg.seed, protocol, run, task.results)
    )
