"""Measures masks and models: ``python evaluate.py dataset=lvis``. See ``--help`` and the README."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

import schema
from mobilesamv2 import SegEvery
from mobilesamv2.data.annotated_images import AnnotatedImages
from mobilesamv2.data.datamodule import EvaluationData
from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.data.results_files import read_boxes, read_results
from mobilesamv2.masks import MASK_THRESHOLD
from mobilesamv2.metrics.average_recall import AverageRecall, ImageCounts, count_matches
from mobilesamv2.metrics.box_prompted_ap import coco_ap, format_ap, lvis_ap, read_masks
from mobilesamv2.metrics.prompt_iou import GROUPS as SIZE_GROUPS
from mobilesamv2.metrics.prompt_iou import bootstrap_mean_ious, format_ious, mean_ious
from mobilesamv2.metrics.proposal_report import format_table, per_image_arrays, proposal_results
from mobilesamv2.metrics.result_record import Results, result_record, write_record
from mobilesamv2.metrics.result_shards import ImageResult, ResultShards
from mobilesamv2.tasks.evaluate import EvaluateImages
from preflight import (
    dataset_checks,
    described,
    environment,
    needs_detector,
    output_folder,
    require_all,
    sentences,
    warn_of_random_weights,
    weight_checks,
    without_noise,
)

schema.register()


class Evaluation(NamedTuple):
    """A result, its table, and what is kept of each image."""

    results: Results
    table: str
    per_image: dict[str, np.ndarray]


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Composes, builds, runs, and prints the table."""
    without_noise()
    folder, known = output_folder(cfg), environment(cfg.seed)
    name = "predictions" if cfg.predictions else cfg.task._target_.rsplit(".", 1)[1]
    with sentences():
        require_files(cfg, name)
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        results, table, per_image = EVALUATIONS[name](cfg)
    if pl.utilities.rank_zero_only.rank != 0:  # pyright: ignore
        return
    results["run"] |= known
    written = write_record(results, folder, **per_image)
    print(table)
    print(f"\nwritten: {' and '.join(map(str, written))}")


UNKNOWN_OF_PREDICTIONS = ("sampler", "predicted_iou", "stability", "nms_iou", "nms_score", "mask_threshold")
"""What a results file does not say of how its masks were made."""


def score_predictions(cfg: DictConfig) -> Evaluation:
    """Counts the masks of a results file."""
    if not cfg.task._target_.endswith("EvaluateProposals") or cfg.task.k_caps != "masks":
        raise ValueError(
            "predictions= are scored by AR@K, where K caps masks: task=evaluate_proposals task.k_caps=masks."
        )
    dataset = build_dataset(cfg, with_images=False)
    recall = AverageRecall(list(cfg.task.ks))
    counts: dict[int, ImageCounts] = {}
    with tqdm(total=len(dataset), desc="scoring", unit="image", disable=None) as progress:
        for i, (rles, scores) in read_results(cfg.predictions, dataset):
            counts[i] = count_matches(dataset.ground_truth(i), rles, scores, recall.ks)
            progress.update()
    without = [i for i in range(len(dataset)) if i not in counts]
    if without and not cfg.skip_images_without_results:
        print(
            f"{len(without)} of {len(dataset)} images have no mask in {cfg.predictions}, and their objects count as "
            "missed; skip_images_without_results=true leaves these images out."
        )
        counts |= {i: count_matches(dataset.ground_truth(i), [], [], recall.ks) for i in without}
    for count in counts.values():
        recall.update(count)
    protocol = dict.fromkeys(UNKNOWN_OF_PREDICTIONS) | {
        "k_caps": "masks",
        "predictions": str(cfg.predictions),
        "rank_by": "score",
        "skip_images_without_results": cfg.skip_images_without_results,
        **images_of(dataset, counts),
    }
    run: dict[str, Any] = dict.fromkeys(("model", "detector", "device", "dtype"))
    results = proposal_results(recall, list(counts.values()), cfg.seed, protocol, run)
    return Evaluation(results, format_table(results), per_image_arrays(list(counts.values()), recall.ks))


def score_proposals(cfg: DictConfig) -> Evaluation:
    """Segments everything in each image and counts its masks: AR@K."""
    dataset, sam = build_dataset(cfg), build_model(cfg)
    parts = {"detector": instantiate(cfg.detector, _convert_="all")} if needs_detector(cfg) else {}
    sampler = instantiate(cfg.prompt_sampler, **parts, _convert_="all")
    nodes = {"model": cfg.model, "detector": cfg.detector if parts else None}
    protocol = {
        **sampler.settings,
        "k_caps": cfg.task.k_caps,
        "mask_threshold": MASK_THRESHOLD,
        "nms_score": "predicted IoU",
        **images_of(dataset, range(len(dataset))),
    }

    def build(shards: ResultShards) -> EvaluateImages:
        return instantiate(cfg.task, segevery=SegEvery(sam, sampler), shards=shards, _convert_="all")

    task, run = run_task(cfg, dataset, build, protocol | {"ks": list(cfg.task.ks)}, nodes, cfg.save_masks)
    results = proposal_results(task.recall, task.images, cfg.seed, protocol, run, task.results)
    return Evaluation(results, format_table(results), per_image_arrays(task.images, task.recall.ks))


def score_prompts(cfg: DictConfig) -> Evaluation:
    """Prompts the model for every object: mIoU."""
    dataset, sam = build_dataset(cfg), build_model(cfg)
    teacher = instantiate(cfg.teacher, _convert_="all") if cfg.teacher else None
    protocol = {
        "kinds": list(cfg.task.kinds),
        "against": "annotated objects" if teacher is None else f"masks of the teacher, {teacher.name}",
        "mask_threshold": MASK_THRESHOLD,
        **images_of(dataset, range(len(dataset))),
    }

    def build(shards: ResultShards) -> EvaluateImages:
        return instantiate(cfg.task, sam=sam, teacher=teacher, shards=shards, seed=cfg.seed, _convert_="all")

    task, run = run_task(cfg, dataset, build, protocol, {"model": cfg.model, "teacher": cfg.teacher})
    images: list[ImageResult] = task.results
    sums, n_gt = (np.stack([image.values[name] for image in images]) for name in ("iou_sums", "n_gt"))
    kinds = protocol["kinds"]
    results = result_record(
        mean_ious(sums.sum(0), n_gt.sum(0), kinds),
        bootstrap_mean_ious(sums, n_gt, kinds, cfg.seed),
        dict(zip(SIZE_GROUPS, n_gt.sum(0).tolist(), strict=True)),
        {"num_images": len(images), **protocol},
        run,
        cfg.seed,
        images,
    )
    ids = np.array([image.image_id for image in images])
    arrays = {"image_ids": ids, "iou_sums": sums, "n_gt": n_gt, "kinds": np.array(kinds)}
    return Evaluation(results, format_ious(results), arrays)


def score_boxes(cfg: DictConfig) -> Evaluation:
    """Prompts the model with a detector's boxes: AP of instance masks."""
    dataset, sam = build_dataset(cfg), build_model(cfg)
    if "annotations" not in cfg.dataset:
        raise ValueError("AP wants annotations with categories, in COCO's or LVIS's layout: dataset=coco or lvis.")
    boxes = read_boxes(cfg.boxes, dataset, cfg.max_boxes)
    protocol = {
        "boxes": str(cfg.boxes),
        "boxes_sha256": hashlib.sha256(Path(cfg.boxes).read_bytes()).hexdigest(),
        "max_boxes": cfg.max_boxes,
        "mask_threshold": MASK_THRESHOLD,
        **images_of(dataset, range(len(dataset))),
    }

    def build(shards: ResultShards) -> EvaluateImages:
        return instantiate(cfg.task, sam=sam, boxes=boxes, shards=shards, _convert_="all")

    task, run = run_task(cfg, dataset, build, protocol, {"model": cfg.model}, keep_masks=True)
    images: list[ImageResult] = task.results
    score = lvis_ap if isinstance(dataset, LvisDataset) else coco_ap
    metrics: dict[str, float | None] = {}
    if pl.utilities.rank_zero_only.rank == 0:  # pyright: ignore
        metrics = score(cfg.dataset.annotations, read_masks(task.shards.masks_folder), dataset.image_ids)
    num_objects = sum(len(dataset.ground_truth(i).rles) for i in range(len(dataset)))
    protocol |= {"num_images": len(images), "evaluator": score.__name__}
    results = result_record(metrics, None, {"all": num_objects}, protocol, run, cfg.seed, images)
    arrays = {"image_ids": np.array([image.image_id for image in images])}
    return Evaluation(results, format_ap(results), arrays)


EVALUATIONS: dict[str, Callable[[DictConfig], Evaluation]] = {
    "predictions": score_predictions,
    "EvaluateProposals": score_proposals,
    "EvaluatePrompts": score_prompts,
    "EvaluateBoxes": score_boxes,
}
"""By the class of the task."""


def run_task(
    cfg: DictConfig,
    dataset: AnnotatedImages,
    build: Callable[[ResultShards], EvaluateImages],
    protocol: dict[str, Any],
    nodes: dict[str, DictConfig | None],
    keep_masks: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """The task after all images, and what is to be said of the run."""
    warn_of_random_weights(nodes)
    trainer = instantiate(cfg.trainer, _convert_="all")
    run: dict[str, Any] = {name: described(node) for name, node in nodes.items()}
    identity = {**protocol, **run, "dtype": str(trainer.precision), "seed": cfg.seed}
    shards = ResultShards(output_folder(cfg), identity, keep_masks)
    task = build(shards)
    data = EvaluationData(dataset, cfg.num_workers, done=[result.image_id for result in shards.done])
    if shards.done and trainer.is_global_zero:
        print(f"{len(shards.done)} of {len(dataset)} images were done before; going on with {len(data.remaining)}.")
    trainer.test(task, datamodule=data, verbose=False)
    run["model"]["encoder"] = task.sam.encoder_name
    return task, run | {"device": device_name(trainer), "dtype": str(trainer.precision)}


def build_model(cfg: DictConfig) -> Any:
    """The model of conf/model, with another image encoder where conf/encoder names one."""
    encoder = {"encoder": cfg.encoder.name} if cfg.encoder else {}
    return instantiate(cfg.model, **encoder, _convert_="all")


def build_dataset(cfg: DictConfig, with_images: bool = True) -> AnnotatedImages:
    """The data set, without its images where they are not read."""
    without = {"images": None} if "images" in cfg.dataset and not with_images else {}
    return instantiate(cfg.dataset, **without, _convert_="all")


def images_of(dataset: AnnotatedImages, indices: Sequence[int] | dict[int, Any]) -> dict[str, Any]:
    """Where the images come from, and the hash of their ids, one a line in ascending order."""
    ids = dataset.image_ids
    lines = "\n".join(map(str, sorted(ids[i] for i in indices)))
    return dataset.provenance | {"image_list_sha256": hashlib.sha256(lines.encode()).hexdigest()}


def device_name(trainer: pl.Trainer) -> str:
    """What a process ran on, and how many there were."""
    device = trainer.strategy.root_device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return kind if trainer.world_size == 1 else f"{trainer.world_size} x {kind}"


def require_files(cfg: DictConfig, name: str) -> None:
    """Nothing, if every file that the run reads is there; otherwise one error that names all that are missing."""
    checks = dataset_checks(cfg.dataset, with_images=name != "predictions")
    if name != "predictions":
        detector = cfg.detector if name == "EvaluateProposals" and needs_detector(cfg) else None
        checks += weight_checks(cfg.model, detector, cfg.teacher if name == "EvaluatePrompts" else None)
    require_all(checks)


if __name__ == "__main__":
    main()
