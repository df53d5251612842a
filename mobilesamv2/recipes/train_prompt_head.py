"""Train a prompt head on a frozen model's embeddings; with a prompt sampler, measure mask AR@K at the end."""

from __future__ import annotations

from functools import partial

from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback

from mobilesamv2.callbacks.mask_recall import MaskRecallAtEnd
from mobilesamv2.models.prompt_head import PromptHead
from mobilesamv2.prompt_heads import EncodedDetector, prompt_head_file, save_prompt_head
from mobilesamv2.recipes.build import build_detector, needs_detector, picture_callbacks
from mobilesamv2.recipes.checks import Check, weight_checks
from mobilesamv2.recipes.teachers import build_teacher, keep_pixels, teacher_config
from mobilesamv2.recipes.training import TrainingSetup, build_samples

NEEDS = ("dataset", "samples", "optimizer", "trainer", "detector", "teacher")
READS = ("prompt_sampler",)
OPTIONS: dict[str, object] = {}


def missing_files(cfg: DictConfig) -> list[Check]:
    """Return checks of the weights of the head and of the model whose embeddings it reads."""
    return weight_checks(cfg.detector, teacher_config(cfg))


def build(cfg: DictConfig) -> TrainingSetup:
    """Build a head, the model whose embeddings it reads, and the boxes that it is to find."""
    teacher = build_teacher(cfg)
    sam = teacher.sam
    head = build_detector(cfg.detector, sam)
    if not isinstance(head, PromptHead):
        raise ValueError("task=train_prompt_head trains a prompt head: detector=prompt_head. For a YOLO: task=detect.")
    task = instantiate(cfg.task, head=head, teacher=teacher, optimizer=instantiate(cfg.optimizer), _convert_="all")
    callbacks: list[Callback] = picture_callbacks(cfg, EncodedDetector(sam, head))
    if cfg.prompt_sampler is not None:
        if not needs_detector(cfg):
            raise ValueError("prompt_sampler must be prompt_head to measure the masks of this head's boxes.")
        sampler = instantiate(cfg.prompt_sampler, detector=head, _convert_="all")
        callbacks.append(MaskRecallAtEnd(sam, sampler))

    weights = {prompt_head_file(sam.name): partial(save_prompt_head, task.head)}
    samples = build_samples(cfg, sam.image_size, needs_masks=cfg.prompt_sampler is not None, resizing=sam.resizing)
    try_it = f"mobilesamv2 segment IMAGE -o masks --model {sam.name} --sampler prompt_head --detector {{file}}"
    callbacks += keep_pixels(cfg, samples)
    return TrainingSetup(task, samples, weights, teacher.cache, callbacks, next_command=try_it)
