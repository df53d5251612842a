"""What every recipe that trains shares: the trainer, resuming, and the weights at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from mobilesamv2.callbacks.checkpoint import EMA, AtomicCheckpointIO, StepAlignedCheckpoint
from mobilesamv2.callbacks.csv_log import trim_metrics
from mobilesamv2.callbacks.divergence import StopOnDivergence
from mobilesamv2.callbacks.length import RunLength
from mobilesamv2.callbacks.monitors import explain_monitors
from mobilesamv2.callbacks.requeue import SaveAndRequeue
from mobilesamv2.callbacks.resumable import Resumable, require_resumable
from mobilesamv2.callbacks.sync_batchnorm import SyncBatchNorms
from mobilesamv2.callbacks.throughput import ThroughputMonitor
from mobilesamv2.callbacks.validation import KeepBest, LastMetrics, logged_value
from mobilesamv2.checkpoints import save_mobile_sam, save_sam2, save_weights
from mobilesamv2.data.base import ImageDataset
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.samples import EncoderSamples
from mobilesamv2.models.sam import Sam
from mobilesamv2.recipes import run_folder
from mobilesamv2.recipes.build import cluster_plugins, loggers, own_callbacks, progress_bars
from mobilesamv2.recipes.checks import output_dir_is_stable, require_objects
from mobilesamv2.sam2_checkpoints import obstacle_to_sam2

BEST = "best"
"""Folder, in that of a run, of the weights of the best validation."""


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
        next_command: what can be done with the first file of ``write_weights``, which takes the place of ``{file}``.
        part: number of this job and number of jobs, among which a task that predicts is divided.
    """

    task: pl.LightningModule
    samples: EncoderSamples
    write_weights: Callable[[Path], list[Path]] | None
    cache: EmbeddingCache | None = None
    callbacks: Sequence[Callback] = ()
    summary: Callable[[], str] | None = None
    next_command: str = "mobilesamv2 segment IMAGE -o masks --model {file}"
    part: tuple[int, int] = (0, 1)


def run_training(cfg: DictConfig, setup: TrainingSetup, folder: Path, resume: Path | None) -> float | None:
    """Fit, write the weights, and return what a search of a sweep is to improve."""
    if setup.samples.reads_objects:
        require_objects(setup.samples.images)
    data = TrainingData(
        setup.samples,
        cfg.batch_size,
        cfg.validation_images,
        cfg.num_workers,
        cfg.seed,
        cfg.max_broken,
        setup.cache,
        cfg.trainer.max_steps,
        setup.part,
    )
    run_id = run_folder.run_id(folder, resumed=resume is not None)
    trainer, identity = build_checked_trainer(cfg, setup, folder, run_id, resume)
    checkpoint = None
    if resume is not None:
        data.trainer = trainer  # which the length of an epoch depends on
        steps = data.total_steps
        checkpoint = require_resumable(resume, setup.task, steps)
        objective = run_folder.finished_objective(folder, cfg.objective, steps)
        if objective is not None:
            print(f"{folder} is done: {cfg.objective} is {objective:.6g}")
            return objective

    def begin() -> None:  # from here on the folder is this run's
        if not trainer.is_global_zero:
            return
        prepare_folder(folder, resume, checkpoint)
        ids = setup.samples.images.image_ids
        run_folder.write_run_record(cfg, folder, run_id, identity, ids, resumed=resume is not None)
        log_begin(trainer, setup.task, run_folder.flat_settings(cfg) | identity, folder)

    with nullcontext() if setup.cache is None else setup.cache:  # whatever ends the run, embeddings are kept
        if setup.write_weights is not None:
            seconds = fit(cfg, trainer, setup.task, data, resume, begin)
            return finish(cfg, trainer, setup, folder, seconds) if trainer.is_global_zero else None
        begin()
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


def log_begin(trainer: pl.Trainer, task: pl.LightningModule, settings: dict[str, Any], folder: Path) -> None:
    """Log the settings of a run and the hashes of its files, and print what it trains."""
    for logger in trainer.loggers:
        logger.log_hyperparams(settings)
    sizes = {p: p.numel() for p in task.parameters()}
    trained = sum(size for p, size in sizes.items() if p.requires_grad)
    print(f"training {trained:,} of {sum(sizes.values()):,} parameters; writing to {folder}")


class AfterRestoring(Callback):
    """Calls a function once the states of a checkpoint are restored, before the first step.

    Args:
        begin: the function.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self.begin = begin
        self.has_begun = False

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ensure_begun()

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ensure_begun()  # a run that is resumed at its end does not start to train

    def ensure_begun(self) -> None:
        """Call the function, unless it was called."""
        if not self.has_begun:
            self.has_begun = True
            self.begin()


def fit(
    cfg: DictConfig,
    trainer: pl.Trainer,
    task: Any,
    data: TrainingData,
    resume: Path | None,
    begin: Callable[[], None],
) -> float:
    """Fit, and return the seconds; ``begin`` is called before anything is written, once a checkpoint is restored.

    Raises:
        ValueError: if it can't, or Lightning refuses a setting of the trainer.
    """
    if cfg.channels_last:
        task.backbone.to(memory_format=torch.channels_last)
    if cfg.compile:
        task.backbone.compile()
    start = time.monotonic()
    restored = AfterRestoring(begin)
    if resume is None:
        restored.ensure_begun()
    trainer.callbacks.insert(0, restored)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        # A checkpoint holds tensors and plain values alone, so that nothing in it is executed.
        with explain_monitors(trainer):
            trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if restored.has_begun or isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"{resume} can't be resumed from: {str(error).strip() or type(error).__name__} resume=null starts over."
        ) from error
    return time.monotonic() - start


def finish(cfg: DictConfig, trainer: pl.Trainer, setup: TrainingSetup, folder: Path, seconds: float) -> float | None:
    """Write the weights, the last and the best; print a summary; and return the objective of a search."""
    assert setup.write_weights is not None
    check_finite(setup.task, folder)
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    [last] = [callback for callback in callbacks if isinstance(callback, LastMetrics)]
    metrics = last.latest(trainer)
    shown = {name: metrics[name] for name in trainer.progress_bar_metrics if name.startswith("val/")}
    written = setup.write_weights(folder)
    print_summary(trainer.global_step, seconds, shown, written)
    print(f"next: {setup.next_command.format(file=written[0])}")
    best = None
    for keeping in callbacks:
        if isinstance(keeping, KeepBest) and (best := keeping.read_best()):
            keeping.load_into(setup.task)
            where = setup.write_weights(folder / BEST)[0]
            print(f"best: {best.metric} {best.value:.4g} in epoch {best.epoch}, at step {best.step}: {where}")
    run_folder.write_result(folder, trainer.global_step, metrics, best._asdict() if best else None)
    return None if cfg.objective is None else logged_value("objective", cfg.objective, metrics)


def print_summary(steps: int, seconds: float, shown: Mapping[str, float], written: Sequence[Path]) -> None:
    """Print the last validation and what was written."""
    figures = "".join(f", {name} {value:.4g}" for name, value in shown.items())
    print(f"\n{steps} steps, {timedelta(seconds=round(seconds))}{figures}")
    print(f"written: {', '.join(map(str, written))}")


UNSUPPORTED = {
    "overfit_batches": "each epoch draws its batches anew, and dataset.limit=N trains on N images",
    "fast_dev_run": "it writes neither log nor checkpoints; +trainer.limit_train_batches=2 trainer.max_epochs=1 does",
    "max_time": "the run would end before its learning rate has fallen. Set trainer.max_steps, or send SIGTERM when "
    "the time is over (timeout -s TERM 1h COMMAND), and the same command resumes",
}
"""Settings of Lightning's trainer that make no sense here, and why."""


def build_trainer(cfg: DictConfig, folder: Path, run_id: str, more: Sequence[Callback]) -> pl.Trainer:
    """Build the trainer with its loggers, checkpoints, signals and averages, and the task's own callbacks.

    Raises:
        ValueError: if a setting is one of ``UNSUPPORTED``, or Lightning refuses it.
    """
    for name, reason in UNSUPPORTED.items():
        if cfg.trainer.get(name):
            raise ValueError(f"trainer.{name} can't be used: {reason}.")
    checkpoints = folder / "checkpoints"
    average = None if cfg.ema is None else EMA(decay=cfg.ema)
    callbacks: list[Callback] = [
        StopOnDivergence(folder),
        LastMetrics(cfg.objective),
        *([] if average is None else [average]),  # averages before the others save
        *([KeepBest(checkpoints / "best.pt", cfg.best.metric, cfg.best.mode, average)] if cfg.best.metric else []),
        # "=" would have to be quoted on the command line; the counter would leave a file behind after each kill
        ModelCheckpoint(
            checkpoints,
            "epoch{epoch}-step{step}",
            save_last=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        ),
        StepAlignedCheckpoint(
            checkpoints,
            "recent",
            train_time_interval=timedelta(minutes=cfg.checkpoint_minutes),
            enable_version_counter=False,
        ),
        RunLength(cfg.trainer.max_steps),
        ThroughputMonitor(),
        *progress_bars(cfg.trainer),
        *more,
        *own_callbacks(cfg.trainer),
        SaveAndRequeue(checkpoints / "stopped.ckpt", cfg.requeue and output_dir_is_stable()),
    ]
    plugins = [AtomicCheckpointIO(), *([SyncBatchNorms()] if cfg.trainer.sync_batchnorm else []), *cluster_plugins()]
    try:
        return instantiate(
            cfg.trainer,
            max_steps=-1,  # ``RunLength`` ends the run
            logger=loggers(cfg.logger, folder, run_id),
            callbacks=callbacks,
            plugins=plugins,
            default_root_dir=str(folder),
            _convert_="all",
        )
    except InstantiationException as error:
        if isinstance(error.__cause__, MisconfigurationException):
            raise ValueError(f"trainer: {error.__cause__}") from error
        raise


def build_samples(cfg: DictConfig, image_size: int, needs_masks: bool = False, **frame: Any) -> EncoderSamples:
    """Build what a task trains on: its samples of the data set.

    Args:
        cfg: the composed configuration.
        image_size: S, pixels.
        needs_masks: check that every object has a mask, for a task that learns from masks.
        frame: ``resizing`` for the samples of a SAM, and ``student_size``.
    """
    images: ImageDataset = instantiate(cfg.dataset, _convert_="all")
    if needs_masks:
        images.require_masks()
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


def prepare_folder(folder: Path, resume: Path | None, checkpoint: Resumable | None) -> None:
    """Keep the checkpoints and log of an earlier run from one that starts in its folder, or trim the log to resume."""
    if resume is None or checkpoint is None or not resume.is_relative_to(folder):
        for name in ("checkpoints", BEST, "metrics.csv"):
            if (folder / name).exists():
                (folder / name).rename(folder / f"{name}.{time.time_ns()}")
    else:
        trim_metrics(folder / "metrics.csv", checkpoint.steps, checkpoint.validates_first)


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

    A SAM 2 with a Hiera is also written in the official format, without a memory.

    Raises:
        OSError: if a file can't be written.
    """
    written = [folder / f"{sam.name}.safetensors".replace("/", "_")]
    save_weights(sam, written[0])
    if (sam.name, sam.encoder_name) == ("mobile_sam", "tiny_vit_5m"):
        written.append(folder / "mobile_sam.pt")
        save_mobile_sam(sam, written[1])
    if obstacle_to_sam2(sam) is None:
        written.append(folder / f"{sam.name}_image.pt")
        save_sam2(sam, written[1])
    return written
