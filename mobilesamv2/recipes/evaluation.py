"""What every recipe that evaluates shares: the data set, the model, the run over all images, and its record."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig

from mobilesamv2.callbacks.requeue import SaveAndRequeue
from mobilesamv2.data.base import ImageDataset
from mobilesamv2.data.datamodule import EvaluationData
from mobilesamv2.data.json_files import json_files_of
from mobilesamv2.evaluation.loop import EvaluateImages
from mobilesamv2.evaluation.results import Results
from mobilesamv2.evaluation.shards import ResultShards, photos_fingerprint
from mobilesamv2.export.runtime import OnnxEncoder
from mobilesamv2.files import sha256_of
from mobilesamv2.metrics.peak_memory import MEASURED
from mobilesamv2.models.cost import encoder_cost
from mobilesamv2.models.sam import Sam
from mobilesamv2.recipes.build import build_model, loggers, output_folder, own_callbacks, progress_bars
from mobilesamv2.recipes.checks import Check, output_dir_is_stable, require_annotations, require_file
from mobilesamv2.recipes.records import config_record, environment, warn_of_random_weights
from mobilesamv2.recipes.run_folder import write_hydra_record
from mobilesamv2.registry import build_encoder


class Evaluation(NamedTuple):
    """A result, and what is kept of each image."""

    results: Results
    per_image: dict[str, np.ndarray]


def build_dataset(
    cfg: DictConfig, with_images: bool = True, needs_masks: bool = True, crowds: str = "leave_out"
) -> ImageDataset:
    """Build the data set, without its images where they are not read, and check its objects.

    Args:
        cfg: the composed configuration.
        with_images: images are read.
        needs_masks: every object must have a mask.
        crowds: ``count`` counts them as objects, where the data set has crowds.

    Raises:
        ValueError: if its images have no annotations, an object has no mask where masks are needed, ``crowds`` is
            neither ``count`` nor ``leave_out``, or ``dataset.crowds`` says otherwise.
    """
    if crowds not in ("count", "leave_out"):
        raise ValueError(f"task.crowds must be count or leave_out, got {crowds}.")
    if cfg.dataset.get("crowds", crowds) != crowds:
        raise ValueError(
            f"dataset.crowds must be {crowds} here, got {cfg.dataset.crowds}: the task says whether crowds count, and "
            "those without task.crowds leave them out, as AP and AR@K do."
        )
    settings: dict[str, Any] = {"images": None} if "images" in cfg.dataset and not with_images else {}
    if crowds == "count" and "crowds" in inspect.signature(get_class(cfg.dataset._target_)).parameters:
        settings["crowds"] = crowds
    dataset: ImageDataset = instantiate(cfg.dataset, **settings, _convert_="all")
    require_annotations(dataset)
    if needs_masks:
        dataset.require_masks()
    return dataset


def build_task(cfg: DictConfig, options: Iterable[str], **parts: Any) -> EvaluateImages:
    """Build the task without the keys that its recipe reads."""
    node = DictConfig({key: value for key, value in cfg.task.items() if key not in options})
    return instantiate(node, **parts, _convert_="all")


def inference_model(cfg: DictConfig, sam: Sam | None = None) -> Sam:
    """Build the model that is evaluated, or take it, and make it faster where that changes nothing."""
    if cfg.compile and cfg.onnx_encoder:
        raise ValueError("compile is of torch, and onnx_encoder runs in its place: set one of the two.")
    sam = build_model(cfg.model, cfg.encoder) if sam is None else sam
    fast = sam.for_inference()
    if cfg.onnx_encoder:
        fast.image_encoder = OnnxEncoder(cfg.onnx_encoder, sam)
    if cfg.compile:
        fast.image_encoder.compile()
    return fast


def encoder_check(cfg: DictConfig) -> list[Check]:
    """Return a check of the exported encoder, where one is named."""
    return [partial(require_file, cfg.onnx_encoder)] if cfg.onnx_encoder else []


def require_unset(cfg: DictConfig, reason: str, *options: str) -> None:
    """Check that options of the program that a recipe does not read are at their defaults.

    Raises:
        ValueError: if one is set.
    """
    for option in options:
        if cfg[option] and not (option == "batch_size" and cfg[option] == 1):
            raise ValueError(f"{option} must not be set: {reason}")


def encoder_cost_of(sam: Sam) -> dict[str, int]:
    """Return parameters of the image encoder, as it was built, multiply-accumulates, its input, and the model's."""
    with torch.device("meta"):
        encoder = build_encoder(str(sam.encoder_name), sam.image_size, sam.prompt_encoder.embed_dim, type(sam))
    cost = encoder_cost(encoder.eval(), sam.encoder_side)._asdict()
    return cost | {"input_side": sam.encoder_side, "image_size": sam.image_size}


def model_record(cfg: DictConfig, sam: Sam, **nodes: DictConfig | None) -> dict[str, Any]:
    """Return the networks of a run for its record, the model with the image encoder that it was built with."""
    networks: dict[str, Any] = {name: config_record(node) for name, node in {"model": cfg.model, **nodes}.items()}
    networks["model"]["encoder"] = sam.encoder_name
    if cfg.onnx_encoder:
        networks["model"] |= {"onnx_encoder": cfg.onnx_encoder, "onnx_encoder_sha256": hash_of(Path(cfg.onnx_encoder))}
    return networks


def run_task(
    cfg: DictConfig,
    dataset: ImageDataset,
    build: Callable[[ResultShards], EvaluateImages],
    protocol: dict[str, Any],
    networks: dict[str, Any],
    keep_masks: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Run a task over all images; return it, and the record of the run.

    Args:
        cfg: the composed configuration.
        dataset: the images.
        build: makes the task, which keeps its results in the shards that it is given.
        protocol: what the results depend on beside the networks.
        networks: as they are recorded, by their names in conf/; None for one that takes no part.
        keep_masks: write every mask.

    The record has the device and the versions of this process, or, if earlier ones had evaluated all images, those of
    the last of these.
    """
    warn_of_random_weights(networks)
    dataset.check_images()
    trainer = instantiate(
        cfg.trainer,
        logger=loggers(cfg.logger, output_folder(cfg)) or False,
        callbacks=[
            SaveAndRequeue(None, output_dir_is_stable()),
            *progress_bars(cfg.trainer),
            *own_callbacks(cfg.trainer),
        ],
        _convert_="all",
    )
    run = networks | {"dtype": str(trainer.precision)}
    now = {"device": device_name(trainer), **environment(cfg.seed)}
    index_of = {image_id: i for i, image_id in enumerate(dataset.image_ids)}
    shards = ResultShards(
        output_folder(cfg),
        identity_of(protocol, run, cfg.seed),
        keep_masks,
        now,
        annotations_sha256=protocol["annotations_sha256"],
        truth_of=lambda image_id: dataset.ground_truth(index_of[image_id]),
        # an image that is none of these is no result of this run
        content_hash_of=lambda image_id: dataset.content_hash(index_of[image_id]) if image_id in index_of else "none",
    )
    if trainer.is_global_zero:
        write_hydra_record(cfg, output_folder(cfg))
    task = build(shards)
    done = [result.image_id for result in shards.done]
    data = EvaluationData(dataset, cfg.num_workers, done, cfg.batch_size)
    if trainer.is_global_zero:
        _print_progress(shards, len(dataset), len(data.remaining))
    try:
        trainer.test(task, datamodule=data, verbose=False)
    except BaseException:
        with suppress(OSError):  # a full disk may be what ended the run
            task.flush_results()
        raise
    task.flush_results()
    if [result.image_id for result in task.results] != sorted(dataset.image_ids):
        raise ValueError(
            f"{len(task.results)} results for {len(dataset)} images: another program wrote into {output_folder(cfg)}, "
            "or a setting of the trainer left images out. Choose images by dataset.limit; one output_dir for each run."
        )
    # where earlier parts had evaluated all images, the last of them made the result, wherever this one runs
    made = shards.environments[-1] if shards.environments and not data.remaining else now
    run |= {**made, "earlier_environments": [each for each in shards.environments if each != made]}
    run["photos_sha256"] = photos_fingerprint(task.results)
    peaks = [image.peak_mib for image in task.results if image.peak_mib is not None]
    return task, run | {
        "peak_memory": {"mib": max(peaks), "of": _measured_on(str(run.get("device")))} if peaks else None
    }


def _print_progress(shards: ResultShards, total: int, remaining: int) -> None:
    """Print how many images an earlier part has done, and why some are done again."""
    if shards.done or shards.outdated:
        print(f"{len(shards.done)} of {total} images were done before; resuming with {remaining}.")
    if shards.outdated:
        print(f"{len(shards.outdated)} of these were done before with another photo, or other annotations, of that id.")


PATHS = ("annotations", "images", "boxes", "checkpoint", "backbone_checkpoint", "onnx_encoder")
"""Two names of one file are one result; its hash counts, and that of each image."""

OF_ALL_IMAGES = (
    "annotations_sha256",
    "annotations_left_out",
    "annotations_without_area",
    "annotations_without_mask",
)
"""What a result records of the whole annotation file. The result of one image depends on its own annotations alone, of
which ``ResultShards`` keeps a hash, as it does of the image."""


def identity_of(protocol: dict[str, Any], run: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return what results depend on beside the images and their annotations, flat, so that a difference is named."""
    parts = {"": protocol, **{f"{name}.": values for name, values in run.items() if isinstance(values, dict)}}
    identity = {f"{part}{key}": value for part, values in parts.items() for key, value in values.items()}
    if protocol["annotations_sha256"] is not None:
        identity = {key: value for key, value in identity.items() if key.rpartition(".")[2] not in PATHS}
    identity = {key: value for key, value in identity.items() if key not in OF_ALL_IMAGES}
    return identity | {"dtype": run["dtype"], "seed": seed}


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of all JSON files of a folder, by name."""
    return sha256_of(json_files_of(path))


def image_list_record(dataset: ImageDataset, indices: Iterable[int]) -> dict[str, Any]:
    """Return where the images come from, and the hash of their ids, one a line in ascending order."""
    ids = dataset.image_ids
    lines = "\n".join(map(str, sorted(ids[i] for i in indices)))
    return dataset.provenance | {"image_list_sha256": hashlib.sha256(lines.encode()).hexdigest()}


def object_record(task: DictConfig) -> dict[str, Any]:
    """Return which objects a task counts."""
    return {"crowds": task.crowds, "min_area": task.min_area}


def device_name(trainer: pl.Trainer) -> str:
    """Return what a process ran on, and how many there were."""
    device = trainer.strategy.root_device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return kind if trainer.world_size == 1 else f"{trainer.world_size} x {kind}"


def _measured_on(device: str) -> str:
    """Return what the peak memory is of, by ``device_name``, which is a GPU's own where it is one of CUDA's."""
    kind = device.rpartition(" x ")[2].partition(":")[0]
    return MEASURED["cpu" if kind == "cpu" else "cuda"]
