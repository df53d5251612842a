"""Scores masks or models by zero-shot mask AR@K: ``python evaluate.py dataset=lvis``. See ``--help`` and the README."""

import hashlib
import inspect
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

import schema
from mobilesamv2 import SegEvery
from mobilesamv2.data.annotated_images import AnnotatedImages
from mobilesamv2.data.datamodule import EvaluationData
from mobilesamv2.data.results_files import read_results
from mobilesamv2.masks import MASK_THRESHOLD
from mobilesamv2.metrics.average_recall import AverageRecall, ImageCounts, count_matches
from mobilesamv2.metrics.proposal_report import format_table, proposal_results, write_results
from mobilesamv2.metrics.result_shards import ResultShards
from mobilesamv2.metrics.stage_time import summarize
from mobilesamv2.tasks.evaluate import EvaluateProposals
from preflight import dataset_checks, environment, file_hashes, output_folder, require_all, sentences, weight_checks

schema.register()


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Composes, builds, runs, and prints the table."""
    folder, known = output_folder(cfg), environment(cfg.seed)
    with sentences():
        require_files(cfg)
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        scored = score_predictions(cfg) if cfg.predictions else score_model(cfg)
    if pl.utilities.rank_zero_only.rank != 0:  # pyright: ignore
        return
    results = proposal_results(
        scored.recall, scored.images, cfg.seed, scored.protocol, scored.run | known, scored.ms, scored.num_prompts
    )
    write_results(results, scored.images, scored.recall.ks, folder)
    print(format_table(results))
    print(f"\nwritten: {folder / 'results.json'} and {folder / 'per_image.npz'}")


@dataclass
class Scored:
    """The counts of all images, and what is to be said of them."""

    recall: AverageRecall
    images: list[ImageCounts]
    protocol: dict[str, Any]
    run: dict[str, Any]
    ms: dict[str, dict[str, float]] | None = None
    num_prompts: list[int] | None = None


UNKNOWN_OF_PREDICTIONS = ("sampler", "predicted_iou", "stability", "nms_iou", "nms_score", "mask_threshold")
"""What a results file does not say of how its masks were made."""


def score_predictions(cfg: DictConfig) -> Scored:
    """Counts the masks of a results file."""
    if cfg.k_caps != "masks":
        raise ValueError("A results file does not say which masks share a prompt: k_caps=masks.")
    dataset = build_dataset(cfg, with_images=False)
    recall = AverageRecall(list(cfg.ks))
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
        **dataset.provenance,
        **image_list(dataset, counts),
    }
    return Scored(
        recall, list(counts.values()), protocol, dict.fromkeys(("model", "detector", "device", "dtype"), None)
    )


def score_model(cfg: DictConfig) -> Scored:
    """Segments everything in each image and counts its masks."""
    dataset = build_dataset(cfg)
    sam = instantiate(cfg.model, encoder=cfg.encoder.name if cfg.encoder else None, _convert_="all")
    parts = {"detector": instantiate(cfg.detector, _convert_="all")} if needs_detector(cfg) else {}
    sampler = instantiate(cfg.prompt_sampler, **parts, _convert_="all")
    nodes = {"model": cfg.model, "detector": cfg.detector if parts else None}
    for name, node in nodes.items():
        if node is not None and node.checkpoint is None:
            print(f"{name}.checkpoint is null: its weights are random, and so is the result.", file=sys.stderr)
    protocol = {
        **sampler.settings,
        "k_caps": cfg.k_caps,
        "mask_threshold": MASK_THRESHOLD,
        "nms_score": "predicted IoU",
        **dataset.provenance,
        **image_list(dataset, range(len(dataset))),
    }
    run: dict[str, Any] = {name: None if node is None else described(node) for name, node in nodes.items()}
    run["model"]["encoder"] = sam.encoder_name
    trainer = instantiate(cfg.trainer, _convert_="all")
    identity = {**protocol, **run, "ks": list(cfg.ks), "dtype": str(trainer.precision), "seed": cfg.seed}
    shards = ResultShards(output_folder(cfg), identity, cfg.save_masks)
    task = EvaluateProposals(SegEvery(sam, sampler), list(cfg.ks), cfg.k_caps, shards)
    data = EvaluationData(dataset, cfg.num_workers, done=[result.counts.image_id for result in shards.done])
    if shards.done and trainer.is_global_zero:
        print(f"{len(shards.done)} of {len(dataset)} images were done before; going on with {len(data.remaining)}.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer.test(task, datamodule=data, verbose=False)
    return Scored(
        task.recall,
        [result.counts for result in task.results],
        protocol,
        run | {"device": device_name(trainer), "dtype": str(trainer.precision)},
        summarize([result.ms for result in task.results if result.ms]),
        [result.num_prompts for result in task.results],
    )


def build_dataset(cfg: DictConfig, with_images: bool = True) -> AnnotatedImages:
    """The data set, without its images where they are not read."""
    without = {"images": None} if "images" in cfg.dataset and not with_images else {}
    return instantiate(cfg.dataset, **without, _convert_="all")


def described(node: DictConfig) -> dict[str, Any]:
    """A node of conf/model or conf/detector as plain values, with the hashes of its weight files."""
    values: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # pyright: ignore
    del values["_target_"]
    return values | {"sha256": file_hashes(node.checkpoint)}


def image_list(dataset: AnnotatedImages, indices: Any) -> dict[str, str]:
    """The hash of the ids of the images that are counted, one a line in ascending order."""
    ids = dataset.image_ids
    lines = "\n".join(map(str, sorted(ids[i] for i in indices)))
    return {"image_list_sha256": hashlib.sha256(lines.encode()).hexdigest()}


def device_name(trainer: pl.Trainer) -> str:
    """What a process ran on, and how many there were."""
    device = trainer.strategy.root_device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return kind if trainer.world_size == 1 else f"{trainer.world_size} x {kind}"


def require_files(cfg: DictConfig) -> None:
    """Nothing, if every file that the run reads is there; otherwise one error that names all that are missing."""
    checks = dataset_checks(cfg.dataset, with_images=not cfg.predictions)
    if not cfg.predictions:
        checks += weight_checks(cfg.model, cfg.detector if needs_detector(cfg) else None)
    require_all(checks)


def needs_detector(cfg: DictConfig) -> bool:
    """Whether the prompt sampler takes a detector."""
    return "detector" in inspect.signature(get_method(cfg.prompt_sampler._target_)).parameters


if __name__ == "__main__":
    main()
