"""Distil a teacher's image encoder into a student: decoupled, or by the masks that prompts return."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from mobilesamv2.recipes.build import build_model, picture_callbacks
from mobilesamv2.recipes.checks import Check, weight_checks
from mobilesamv2.recipes.records import describe_start
from mobilesamv2.recipes.run_outputs import sam_writers
from mobilesamv2.recipes.teachers import build_teacher, keep_pixels, teacher_config
from mobilesamv2.recipes.training import TrainingSetup, build_samples
from mobilesamv2.tasks.sam2_from_sam import is_sam2_of_sam

NEEDS = ("dataset", "samples", "optimizer", "trainer", "model", "teacher")
READS = ("encoder",)
OPTIONS: dict[str, object] = {}


def missing_files(cfg: DictConfig) -> list[Check]:
    """Return checks of the weights of student and teacher."""
    return weight_checks(cfg.model, teacher_config(cfg))


def build(cfg: DictConfig) -> TrainingSetup:
    """Build a student, its teacher, and the cache of the teacher's embeddings."""
    print(describe_start("model", cfg.model, cfg.task.get("init_from_teacher", False)))
    teacher, student = build_teacher(cfg), build_model(cfg.model, cfg.encoder)
    if cfg.model.get("checkpoint") and is_sam2_of_sam(student, teacher.sam):
        raise ValueError(
            "model.checkpoint must be null where a SAM teaches a SAM 2, which takes over its decoder and starts with "
            f"finer levels of 0, got {cfg.model.checkpoint}. task=finetune_decoder trains such a file further."
        )
    optimizer = instantiate(cfg.optimizer)
    task = instantiate(cfg.task, student=student, teacher=teacher, optimizer=optimizer, _convert_="all")
    size = teacher.sam.image_size  # of the cache, too
    frame: dict[str, Any] = {"resizing": teacher.sam.resizing}
    if student.image_size != size:
        frame["student_size"] = student.image_size
    samples = build_samples(cfg, size, task.learns_masks, **frame)
    return TrainingSetup(
        task,
        samples,
        sam_writers(student),
        teacher.cache,
        [*picture_callbacks(cfg, student), *keep_pixels(cfg, samples)],
    )
