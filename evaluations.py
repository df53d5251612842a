"""The evaluations that evaluate.py chooses from: each wires a task of conf/ and gives a result and its table."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from mobilesamv2 import SegEvery
from mobilesamv2.data.annotated_images import AnnotatedImages
from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.datamodule import EvaluationData
from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.data.provenance import sha256_of
from mobilesamv2.data.results_files import read_boxes, read_results
from mobilesamv2.exported import OnnxEncoder
from mobilesamv2.masks import MASK_THRESHOLD
from mobilesamv2.metrics.average_recall import AverageRecall, ImageCounts, count_matches
from mobilesamv2.metrics.mask_metric import bootstrap_metrics, format_metrics
from mobilesamv2.metrics.prompt_iou import GROUPS as SIZE_GROUPS
from mobilesamv2.metrics.prompt_iou import bootstrap_mean_ious, format_ious, mean_ious
from mobilesamv2.metrics.proposal_report import format_table, per_image_arrays, proposal_results
from mobilesamv2.metrics.result_record import Results, result_record
from mobilesamv2.metrics.result_shards import ImageResult, ResultShards
from mobilesamv2.models.cost import encoder_cost
from mobilesamv2.models.sam import Sam
from mobilesamv2.registry import build_encoder
from mobilesamv2.reports.box_prompted_ap import coco_ap, format_ap, lvis_ap, read_masks
from mobilesamv2.tasks.evaluate import EvaluateImages
from preflight import (
    build_model,
    described,
    environment,
    loggers,
    needs_detector,
    output_folder,
    progress_bars,
    warn_of_random_weights,
)


class Evaluation(NamedTuple):
    """A result, its table, and what is kept of each image."""

    results: Results
    table: str
    per_image: dict[str, np.ndarray]


UNKNOWN_OF_PREDICTIONS = ("sampler", "predicted_iou", "stability", "nms_iou", "nms_score", "mask_threshold")
"""What a results file does not say of how its masks were made."""


def score_predictions(cfg: DictConfig) -> Evaluation:
    """Counts the masks of a results file."""
    if cfg.task.k_caps != "masks":
        raise ValueError("A results file does not say which masks share a prompt: task.k_caps=masks.")
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
    if not counts:
        raise ValueError(f"{cfg.predictions} has no mask on any image, and skip_images_without_results leaves all out.")
    for count in counts.values():
        recall.update(count)
    protocol = dict.fromkeys(UNKNOWN_OF_PREDICTIONS) | {
        "k_caps": "masks",
        "predictions": str(cfg.predictions),
        "predictions_sha256": _hash_of(Path(cfg.predictions)),
        "rank_by": "score",
        "skip_images_without_results": cfg.skip_images_without_results,
        **images_of(dataset, counts),
    }
    run: dict[str, Any] = dict.fromkeys(("model", "detector", "device", "dtype"))
    results = proposal_results(recall, list(counts.values()), cfg.seed, protocol, run)
    return Evaluation(results, format_table(results), per_image_arrays(list(counts.values()), recall.ks))


def inference_model(cfg: DictConfig) -> Sam:
    """The model that is evaluated, made faster where that changes nothing."""
    sam = build_model(cfg.model, cfg.encoder)
    fast = sam.for_inference()
    if cfg.onnx_encoder:
        fast.image_encoder = OnnxEncoder(cfg.onnx_encoder, sam)
    if cfg.compile:
        fast.image_encoder.compile()
    return fast


def encoder_cost_of(sam: Sam) -> dict[str, int]:
    """Parameters and multiply-accumulates of the image encoder, as it was built."""
    with torch.device("meta"):
        encoder = build_encoder(str(sam.encoder_name), sam.image_size, sam.prompt_encoder.embed_dim)
    return encoder_cost(encoder.eval(), sam.image_size)._asdict()


def score_proposals(cfg: DictConfig) -> Evaluation:
    """Segments everything in each image and counts its masks: AR@K."""
    dataset = build_dataset(cfg)
    segevery, networks = build_segevery(cfg)
    protocol = {
        **segevery.sampler.settings,
        "k_caps": cfg.task.k_caps,
        "mask_threshold": MASK_THRESHOLD,
        "nms_score": "predicted IoU",
        **images_of(dataset, range(len(dataset))),
    }

    def build(shards: ResultShards) -> EvaluateImages:
        return instantiate(cfg.task, segevery=segevery, shards=shards, _convert_="all")

    task, run = run_task(cfg, dataset, build, protocol | {"ks": list(cfg.task.ks)}, networks, cfg.save_masks)
    run["encoder_cost"] = encoder_cost_of(segevery.segany.sam)
    results = proposal_results(task.recall, task.images, cfg.seed, protocol, run, task.results)
    return Evaluation(results, format_table(results), per_image_arrays(task.images, task.recall.ks))


def score_masks(cfg: DictConfig) -> Evaluation:
    """Segments everything in each image and measures its masks by the task's metric."""
    dataset = build_dataset(cfg)
    segevery, networks = build_segevery(cfg)
    protocol = {
        **segevery.sampler.settings,
        "metric": OmegaConf.to_container(cfg.task.metric, resolve=True),
        "mask_threshold": MASK_THRESHOLD,
        "nms_score": "predicted IoU",
        **images_of(dataset, range(len(dataset))),
    }

    def build(shards: ResultShards) -> EvaluateImages:
        return instantiate(cfg.task, segevery=segevery, shards=shards, _convert_="all")

    task, run = run_task(cfg, dataset, build, protocol, networks, cfg.save_masks)
    run["encoder_cost"] = encoder_cost_of(segevery.segany.sam)
    images: list[ImageResult] = task.results
    arrays = {name: np.stack([image.values[name] for image in images]) for name in images[0].values}
    results = result_record(
        task.metric.summarize({name: each.sum(0) for name, each in arrays.items()}),
        bootstrap_metrics(task.metric, arrays, cfg.seed),
        {"all": int(arrays["n_gt"].sum())},
        {"num_images": len(images), **protocol},
        run,
        cfg.seed,
        images,
    )
    arrays["image_ids"] = np.array([image.image_id for image in images])
    return Evaluation(results, format_metrics(results), arrays)


def build_segevery(cfg: DictConfig) -> tuple[SegEvery, dict[str, Any]]:
    """The model with its prompt sampler, and their networks as they are recorded."""
    sam = inference_model(cfg)
    parts = {"detector": instantiate(cfg.detector, _convert_="all")} if needs_detector(cfg) else {}
    sampler = instantiate(cfg.prompt_sampler, **parts, _convert_="all")
    return SegEvery(sam, sampler), networks_of(
        cfg, sam, {"model": cfg.model, "detector": cfg.detector if parts else None}
    )


def score_prompt_free(cfg: DictConfig) -> Evaluation:
    """Takes the masks of a network that needs no prompts, and counts them: AR@K."""
    dataset, detector = build_dataset(cfg), instantiate(cfg.detector, _convert_="all").for_inference()
    protocol = {
        "sampler": "prompt-free",
        "network": detector.architecture,
        "confidence": cfg.task.confidence,
        "nms_iou": cfg.task.nms_iou,
        "nms_score": "confidence",
        "max_masks": cfg.task.max_masks,
        "rank_by": "confidence",
        "k_caps": "masks",
        "mask_threshold": MASK_THRESHOLD,
        **images_of(dataset, range(len(dataset))),
    }

    def build(shards: ResultShards) -> EvaluateImages:
        return instantiate(cfg.task, detector=detector, shards=shards, _convert_="all")

    networks = {"model": None, "detector": described(cfg.detector)}
    task, run = run_task(cfg, dataset, build, protocol | {"ks": list(cfg.task.ks)}, networks, cfg.save_masks)
    results = proposal_results(task.recall, task.images, cfg.seed, protocol, run, task.results)
    return Evaluation(results, format_table(results), per_image_arrays(task.images, task.recall.ks))


def score_prompts(cfg: DictConfig) -> Evaluation:
    """Prompts the model for every object: mIoU."""
    dataset, sam = build_dataset(cfg), inference_model(cfg)
    teacher = instantiate(cfg.teacher, _convert_="all").for_inference() if cfg.teacher else None
    protocol = {
        "kinds": list(cfg.task.kinds),
        "against": "annotated objects" if teacher is None else f"masks of the teacher, {teacher.name}",
        "mask_threshold": MASK_THRESHOLD,
        **images_of(dataset, range(len(dataset))),
    }

    def build(shards: ResultShards) -> EvaluateImages:
        return instantiate(cfg.task, sam=sam, teacher=teacher, shards=shards, seed=cfg.seed, _convert_="all")

    networks = networks_of(cfg, sam, {"model": cfg.model, "teacher": cfg.teacher})
    task, run = run_task(cfg, dataset, build, protocol, networks)
    run["encoder_cost"] = encoder_cost_of(sam)
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
    dataset, sam = build_dataset(cfg), inference_model(cfg)
    if not isinstance(dataset, CocoDataset):
        raise ValueError("AP wants annotations with categories, in COCO's or LVIS's layout: dataset=coco or lvis.")
    boxes = read_boxes(cfg.boxes, dataset, cfg.max_boxes)
    protocol = {
        "boxes": str(cfg.boxes),
        "boxes_sha256": _hash_of(Path(cfg.boxes)),
        "max_boxes": cfg.max_boxes,
        "mask_threshold": MASK_THRESHOLD,
        **images_of(dataset, range(len(dataset))),
    }

    def build(shards: ResultShards) -> EvaluateImages:
        return instantiate(cfg.task, sam=sam, boxes=boxes, shards=shards, _convert_="all")

    task, run = run_task(cfg, dataset, build, protocol, networks_of(cfg, sam, {"model": cfg.model}), keep_masks=True)
    run["encoder_cost"] = encoder_cost_of(sam)
    images: list[ImageResult] = task.results
    score = lvis_ap if isinstance(dataset, LvisDataset) else coco_ap
    metrics: dict[str, float | None] = {}
    if pl.utilities.rank_zero_only.rank == 0:  # pyright: ignore
        metrics = score(cfg.dataset.annotations, read_masks(task.shards.masks_folder), dataset.image_ids)
    arrays = {name: np.stack([image.values[name] for image in images]) for name in ("num_boxes", "n_gt")}
    protocol |= {
        "num_images": len(images),
        "images_without_boxes": int((arrays["num_boxes"] == 0).sum()),
        "evaluator": score.__name__,
    }
    results = result_record(metrics, None, {"all": int(arrays["n_gt"].sum())}, protocol, run, cfg.seed, images)
    arrays["image_ids"] = np.array([image.image_id for image in images])
    return Evaluation(results, format_ap(results), arrays)


def networks_of(cfg: DictConfig, sam: Sam, nodes: dict[str, DictConfig | None]) -> dict[str, Any]:
    """The networks of a run as it records them, the model with the image encoder that it was built with."""
    networks: dict[str, Any] = {name: described(node) for name, node in nodes.items()}
    networks["model"]["encoder"] = sam.encoder_name
    if cfg.onnx_encoder:
        networks["model"] |= {"onnx_encoder": cfg.onnx_encoder, "onnx_encoder_sha256": _hash_of(Path(cfg.onnx_encoder))}
    return networks


def run_task(
    cfg: DictConfig,
    dataset: AnnotatedImages,
    build: Callable[[ResultShards], EvaluateImages],
    protocol: dict[str, Any],
    networks: dict[str, Any],
    keep_masks: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """The task after all images, and what is to be said of the run.

    Args:
        cfg: what the user asked for.
        dataset: the images.
        build: makes the task, which keeps its results in the shards that it is given.
        protocol: what the results depend on beside the networks.
        networks: as they are recorded, by their names in conf/; None for one that takes no part.
        keep_masks: write every mask.
    """
    warn_of_random_weights(networks)
    dataset.check_images()
    trainer = instantiate(
        cfg.trainer,
        logger=loggers(cfg.logger, output_folder(cfg)) or False,
        callbacks=progress_bars(cfg.trainer),
        _convert_="all",
    )
    run = networks | {"dtype": str(trainer.precision)}
    now = {"device": device_name(trainer), **environment(cfg.seed)}
    shards = ResultShards(output_folder(cfg), identity_of(protocol, run, cfg.seed), keep_masks, now)
    task = build(shards)
    done = [result.image_id for result in shards.done]
    data = EvaluationData(dataset, cfg.num_workers, done, cfg.batch_size)
    if shards.done and trainer.is_global_zero:
        print(f"{len(shards.done)} of {len(dataset)} images were done before; going on with {len(data.remaining)}.")
    trainer.test(task, datamodule=data, verbose=False)
    if [result.image_id for result in task.results] != sorted(dataset.image_ids):
        raise ValueError(
            f"{len(task.results)} results for {len(dataset)} images: another program wrote into {output_folder(cfg)}, "
            "or the trainer was told to leave images out. Choose images by dataset.limit; one output_dir for each run."
        )
    # parts of this result that were computed elsewhere, or by another version
    return task, run | {"device": now["device"], "earlier_environments": shards.earlier_environments}


PATHS = ("annotations", "images", "boxes", "checkpoint", "onnx_encoder")
"""Two names of one file are one result; its hash counts."""


def identity_of(protocol: dict[str, Any], run: dict[str, Any], seed: int) -> dict[str, Any]:
    """What the results of an image depend on, flat, so that a difference is named by its key."""
    parts = {"": protocol, **{f"{name}.": values for name, values in run.items() if isinstance(values, dict)}}
    identity = {f"{part}{key}": value for part, values in parts.items() for key, value in values.items()}
    if protocol["annotations_sha256"] is not None:
        identity = {key: value for key, value in identity.items() if key.rpartition(".")[2] not in PATHS}
    return identity | {"dtype": run["dtype"], "seed": seed}


def build_dataset(cfg: DictConfig, with_images: bool = True) -> AnnotatedImages:
    """The data set, without its images where they are not read."""
    without = {"images": None} if "images" in cfg.dataset and not with_images else {}
    return instantiate(cfg.dataset, **without, _convert_="all")


def _hash_of(path: Path) -> str:
    """SHA-256 of a file, or of all JSON files of a folder, by name."""
    return sha256_of(sorted(path.glob("*.json")) if path.is_dir() else [path])


def images_of(dataset: AnnotatedImages, indices: Iterable[int]) -> dict[str, Any]:
    """Where the images come from, and the hash of their ids, one a line in ascending order."""
    ids = dataset.image_ids
    lines = "\n".join(map(str, sorted(ids[i] for i in indices)))
    return dataset.provenance | {"image_list_sha256": hashlib.sha256(lines.encode()).hexdigest()}


def device_name(trainer: pl.Trainer) -> str:
    """What a process ran on, and how many there were."""
    device = trainer.strategy.root_device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return kind if trainer.world_size == 1 else f"{trainer.world_size} x {kind}"


EVALUATIONS: dict[str, Callable[[DictConfig], Evaluation]] = {
    "predictions": score_predictions,
    "EvaluateProposals": score_proposals,
    "EvaluateMasks": score_masks,
    "EvaluatePromptFree": score_prompt_free,
    "EvaluatePrompts": score_prompts,
    "EvaluateBoxes": score_boxes,
}
"""By the class of the task."""
