"""Train the object-aware prompt detector; with a model, measure mask AR@K of its boxes at the end."""

from __future__ import annotations

from functools import partial

from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback

from mobilesamv2.callbacks.mask_recall import MaskRecallAtEnd
from mobilesamv2.models.object_detector import ObjectDetector, save_detector
from mobilesamv2.recipes.build import build_detector, build_model, needs_detector, picture_callbacks
from mobilesamv2.recipes.checks import Check, weight_checks
from mobilesamv2.recipes.training import TrainingSetup, build_samples

NEEDS = ("dataset", "samples", "optimizer", "trainer", "detector")
READS = ("model", "encoder", "prompt_sampler")
OPTIONS: dict[str, object] = {}


def missing_files(cfg: DictConfig) -> list[Check]:
    """Return checks of the weights of detector and model."""
    return weight_checks(cfg.detector, cfg.model)


def build(cfg: DictConfig) -> TrainingSetup:
    """Build a detector and the boxes that it is to find; and a model, if one is named, that decodes them at the end."""
    detector = build_detector(cfg.detector)
    if not isinstance(detector, ObjectDetector):
        raise ValueError("task=detect trains a YOLO: detector=yolov8n. task=train_prompt_head trains a prompt head.")
    task = instantiate(cfg.task, detector=detector, optimizer=instantiate(cfg.optimizer), _convert_="all")
    callbacks: list[Callback] = picture_callbacks(cfg, detector)
    if cfg.model is not None:
        if cfg.prompt_sampler is None or not needs_detector(cfg):
            raise ValueError("prompt_sampler must be object_aware to measure the masks of this detector's boxes.")
        sampler = instantiate(cfg.prompt_sampler, detector=detector, _convert_="all")
        callbacks.append(MaskRecallAtEnd(build_model(cfg.model, cfg.encoder), sampler))

    trained: ObjectDetector = task.detector
    weights = {"detector.pt": partial(save_detector, trained)}
    needs_masks = cfg.task.masks or cfg.model is not None
    samples = build_samples(cfg, detector.image_size, needs_masks)
    measure = "mobilesamv2 evaluate task=evaluate_detector detector=yolov8n detector.checkpoint={file} " + _unseen(cfg)
    return TrainingSetup(task, samples, weights, callbacks=callbacks, next_command=measure)


def _unseen(cfg: DictConfig) -> str:
    """Return the settings of images that training does not see: scenes of the test split, or the user's own."""
    if "split" in cfg.dataset:
        return "dataset=synthetic dataset.split=test dataset.limit=100"
    return "dataset=lvis dataset.annotations=FILE dataset.images=FOLDER"
