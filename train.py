"""Trains: ``python train.py experiment=distill_tinyvit``. See ``--help`` and the README."""

import quiet  # isort: skip  # noqa: F401

import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import hydra
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only

import schema
from mobilesamv2.checkpoints import save_mobile_sam, save_weights
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.samples import EncoderSamples
from mobilesamv2.models.object_detector import save_detector
from mobilesamv2.tasks.cache_teacher import CacheTeacher
from mobilesamv2.tasks.checkpointing import (
    AveragedWeights,
    CheckpointAfterSteps,
    SaveAndRequeue,
    WholeCheckpoints,
    require_same_model,
)
from mobilesamv2.tasks.detect import DetectObjects
from mobilesamv2.tasks.distill import Distill
from mobilesamv2.tasks.finetune_decoder import FinetuneDecoder
from mobilesamv2.tasks.mask_recall import MaskRecallAtEnd
from mobilesamv2.tasks.sync_batchnorm import SyncBatchNorms
from mobilesamv2.tasks.teacher import Teacher, teacher_identity
from mobilesamv2.tasks.training_log import TrainingLog
from preflight import (
    build_model,
    cluster_plugins,
    dataset_checks,
    environment,
    finds_its_folder,
    is_sweep,
    loggers,
    needs_detector,
    output_folder,
    progress_bars,
    refuse_half_weights,
    refuse_sweep_of_processes,
    require_all,
    require_file,
    require_shared_folder,
    sentences,
    warn_of_random_weights,
    weight_checks,
    without_noise,
)

schema.register()

DISTILLATIONS = ("DistillDecoupled", "DistillSemiCoupled", "DistillCoupled", "DistillPromptInLoop")


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    """Composes, builds, fits, and writes the weights; gives what a search of a sweep is to improve."""
    without_noise()
    folder = output_folder(cfg)
    if not is_sweep():
        cfg.output_dir = str(folder)  # named after the time by default, which would be another in each process
    with sentences():
        schema.require_settings(cfg, required_groups(cfg))
        refuse_sweep_of_processes(cfg)
        refuse_half_weights(cfg)
        require_shared_folder()
        require_files(cfg)
        resume = checkpoint_to_resume(cfg, folder)
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        task, samples, cache, callbacks = BUILDERS[task_name(cfg)](cfg)
        data = TrainingData(
            samples, cfg.batch_size, cfg.validation_images, cfg.num_workers, cfg.seed, cfg.max_broken, cache
        )
        trainer = build_trainer(cfg, folder, callbacks)
        if trainer.is_global_zero:
            write_description(cfg, folder, task, samples)
        if isinstance(task, CacheTeacher):
            trainer.predict(task, datamodule=data, return_predictions=False)
            count = task.teacher.images_encoded
            print(f"{count} images encoded by process {trainer.global_rank}, into {cfg.cache.folder}")
            return None
        assert isinstance(task, Distill | FinetuneDecoder | DetectObjects)
        if cfg.channels_last:
            task.backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if cfg.compile:
            task.backbone.compile()
        if resume is not None and resume.is_file():
            require_same_model(resume, task)
        # A checkpoint holds tensors and plain values alone, so that nothing in it is executed.
        trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
        if trainer.is_global_zero:
            print(f"written: {', '.join(map(str, write_weights(task, folder)))}")
        return objective(cfg.objective, trainer)


def objective(name: str | None, trainer: pl.Trainer) -> float | None:
    """The last value of a logged metric.

    Raises:
        ValueError: it was not logged.
    """
    if name is None:
        return None
    if name not in trainer.callback_metrics:
        known = ", ".join(sorted(trainer.callback_metrics))
        raise ValueError(f"objective={name} was not logged; there are {known}.")
    return float(trainer.callback_metrics[name])


class Built(NamedTuple):
    """A task, what it trains on, where its teacher's embeddings are kept, and what is done beside training."""

    task: pl.LightningModule
    samples: EncoderSamples
    cache: EmbeddingCache | None = None
    callbacks: Sequence[Callback] = ()


def build_distillation(cfg: DictConfig) -> Built:
    """A student, its teacher, and the cache of the teacher's embeddings."""
    teacher, student = build_teacher(cfg), build_model(cfg.model, cfg.encoder)
    optimizer = instantiate(cfg.optimizer)
    task = instantiate(cfg.task, student=student, teacher=teacher, optimizer=optimizer, _convert_="all")
    return Built(task, build_samples(cfg, student.image_size), teacher.cache)


def build_teacher(cfg: DictConfig) -> Teacher:
    """The teacher, with the cache of its embeddings."""
    node = teacher_node(cfg)
    warn_of_random_weights({"teacher": node})
    sam, precision = build_model(node, None), cfg.teacher.precision
    if cfg.teacher.cache == "off":
        return Teacher(sam, None, precision)
    cache = instantiate(cfg.cache, identity=teacher_identity(sam, precision), _convert_="all")
    return Teacher(sam, cache, precision)


def teacher_node(cfg: DictConfig) -> DictConfig:
    """The teacher of conf/model, without what says how its embeddings are computed and kept.

    Raises:
        ValueError: there is none.
    """
    if "_target_" not in cfg.teacher:
        raise ValueError("This task wants a teacher: name one with model@teacher=sam_vit_h, say.")
    if cfg.teacher.cache not in ("on", "off"):
        raise ValueError(f"teacher.cache is on or off; got {cfg.teacher.cache}. cache.folder says where it is.")
    return DictConfig({key: value for key, value in cfg.teacher.items() if key not in ("cache", "precision")})


def build_caching(cfg: DictConfig) -> Built:
    """A teacher whose embeddings are to be kept."""
    teacher = build_teacher(cfg)
    if teacher.cache is None:
        raise ValueError("task=cache_teacher keeps the teacher's embeddings, and teacher.cache is off.")
    task = instantiate(cfg.task, teacher=teacher, _convert_="all")
    return Built(task, build_samples(cfg, teacher.sam.image_size), teacher.cache)


def build_finetuning(cfg: DictConfig) -> Built:
    """A model and the objects that it is asked for."""
    sam = build_model(cfg.model, cfg.encoder)
    task = instantiate(cfg.task, sam=sam, optimizer=instantiate(cfg.optimizer), _convert_="all")
    return Built(task, build_samples(cfg, sam.image_size))


def build_detection(cfg: DictConfig) -> Built:
    """A detector and the boxes that it is to find; and a model, if one is named, that masks are asked of at the end."""
    if cfg.detector is None:
        raise ValueError("This task trains a detector: name one with detector=yolov8n, say.")
    detector = instantiate(cfg.detector, _convert_="all")
    task = instantiate(cfg.task, detector=detector, optimizer=instantiate(cfg.optimizer), _convert_="all")
    at_the_end = []
    if cfg.model is not None:
        if cfg.prompt_sampler is None or not needs_detector(cfg):
            raise ValueError("The masks of this detector's boxes are measured with prompt_sampler=object_aware.")
        sampler = instantiate(cfg.prompt_sampler, detector=detector, _convert_="all")
        at_the_end.append(MaskRecallAtEnd(build_model(cfg.model, cfg.encoder), sampler))
    return Built(task, build_samples(cfg, detector.image_size), callbacks=at_the_end)


def build_samples(cfg: DictConfig, image_size: int) -> EncoderSamples:
    """What the task trains on: its samples of the data set."""
    images = instantiate(cfg.dataset, _convert_="all")
    return instantiate(cfg.samples, images=images, image_size=image_size, _convert_="all")


BUILDERS: dict[str, Callable[[DictConfig], Built]] = {
    **dict.fromkeys(DISTILLATIONS, build_distillation),
    "CacheTeacher": build_caching,
    "FinetuneDecoder": build_finetuning,
    "DetectObjects": build_detection,
}


def task_name(cfg: DictConfig) -> str:
    """Name of the task's class.

    Raises:
        ValueError: no task of this program.
    """
    name = cfg.task._target_.rsplit(".", 1)[1] if cfg.task else None
    if name not in BUILDERS:
        raise ValueError(f"train.py does not run {name}; its tasks: {', '.join(BUILDERS)}. evaluate.py runs others.")
    return name


def required_groups(cfg: DictConfig) -> list[str]:
    """Groups of conf/ that the task can't do without.

    Raises:
        ValueError: it wants a teacher, and there is none.
    """
    name = task_name(cfg)
    if name in (*DISTILLATIONS, "CacheTeacher"):
        teacher_node(cfg)
    model = ["model"] if name in (*DISTILLATIONS, "FinetuneDecoder") else []
    return ["dataset", "samples", "optimizer", "trainer", *model]


def build_trainer(cfg: DictConfig, folder: Path, more: Sequence[Callback]) -> pl.Trainer:
    """The trainer with its loggers, checkpoints, signals and averages, and what a task adds."""
    checkpoints = folder / "checkpoints"
    callbacks: list[Callback] = [
        *([] if cfg.ema is None else [AveragedWeights(decay=cfg.ema)]),  # averages before the others save
        ModelCheckpoint(checkpoints, save_last=True),
        CheckpointAfterSteps(checkpoints, "recent", train_time_interval=timedelta(minutes=cfg.checkpoint_minutes)),
        SaveAndRequeue(checkpoints / "stopped.ckpt", cfg.requeue and finds_its_folder()),
        TrainingLog(),
        *progress_bars(cfg.trainer),
        *more,
    ]
    return instantiate(
        cfg.trainer,
        logger=loggers(cfg.logger, folder),
        callbacks=callbacks,
        plugins=[WholeCheckpoints(), *([SyncBatchNorms()] if cfg.trainer.sync_batchnorm else []), *cluster_plugins()],
        default_root_dir=str(folder),
        _convert_="all",
    )


def write_description(cfg: DictConfig, folder: Path, task: pl.LightningModule, samples: EncoderSamples) -> None:
    """What is needed to run it again: the images and the environment."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {p: p.numel() for p in task.parameters()}
    trained = sum(size for p, size in sizes.items() if p.requires_grad)
    print(f"training {trained:,} of {sum(sizes.values()):,} parameters; writing to {folder}")
    ids = samples.images.image_ids
    (folder / "images.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    (folder / "environment.json").write_text(json.dumps(environment(cfg.seed), indent=2))


def checkpoint_to_resume(cfg: DictConfig, folder: Path) -> Path | None:
    """Where to go on: the newest checkpoint of this run's folder, or else the one that ``resume`` names."""
    if cfg.resume is None and not int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        if rank_zero_only.rank == 0:  # pyright: ignore[reportFunctionMemberAccess]
            put_aside(folder)
        return None
    found = max((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if found:
        print(f"going on from {found}; resume=null starts anew")
        return found
    return None if cfg.resume in (None, "auto") else Path(cfg.resume)


def put_aside(folder: Path) -> None:
    """Keeps the checkpoints and log of an earlier run in a folder from the one that starts anew in it."""
    for name in ("checkpoints", "metrics.csv"):
        if (folder / name).exists():
            (folder / name).rename(folder / f"{name}.{time.time_ns()}")


def require_files(cfg: DictConfig) -> None:
    """Nothing, if every file that the run reads is there; otherwise one error that names all that are missing."""
    name, checks = task_name(cfg), []
    if name in (*DISTILLATIONS, "FinetuneDecoder"):
        checks += weight_checks(cfg.model)
    if name in (*DISTILLATIONS, "CacheTeacher"):
        checks += weight_checks(teacher_node(cfg))
    if name == "DetectObjects":
        checks += weight_checks(cfg.detector, cfg.model)
    if cfg.resume not in (None, "auto"):
        checks.append(partial(require_file, cfg.resume))
    require_all(checks + dataset_checks(cfg.dataset))


def write_weights(task: pl.LightningModule, folder: Path) -> list[Path]:
    """What was trained, in the formats that other tools read.

    A detector becomes an ultralytics ``.pt``, a SAM safetensors and, where it is of that shape, ``mobile_sam.pt`` too.

    Raises:
        ValueError: the run diverged, and weights are NaN or infinite; nothing is written.
        OSError: a file can't be written.
    """
    if not all(torch.isfinite(parameter).all() for parameter in task.parameters()):
        raise ValueError(
            "The run diverged: its weights are NaN or infinite, and none are written. Lower optimizer.lr and begin "
            f"anew with resume=null; checkpoints are in {folder}."
        )
    if isinstance(task, DetectObjects):
        save_detector(task.detector, folder / "detector.pt")
        return [folder / "detector.pt"]
    assert isinstance(task, Distill | FinetuneDecoder)
    sam = task.student if isinstance(task, Distill) else task.sam
    written = [folder / f"{sam.name}.safetensors".replace("/", "_")]
    save_weights(sam, written[0])
    if (sam.name, sam.encoder_name) == ("mobile_sam", "tiny_vit_5m"):
        written.append(folder / "mobile_sam.pt")
        save_mobile_sam(sam, written[1])
    return written


if __name__ == "__main__":
    main()
