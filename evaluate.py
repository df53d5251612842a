"""Scores masks or models by zero-shot mask AR@K: ``python evaluate.py dataset=lvis``. See ``--help`` and the README."""

import hashlib
import inspect
import sys
import warnings
from functools import partial
from typing import Any

import hydra
import pytorch_lightning as pl
from hydra.utils import get_class, get_method, instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

import schema
from mobilesamv2 import SegEvery
from mobilesamv2.data.coco import CocoDataset, read_results
from mobilesamv2.data.datamodule import EvaluationData
from mobilesamv2.masks import MASK_THRESHOLD
from mobilesamv2.metrics.average_recall import AverageRecall, ImageCounts, count_matches
from mobilesamv2.metrics.proposal_report import format_table, proposal_results, write_results
from mobilesamv2.metrics.stage_time import summarize
from mobilesamv2.tasks.evaluate import EvaluateProposals
from preflight import environment, output_folder, require_all, sentences, weight_checks

schema.register()


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Composes, builds, runs, and prints the table."""
    folder, known = output_folder(cfg), environment(cfg.seed)
    with sentences():
        require_files(cfg)
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        dataset = instantiate(cfg.dataset, images=None if cfg.predictions else cfg.dataset.images, _convert_="all")
        score = score_predictions if cfg.predictions else score_model
        recall, images, protocol, run, ms = score(cfg, dataset)
    if pl.utilities.rank_zero_only.rank != 0:  # pyright: ignore
        return
    ids = [counts.image_id for counts in images]
    protocol |= {
        "annotations": str(dataset.annotations),
        "annotations_sha256": dataset.annotations_hash,
        "image_list_sha256": hashlib.sha256("\n".join(map(str, sorted(ids))).encode()).hexdigest(),
    }
    results = proposal_results(recall, images, cfg.seed, protocol, run | known, ms)
    write_results(results, images, recall.ks, folder)
    print(format_table(results))
    print(f"\nwritten: {folder / 'results.json'} and {folder / 'per_image.npz'}")


UNKNOWN_OF_PREDICTIONS = (
    "sampler",
    "predicted_iou",
    "stability",
    "nms_iou",
    "nms_score",
    "mask_threshold",
    "mean_prompts_decoded",
)
"""What a results file does not say of how its masks were made."""


def score_predictions(cfg: DictConfig, dataset: CocoDataset) -> tuple[Any, ...]:
    """Counts the masks of a results file."""
    results = read_results(cfg.predictions, dataset)
    recall, images = AverageRecall(list(cfg.ks)), []
    for i, image_id in enumerate(tqdm(dataset.image_ids, desc="scoring", unit="image", disable=None)):
        rles, scores = results[image_id]
        if rles or not cfg.skip_images_without_results:
            images.append(count_matches(dataset.ground_truth(i), rles, scores, recall.ks))
            recall.update(images[-1])
    without = sum(not rles for rles, _ in results.values())
    if without and not cfg.skip_images_without_results:
        print(
            f"{without} of {len(dataset)} images have no mask in {cfg.predictions}, and their objects count as missed; "
            "skip_images_without_results=true leaves these images out."
        )
    protocol = dict.fromkeys(UNKNOWN_OF_PREDICTIONS) | {
        "predictions": str(cfg.predictions),
        "rank_by": "score",
        "skip_images_without_results": cfg.skip_images_without_results,
    }
    return recall, images, protocol, dict.fromkeys(("model", "detector", "device", "dtype"), None), None


def score_model(cfg: DictConfig, dataset: CocoDataset) -> tuple[Any, list[ImageCounts], dict[str, Any], Any, Any]:
    """Segments everything in each image and counts its masks."""
    sam = instantiate(cfg.model, encoder=cfg.encoder.name if cfg.encoder else None, _convert_="all")
    parts = {"detector": instantiate(cfg.detector, _convert_="all")} if needs_detector(cfg) else {}
    sampler = instantiate(cfg.prompt_sampler, **parts, _convert_="all")
    for name, node in (("model", cfg.model), ("detector", cfg.detector if parts else None)):
        if node is not None and node.checkpoint is None:
            print(f"{name}.checkpoint is null: its weights are random, and so is the result.", file=sys.stderr)
    task = EvaluateProposals(SegEvery(sam, sampler), list(cfg.ks))
    trainer = instantiate(cfg.trainer, _convert_="all")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer.test(task, datamodule=EvaluationData(dataset, cfg.num_workers), verbose=False)
    protocol = sampler.settings | {
        "mask_threshold": MASK_THRESHOLD,
        "mean_prompts_decoded": sum(task.num_prompts) / max(1, len(task.num_prompts)),
        "nms_score": "predicted IoU",
    }
    run = {
        "model": {"encoder": sam.encoder_name, "weights": OmegaConf.to_container(cfg.model)},
        "detector": OmegaConf.to_container(cfg.detector) if parts else None,
        "device": str(trainer.strategy.root_device),
        "dtype": str(trainer.precision),
    }
    return task.recall, task.images, protocol, run, summarize(task.stage_ms)


def require_files(cfg: DictConfig) -> None:
    """Nothing, if every file that the run reads is there; otherwise one error that names all that are missing."""
    dataset = get_class(cfg.dataset._target_)
    if not issubclass(dataset, CocoDataset):
        raise ValueError(f"{dataset.__name__} is for training; evaluate.py reads COCO's layout: dataset=lvis or coco.")
    images = None if cfg.predictions else cfg.dataset.images
    checks = [partial(dataset.require_files, cfg.dataset.annotations, images)]
    if not cfg.predictions:
        checks += weight_checks(cfg.model, cfg.detector if needs_detector(cfg) else None)
    require_all(checks)


def needs_detector(cfg: DictConfig) -> bool:
    """Whether the prompt sampler takes a detector."""
    return "detector" in inspect.signature(get_method(cfg.prompt_sampler._target_)).parameters


if __name__ == "__main__":
    main()
