"""Pretrain an image encoder by masked image modelling; no annotations are needed."""

from __future__ import annotations

from hydra.utils import instantiate
from omegaconf import DictConfig

from mobilesamv2.recipes.build import build_model
from mobilesamv2.recipes.checks import Check, weight_checks
from mobilesamv2.recipes.run_outputs import sam_writers
from mobilesamv2.recipes.training import TrainingSetup, build_samples

NEEDS = ("dataset", "samples", "optimizer", "trainer", "model")
READS = ("encoder",)
OPTIONS: dict[str, object] = {}


def missing_files(cfg: DictConfig) -> list[Check]:
    """Return checks of the model's weights."""
    return weight_checks(cfg.model)


def build(cfg: DictConfig) -> TrainingSetup:
    """Build the model and the images that it reconstructs."""
    sam = build_model(cfg.model, cfg.encoder)
    task = instantiate(cfg.task, sam=sam, optimizer=instantiate(cfg.optimizer), _convert_="all")
    return TrainingSetup(task, build_samples(cfg, sam.image_size), sam_writers(sam))
