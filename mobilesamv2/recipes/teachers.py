"""The teacher of a distillation, with the cache of its embeddings."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback

from mobilesamv2.callbacks.pixel_shards import FlushPixels
from mobilesamv2.data.samples import EncoderSamples
from mobilesamv2.recipes.build import build_model
from mobilesamv2.recipes.records import warn_of_random_weights
from mobilesamv2.recipes.schema import KEYS_READ_APART
from mobilesamv2.tasks.teacher import Teacher, teacher_identity


def build_teacher(cfg: DictConfig) -> Teacher:
    """Build the teacher, with the cache of its embeddings unless ``teacher.cache`` is off."""
    node = teacher_config(cfg)
    warn_of_random_weights({"teacher": node})
    sam, precision, levels = build_model(node, None), cfg.teacher.precision, cfg.teacher.levels
    if cfg.teacher.cache == "off":
        return Teacher(sam, None, precision, levels)
    node = DictConfig({key: value for key, value in cfg.cache.items() if key != "pixels"})
    cache = instantiate(node, identity=teacher_identity(sam, precision, levels), _convert_="all")
    return Teacher(sam, cache, precision, levels)


def keep_pixels(cfg: DictConfig, samples: EncoderSamples) -> list[Callback]:
    """Have the samples' pixels kept beside the embeddings as ``cache.pixels`` says; return what a run needs for it."""
    if cfg.cache.pixels == "off":
        return []
    samples.keep_pixels(Path(cfg.cache.folder), str(cfg.cache.pixels))
    return [FlushPixels(list(samples.pixel_caches.values()))]


def teacher_config(cfg: DictConfig) -> DictConfig:
    """Return the teacher of conf/model, without the keys of how its embeddings are computed and kept.

    Raises:
        ValueError: if ``teacher.cache`` is neither on nor off.
    """
    if cfg.teacher.cache not in ("on", "off"):
        raise ValueError(f"teacher.cache must be on or off, got {cfg.teacher.cache}. cache.folder is its folder.")
    return DictConfig({key: value for key, value in cfg.teacher.items() if key not in KEYS_READ_APART["teacher"]})
