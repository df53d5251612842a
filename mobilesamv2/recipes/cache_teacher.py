"""Encode a data set by a teacher and keep its embeddings, before any student is trained."""

from __future__ import annotations

from hydra.utils import instantiate
from omegaconf import DictConfig

from mobilesamv2.recipes.checks import Check, weight_checks
from mobilesamv2.recipes.teachers import build_teacher, teacher_config
from mobilesamv2.recipes.training import TrainingSetup, build_samples

NEEDS = ("dataset", "samples", "optimizer", "trainer", "teacher")
OPTIONS: dict[str, object] = {}


def missing_files(cfg: DictConfig) -> list[Check]:
    """Return checks of the teacher's weights."""
    return weight_checks(teacher_config(cfg))


def build(cfg: DictConfig) -> TrainingSetup:
    """Build a teacher whose embeddings are kept."""
    teacher = build_teacher(cfg)
    if teacher.cache is None:
        raise ValueError("teacher.cache must be on for task=cache_teacher, which keeps the teacher's embeddings.")
    task = instantiate(cfg.task, teacher=teacher, _convert_="all")
    return TrainingSetup(
        task,
        build_samples(cfg, teacher.sam.image_size, keep_aspect_ratio=teacher.sam.keep_aspect_ratio),
        write_weights=None,
        cache=teacher.cache,
        summary=lambda: f"{teacher.images_encoded} images encoded, into {cfg.cache.folder}",
    )
