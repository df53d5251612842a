"""Compare a detector's boxes with the objects' boxes: box AR@K, and the share of objects that a box reaches."""

from __future__ import annotations

from typing import Any

import numpy as np
from omegaconf import DictConfig

from mobilesamv2.evaluation.results import result_record, stack_values
from mobilesamv2.evaluation.shards import ResultShards
from mobilesamv2.metrics.box_recall import GROUPS, bootstrap_box_recalls, box_recalls
from mobilesamv2.prompt_heads import EncodedDetector
from mobilesamv2.recipes.build import build_detector, build_model, reads_embedding
from mobilesamv2.recipes.checks import Check, dataset_checks, weight_checks
from mobilesamv2.recipes.evaluation import (
    Evaluation,
    build_dataset,
    build_task,
    image_list_record,
    model_record,
    require_unset,
    run_task,
)
from mobilesamv2.recipes.records import detector_record

NEEDS = ("dataset", "detector", "trainer")
OPTIONS: dict[str, Any] = {}


def missing_files(cfg: DictConfig) -> list[Check]:
    """Return checks of annotations, images, and the weights of the detector and of a prompt head's model."""
    if reads_embedding(cfg.detector) and cfg.model is None:
        raise ValueError("model must be chosen for a prompt head, which reads its embeddings: model=NAME.")
    networks = [cfg.detector, *([cfg.model] if reads_embedding(cfg.detector) else [])]
    return [*dataset_checks(cfg.dataset), *weight_checks(*networks)]


def evaluate(cfg: DictConfig) -> Evaluation:
    """Compare a detector's boxes with the objects' boxes."""
    reason = "task=evaluate_detector takes one image at a time, and of SAM at most the image encoder."
    require_unset(cfg, reason, "predictions", "compile", "onnx_encoder", "batch_size")
    dataset = build_dataset(cfg, needs_masks=False)
    if reads_embedding(cfg.detector):
        sam = build_model(cfg.model, cfg.encoder)
        detector = EncodedDetector(sam.for_inference(), build_detector(cfg.detector, sam).fuse_())
        networks = model_record(cfg, sam, detector=cfg.detector)
    else:
        detector = build_detector(cfg.detector).fuse_()
        networks = {"model": None, "detector": detector_record(cfg.detector, detector)}
    ks = list(cfg.task.ks)
    protocol = {
        "network": detector.architecture,
        "confidence": cfg.task.confidence,
        "nms_iou": cfg.task.nms_iou,
        "snap": cfg.task.snap,
        "box_ks": ks,
        **image_list_record(dataset, range(len(dataset))),
    }

    def build(shards: ResultShards) -> Any:
        return build_task(cfg, OPTIONS, detector=detector, shards=shards)

    task, run = run_task(cfg, dataset, build, protocol, networks)
    arrays = stack_values(task.results)
    matched, reached, n_gt = arrays["matched"], arrays["reached"], arrays["n_gt"]
    results = result_record(
        box_recalls(matched.sum(0), reached.sum(0), n_gt.sum(0), ks),
        bootstrap_box_recalls(matched, reached, n_gt, ks, cfg.seed),
        dict(zip(GROUPS, n_gt.sum(0).tolist(), strict=True)),
        {"num_images": len(task.results), **protocol},
        run,
        cfg.seed,
        task.results,
    )
    return Evaluation(results, arrays | {"image_ids": np.array([image.image_id for image in task.results])})
