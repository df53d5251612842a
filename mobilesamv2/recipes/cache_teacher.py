"""Encode a data set by a teacher and keep its embeddings, before any student is trained."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.utils import instantiate
from omegaconf import DictConfig

from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.pixels import PixelCache
from mobilesamv2.data.sa1b import NUM_IMAGES
from mobilesamv2.ranges import Count, NonNegativeInt
from mobilesamv2.recipes.checks import Check, weight_checks
from mobilesamv2.recipes.teachers import build_teacher, keep_pixels, teacher_config
from mobilesamv2.recipes.training import TrainingSetup, build_samples
from mobilesamv2.tasks.teacher import CacheTeacher

NEEDS = ("dataset", "samples", "optimizer", "trainer", "teacher")
READS: tuple[str, ...] = ()
OPTIONS: dict[str, object] = {"part": NonNegativeInt, "parts": Count}


def missing_files(cfg: DictConfig) -> list[Check]:
    """Return checks of the teacher's weights."""
    return weight_checks(teacher_config(cfg))


def build(cfg: DictConfig) -> TrainingSetup:
    """Build a teacher whose embeddings are kept."""
    part, parts = cfg.task.part, cfg.task.parts
    if part >= parts:
        raise ValueError(f"task.part must be below task.parts={parts}, the number of jobs, got {part}.")
    teacher = build_teacher(cfg)
    if teacher.cache is None:
        raise ValueError("teacher.cache must be on for task=cache_teacher, which keeps the teacher's embeddings.")
    cache, encoded = teacher.cache, teacher.cache.folder
    node = DictConfig({key: value for key, value in cfg.task.items() if key not in OPTIONS})
    task: CacheTeacher = instantiate(node, teacher=teacher, _convert_="all")
    samples = build_samples(cfg, teacher.sam.image_size, resizing=teacher.sam.resizing)
    flushes = keep_pixels(cfg, samples)
    pixels = list(samples.pixel_caches.values())
    return TrainingSetup(
        task,
        samples,
        weights=None,
        cache=cache,
        callbacks=flushes,
        summary=lambda: "\n".join(
            [
                f"{teacher.images_encoded} images encoded, into {encoded}",
                *(f"  pixels of {len(each)} images, in {each.folder}" for each in pixels),
                *report(cache, task.images_per_second, pixels),
            ]
        ),
        part=(part, parts),
    )


def report(cache: EmbeddingCache, images_per_second: float, pixels: Sequence[PixelCache] = ()) -> list[str]:
    """Return lines on the speed of a pass and the bytes of what it keeps, and what follows for parts of SA-1B.

    Args:
        cache: that was filled.
        images_per_second: of this process; 0 if it encoded none.
        pixels: caches of pixels that were filled beside it.
    """
    if not images_per_second:
        return []
    size = sum(kept.num_bytes() / len(kept) for kept in (cache, *pixels))
    speed = f"  {images_per_second:.3g} images/s in this process"
    lines = [f"{speed}, {size / 1e6:.3g} MB an image, {len(cache)} images so far"]
    for share in (0.01, 0.1, 1):
        images = share * NUM_IMAGES
        hours, terabytes = images / images_per_second / 3600, images * size / 1e12
        lines.append(
            f"  {share:4.0%} of SA-1B: {hours:,.3g} hours of a process like this one, {terabytes:.3g} TB, computed"
        )
    return lines
