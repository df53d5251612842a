"""Train on masks from box and point prompts: fine-tune a decoder, or train a small SAM from scratch."""

from __future__ import annotations

from hydra.utils import instantiate
from omegaconf import DictConfig

from mobilesamv2.recipes.build import build_model, picture_callbacks
from mobilesamv2.recipes.checks import Check, weight_checks
from mobilesamv2.recipes.records import describe_start
from mobilesamv2.recipes.run_outputs import sam_writers
from mobilesamv2.recipes.training import TrainingSetup, build_samples

NEEDS = ("dataset", "samples", "optimizer", "trainer", "model")
READS = ("encoder",)
OPTIONS: dict[str, object] = {}


def missing_files(cfg: DictConfig) -> list[Check]:
    """Return checks of the model's weights, and of those of its backbone."""
    return weight_checks(cfg.model)


def build(cfg: DictConfig) -> TrainingSetup:
    """Build a model and the objects that prompt it."""
    print(describe_start("model", cfg.model))
    sam = build_model(cfg.model, cfg.encoder)
    task = instantiate(cfg.task, sam=sam, optimizer=instantiate(cfg.optimizer), _convert_="all")
    samples = build_samples(cfg, sam.image_size, needs_masks=True, resizing=sam.resizing)
    return TrainingSetup(task, samples, sam_writers(sam), callbacks=picture_callbacks(cfg, sam))
