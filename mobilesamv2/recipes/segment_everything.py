"""Segment everything in each image by a model with a prompt sampler, and measure the masks: AR@K or another metric.

``predictions=FILE`` measures the masks of a results file instead; no model runs and no image is read.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf

from mobilesamv2.evaluation.results import mask_metric_record, stack_values
from mobilesamv2.evaluation.shards import ResultShards
from mobilesamv2.masks import MASK_THRESHOLD
from mobilesamv2.metrics.mask_metric import MaskMetric
from mobilesamv2.prompts import PromptHeadBoxes
from mobilesamv2.recipes import predictions
from mobilesamv2.recipes.build import build_detector, build_model, needs_detector, reads_embedding
from mobilesamv2.recipes.checks import Check, dataset_checks, require_file, weight_checks
from mobilesamv2.recipes.evaluation import (
    Evaluation,
    build_dataset,
    build_task,
    encoder_check,
    encoder_cost_of,
    image_list_record,
    inference_model,
    model_record,
    run_task,
)
from mobilesamv2.recipes.records import detector_record
from mobilesamv2.segevery import SegEvery

NEEDS = ("dataset", "trainer")
OPTIONS = {"save_masks": bool, "skip_images_without_results": bool, "metric": dict}


def missing_files(cfg: DictConfig) -> list[Check]:
    """Return checks of annotations, images and weights, or of the results file."""
    if cfg.predictions:
        return [*dataset_checks(cfg.dataset, with_images=False), partial(require_file, cfg.predictions)]
    for group in ("model", "prompt_sampler"):
        if cfg[group] is None:
            raise ValueError(f"{group} must be chosen for this run: {group}=NAME, one of conf/{group}.")
    detector = _detector(cfg)
    return [*dataset_checks(cfg.dataset), *weight_checks(cfg.model, detector), *encoder_check(cfg)]


def evaluate(cfg: DictConfig) -> Evaluation:
    """Segment everything in each image and measure its masks."""
    metric: MaskMetric = instantiate(cfg.task.metric, _convert_="all")
    if cfg.predictions:
        return predictions.score(cfg, metric)
    if cfg.task.skip_images_without_results:
        raise ValueError("task.skip_images_without_results is of predictions=FILE, a results file.")
    dataset = build_dataset(cfg)
    model, detector = build_model(cfg.model, cfg.encoder), _detector(cfg)
    parts = {} if detector is None else {"detector": build_detector(detector, model)}
    sam = inference_model(cfg, model)
    segevery = SegEvery(sam, instantiate(cfg.prompt_sampler, **parts, _convert_="all"))
    protocol = {
        **segevery.sampler.settings,
        **(metric.settings or {"metric": OmegaConf.to_container(cfg.task.metric, resolve=True)}),
        "mask_threshold": MASK_THRESHOLD,
        "nms_score": "predicted IoU",
        **image_list_record(dataset, range(len(dataset))),
    }

    def build(shards: ResultShards) -> Any:
        return build_task(cfg, OPTIONS, segevery=segevery, metric=metric, shards=shards)

    networks = model_record(cfg, sam, detector=detector)
    if detector is not None:
        networks["detector"] = detector_record(detector, parts["detector"])
    task, run = run_task(cfg, dataset, build, protocol, networks, cfg.task.save_masks)
    run["encoder_cost"] = encoder_cost_of(sam)
    ids = [image.image_id for image in task.results]
    return Evaluation(
        *mask_metric_record(metric, ids, stack_values(task.results), cfg.seed, protocol, run, task.results)
    )


def _detector(cfg: DictConfig) -> DictConfig | None:
    """Return the detector's node where the sampler takes one."""
    if not needs_detector(cfg):
        return None
    if cfg.detector is None:
        raise ValueError(
            "prompt_sampler=object_aware and prompt_head prompt with a detector's boxes: detector must not be null; "
            "detector=object_aware_model, mini_detector or mini_prompt_head for example."
        )
    if get_method(cfg.prompt_sampler._target_) is PromptHeadBoxes and not reads_embedding(cfg.detector):
        raise ValueError(
            "prompt_sampler=prompt_head takes a prompt head, which reads the model's embeddings: "
            "detector=mini_prompt_head for mini_conv, or detector=prompt_head detector.checkpoint=FILE."
        )
    return cfg.detector
