"""What every recipe that trains shares: the trainer, resuming, and the weights at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from mobilesamv2.callbacks.checkpoint import (
    EMA,
    AtomicCheckpointIO,
    SaveAndRequeue,
    StepAlignedCheckpoint,
    require_resumable,
)
from mobilesamv2.callbacks.divergence import StopOnDivergence
from mobilesamv2.callbacks.objective import CheckObjective, objective_value
from mobilesamv2.callbacks.sync_batchnorm import SyncBatchNorms
from mobilesamv2.callbacks.throughput import ThroughputMonitor, trim_metrics
from mobilesamv2.checkpoints import save_mobile_sam, save_weights
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.samples import EncoderSamples
from mobilesamv2.models.sam import Sam
from mobilesamv2.recipes import run_folder
from mobilesamv2.recipes.build import cluster_plugins, loggers, own_callbacks, progress_bars
from mobilesamv2.recipes.checks import output_dir_is_stable, require_objects


class TrainingSetup(NamedTuple):
    """What a recipe hands to the program.

    Attributes:
        task: the LightningModule.
        samples: what it trains on.
        write_weights: writes what was trained into a folder and returns the paths; None for a task that trains nothing
            and predicts instead.
        cache: of the teacher's embeddings.
        callbacks: beside those of every run.
        summary: returns what is printed at the end of a task that predicts.
    """

    task: pl.LightningModule
    samples: EncoderSamples
    write_weights: Callable[[Path], list[Path]] | None
    cache: EmbeddingCache | None = None
    callbacks: Sequence[Callback] = ()
    summary: Callable[[], str] | None = None


def run_training(cfg: DictConfig, setup: TrainingSetup, folder: Path, resume: Path | None) -> float | None:
    """Fit, write the weights, and return what a search of a sweep is to improve."""
    data = TrainingData(
        setup.samples, cfg.batch_size, cfg.validation_images, cfg.num_workers, cfg.seed, cfg.max_broken, setup.cache
    )
    if setup.samples.reads_objects:
        require_objects(setup.samples.images)
    run_id = run_folder.run_id(folder, resumed=resume is not None)
    trainer, identity = build_checked_trainer(cfg, setup, folder, run_id, resume)
    steps_done = 0
    if resume is not None:
        steps = run_length(cfg, len(data.batches) // trainer.accumulate_grad_batches)
        steps_done = require_resumable(resume, setup.task, steps)
        objective = run_folder.finished_objective(folder, cfg.objective, steps)
        if objective is not None:
            print(f"{folder} is done: {cfg.objective} is {objective:.6g}")
            return objective
    if trainer.is_global_zero:  # from here on the folder is this run's
        if resume is None:
            archive_previous_run(folder)
        elif resume.is_relative_to(folder):
            trim_metrics(folder / "metrics.csv", steps_done)
        ids = setup.samples.images.image_ids
        run_folder.write_run_record(cfg, folder, run_id, identity, ids, resumed=resume is not None)
        log_begin(trainer, setup.task, identity, folder)
    if setup.write_weights is not None:
        return fit(cfg, trainer, setup.task, data, setup.write_weights, folder, resume)
    trainer.predict(setup.task, datamodule=data, return_predictions=False)
    if setup.summary is not None:
        print(f"process {trainer.global_rank}: {setup.summary()}")
    return None


def build_checked_trainer(
    cfg: DictConfig, setup: TrainingSetup, folder: Path, run_id: str, resume: Path | None
) -> tuple[pl.Trainer, dict[str, Any]]:
    """Build the trainer, and check that a run that resumes is the one of its folder; return its identity too.

    Raises:
        ValueError: if it is another one.
    """
    identity = run_folder.run_identity(cfg, setup.samples.images)
    if resume is not None:  # before the trainer, which writes into the log
        run_folder.check_resumed_run(resume.parent.parent, identity, is_required=resume.is_relative_to(folder))
    trainer = build_trainer(cfg, folder, run_id, setup.callbacks)
    identity[run_folder.STEP_SIZE] = cfg.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    if resume is not None:
        run_folder.check_resumed_run(resume.parent.parent, identity, is_required=False)
    return trainer, identity


def log_begin(trainer: pl.Trainer, task: pl.LightningModule, identity: dict[str, Any], folder: Path) -> None:
    """Log the settings of a run, and print what it trains."""
    for logger in trainer.loggers:
        logger.log_hyperparams(identity)
    sizes = {p: p.numel() for p in task.parameters()}
    trained = sum(size for p, size in sizes.items() if p.requires_grad)
    print(f"training {trained:,} of {sum(sizes.values()):,} parameters; writing to {folder}")


def fit(
    cfg: DictConfig,
    trainer: pl.Trainer,
    task: Any,
    data: TrainingData,
    write_weights: Callable[[Path], list[Path]],
    folder: Path,
    resume: Path | None,
) -> float | None:
    """Fit, write the weights, print a summary, and return the objective of a search."""
    if cfg.channels_last:
        task.backbone.to(memory_format=torch.channels_last)
    if cfg.compile:
        task.backbone.compile()
    begin = time.monotonic()
    # A checkpoint holds tensors and plain values alone, so that nothing in it is executed.
    trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    if trainer.is_global_zero:
        check_finite(task, folder)
        print_summary(trainer, time.monotonic() - begin, write_weights(folder))
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        run_folder.write_result(folder, trainer.global_step, metrics)
    return None if cfg.objective is None else objective_value(cfg.objective, trainer)


def print_summary(trainer: pl.Trainer, seconds: float, written: Sequence[Path]) -> None:
    """Print the last validation, what was written, and what can be done with it."""
    shown = {name: value for name, value in trainer.progress_bar_metrics.items() if name.startswith("val/")}
    figures = "".join(f", {name} {value:.4g}" for name, value in shown.items())
    print(f"\n{trainer.global_step} steps, {timedelta(seconds=round(seconds))}{figures}")
    print(f"written: {', '.join(map(str, written))}")
    if written[0].suffix == ".safetensors":
        print(f"next: mobilesamv2 segment IMAGE -o masks --model {written[0]}")
    else:
        print(f"next: mobilesamv2 evaluate task=evaluate_detector detector=yolov8n detector.checkpoint={written[0]}")


def run_length(cfg: DictConfig, steps_per_epoch: int) -> int | None:
    """Return the optimizer steps of a run; None where its epochs are shortened."""
    epochs, steps = cfg.trainer.max_epochs, cfg.trainer.max_steps
    if cfg.trainer.get("limit_train_batches", 1.0) != 1.0:
        return None if steps < 0 else steps
    lengths = [*([epochs * steps_per_epoch] if epochs >= 0 else []), *([steps] if steps >= 0 else [])]
    return min(lengths, default=None)


def build_trainer(cfg: DictConfig, folder: Path, run_id: str, more: Sequence[Callback]) -> pl.Trainer:
    """Build the trainer with its loggers, checkpoints, signals and averages, and the task's own callbacks."""
    checkpoints = folder / "checkpoints"
    callbacks: list[Callback] = [
        StopOnDivergence(folder),
        *([CheckObjective(cfg.objective)] if cfg.objective else []),
        *([] if cfg.ema is None else [EMA(decay=cfg.ema)]),  # averages before the others save
        # "=" would have to be quoted on the command line
        ModelCheckpoint(checkpoints, "epoch{epoch}-step{step}", save_last=True, auto_insert_metric_name=False),
        StepAlignedCheckpoint(checkpoints, "recent", train_time_interval=timedelta(minutes=cfg.checkpoint_minutes)),
        SaveAndRequeue(checkpoints / "stopped.ckpt", cfg.requeue and output_dir_is_stable()),
        ThroughputMonitor(),
        *progress_bars(cfg.trainer),
        *more,
        *own_callbacks(cfg.trainer),
    ]
    return instantiate(
        cfg.trainer,
        logger=loggers(cfg.logger, folder, run_id),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), *([SyncBatchNorms()] if cfg.trainer.sync_batchnorm else []), *cluster_plugins()],
        default_root_dir=str(folder),
        _convert_="all",
    )


def build_samples(cfg: DictConfig, image_size: int, **frame: Any) -> EncoderSamples:
    """Build what a task trains on: its samples of the data set.

    Args:
        cfg: the composed configuration.
        image_size: S, pixels.
        frame: ``keep_aspect_ratio`` for the samples of a SAM, and ``student_size``.
    """
    images = instantiate(cfg.dataset, _convert_="all")
    return instantiate(cfg.samples, images=images, image_size=image_size, **frame, _convert_="all")


def checkpoint_to_resume(cfg: DictConfig, folder: Path) -> Path | None:
    """Return the checkpoint to resume: the newest of this run's folder, or else the one that ``resume`` names."""
    if cfg.resume is None and not int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        return None
    found = max((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if found:
        print(f"resuming from {found}; resume=null starts over")
        return found
    return None if cfg.resume in (None, "auto") else Path(cfg.resume)


def archive_previous_run(folder: Path) -> None:
    """Keep the checkpoints and log of an earlier run in a folder from the one that starts over in it."""
    for name in ("checkpoints", "metrics.csv"):
        if (folder / name).exists():
            (folder / name).rename(folder / f"{name}.{time.time_ns()}")


def check_finite(task: pl.LightningModule, folder: Path) -> None:
    """Check that a run has not diverged, before its weights are written.

    Raises:
        ValueError: if weights are NaN or infinite.
    """
    if not all(torch.isfinite(parameter).all() for parameter in task.parameters()):
        raise ValueError(
            "The run diverged: its weights are NaN or infinite, and none are written. Lower optimizer.lr and start "
            f"over with resume=null; checkpoints are in {folder}."
        )


def write_sam(sam: Sam, folder: Path) -> list[Path]:
    """Write a SAM in the formats that other tools read: safetensors and, where it has that shape, ``mobile_sam.pt``.

    Raises:
        OSError: if a file can't be written.
    """
    written = [folder / f"{sam.name}.safetensors".replace("/", "_")]
    save_weights(sam, written[0])
    if (sam.name, sam.encoder_name) == ("mobile_sam", "tiny_vit_5m"):
        written.append(folder / "mobile_sam.pt")
        save_mobile_sam(sam, written[1])
    return written
