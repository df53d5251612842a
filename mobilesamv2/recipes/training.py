"""What every recipe that trains shares: the trainer, resuming, and the weights at the end."""

from __future__ import annotations

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
from mobilesamv2.callbacks.resumable import require_resumable
from mobilesamv2.callbacks.sync_batchnorm import SyncBatchNorms
from mobilesamv2.callbacks.throughput import ThroughputMonitor
from mobilesamv2.callbacks.validation import Best, KeepBest, LastMetrics, logged_value
from mobilesamv2.data.base import ImageDataset
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.samples import EncoderSamples
from mobilesamv2.recipes import run_folder
from mobilesamv2.recipes.build import cluster_plugins, loggers, own_callbacks, progress_bars
from mobilesamv2.recipes.checks import output_dir_is_stable, require_objects
from mobilesamv2.recipes.run_outputs import (
    BEST,
    Writers,
    has_weights,
    keep_apart,
    make_room,
    make_room_for_more,
    require_other_inputs,
    starts_over,
    write_files,
)


class TrainingSetup(NamedTuple):
    """What a recipe hands to the program.

    Attributes:
        task: the LightningModule.
        samples: what it trains on.
        weights: what writes each file of what was trained, by the file's name; None for a task that trains nothing and
            predicts instead.
        cache: of the teacher's embeddings.
        callbacks: beside those of every run.
        summary: returns what is printed at the end of a task that predicts.
        next_command: what can be done with the first of ``weights``, which takes the place of ``{file}``.
        part: number of this job and number of jobs, among which a task that predicts is divided.
    """

    task: pl.LightningModule
    samples: EncoderSamples
    weights: Writers | None
    cache: EmbeddingCache | None = None
    callbacks: Sequence[Callback] = ()
    summary: Callable[[], str] | None = None
    next_command: str = "mobilesamv2 segment IMAGE -o masks --model {file}"
    part: tuple[int, int] = (0, 1)


def run_training(cfg: DictConfig, setup: TrainingSetup, folder: Path, resume: Path | None) -> float | None:
    """Fit, write the weights, and return what a search of a sweep is to improve."""
    if setup.samples.reads_objects:
        require_objects(setup.samples.images)
    batch_size, held_out = cfg.batch_size, cfg.validation_images
    if setup.weights is None:  # all images are predicted, and none are left to train on
        batch_size, held_out = min(batch_size, len(setup.samples)), 0
    data = TrainingData(
        setup.samples,
        batch_size,
        held_out,
        cfg.num_workers,
        cfg.seed,
        cfg.max_broken,
        setup.cache,
        cfg.trainer.max_steps,
        setup.part,
    )
    names = tuple(setup.weights or ())
    require_other_inputs(run_folder.flat_settings(cfg), folder, names)
    result = None if resume is None and starts_over(cfg) else run_folder.recorded_result(folder)
    goes_on = resume is not None and resume.resolve().is_relative_to(folder.resolve())
    run_id = run_folder.run_id(folder, resumed=goes_on)
    trainer, identity = build_checked_trainer(cfg, setup, folder, run_id, resume, result is not None)
    checkpoint = None
    if resume is not None or result is not None:
        data.trainer = trainer  # which the length of an epoch depends on
        is_done = result is not None and run_folder.is_done(result, data.total_steps)
        if result is not None and is_done and has_weights(folder, names, result):
            return objective_of_finished(cfg, setup, folder, result)
        if resume is None:
            raise ValueError(
                f"{folder} holds a run that ended, of another length or without its weights now, and no checkpoint to "
                "go on from. Name another output_dir, or start over with resume=null."
            )
        checkpoint = require_resumable(resume, setup.task, data.total_steps)
        if result is not None and is_done and result.get("steps") == checkpoint.steps:
            end_at(trainer, checkpoint.steps)  # its weights are gone, and are written again

    def begin() -> None:  # from here on the folder is this run's
        if not trainer.is_global_zero:
            return
        if goes_on and checkpoint is not None:
            print(f"resuming from {resume}; resume=null starts over")
            run_folder.print_uncompared(folder)
            make_room_for_more(folder, names)
            trim_metrics(folder / "metrics.csv", checkpoint.steps, checkpoint.validates_first)
        elif names:
            make_room(folder, names, with_logs=resume is None)
        ids = setup.samples.images.image_ids
        run_folder.write_run_record(cfg, folder, run_id, identity, ids, names, resumed=goes_on)
        log_begin(trainer, setup.task, run_folder.flat_settings(cfg) | identity, folder)

    with nullcontext() if setup.cache is None else setup.cache:  # whatever ends the run, embeddings are kept
        if setup.weights is not None:
            seconds = fit(cfg, trainer, setup.task, data, resume, begin)
            return finish(cfg, trainer, setup, folder, seconds, data.total_steps) if trainer.is_global_zero else None
        begin()
        trainer.predict(setup.task, datamodule=data, return_predictions=False)
    if setup.summary is not None:
        print(f"process {trainer.global_rank}: {setup.summary()}")
    return None


def build_checked_trainer(
    cfg: DictConfig, setup: TrainingSetup, folder: Path, run_id: str, resume: Path | None, has_result: bool
) -> tuple[pl.Trainer, dict[str, Any]]:
    """Build the trainer, and check that a run that resumes, or has ended, is the one of its folder.

    Args:
        cfg: the composed configuration.
        setup: of the recipe.
        folder: of the run.
        run_id: of the run.
        resume: the checkpoint that the run resumes from, if there is one.
        has_result: whether the folder records that a run ended.

    Returns:
        The trainer, and the identity of the run.

    Raises:
        ValueError: if it is another one.
    """
    identity = run_folder.run_identity(cfg, setup.samples.images)
    recorded = {resume.parent.parent: resume.is_relative_to(folder)} if resume is not None else {}
    if has_result:
        recorded.setdefault(folder, False)
    for other, is_required in recorded.items():  # before the trainer, which writes into the log
        run_folder.check_resumed_run(other, identity, is_required)
    trainer = build_trainer(cfg, folder, run_id, setup.callbacks)
    identity[run_folder.STEP_SIZE] = cfg.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    for other in recorded:
        run_folder.check_resumed_run(other, identity, is_required=False)
    return trainer, identity


def objective_of_finished(
    cfg: DictConfig, setup: TrainingSetup, folder: Path, result: Mapping[str, Any]
) -> float | None:
    """Print the summary of a run that has ended, from its record, and return the objective of a search."""
    value = None if cfg.objective is None else logged_value("objective", cfg.objective, result["metrics"])
    print(f"{folder} is done" + ("" if value is None else f": {cfg.objective} is {value:.6g}"))
    run_folder.print_uncompared(folder)
    print_summary(setup, folder, result)
    return value


def end_at(trainer: pl.Trainer, steps: int) -> None:
    """Have a run end when it resumes at a step, as it did before."""
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    [length] = [callback for callback in callbacks if isinstance(callback, RunLength)]
    length.max_steps = steps


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


def finish(
    cfg: DictConfig, trainer: pl.Trainer, setup: TrainingSetup, folder: Path, seconds: float, total_steps: int | None
) -> float | None:
    """Write the weights, the last and the best; print a summary; and return the objective of a search."""
    assert setup.weights is not None
    check_finite(setup.task, folder)
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    [last] = [callback for callback in callbacks if isinstance(callback, LastMetrics)]
    metrics = last.latest(trainer)
    shown = [name for name in trainer.progress_bar_metrics if name.startswith("val/")]
    result: dict[str, Any] = {"steps": trainer.global_step, "total_steps": total_steps, "seconds": round(seconds)}
    result |= {"metrics": metrics, "shown": shown or [name for name in metrics if name.startswith("val/")]}
    write_files(setup.weights, folder)
    best = None
    for keeping in callbacks:
        if isinstance(keeping, KeepBest) and (best := keeping.read_best()):
            keeping.load_into(setup.task)
            write_files(setup.weights, folder / BEST)
    result["best"] = best._asdict() if best else None
    run_folder.write_result(folder, result)
    print_summary(setup, folder, result)
    return None if cfg.objective is None else logged_value("objective", cfg.objective, metrics)


def print_summary(setup: TrainingSetup, folder: Path, result: Mapping[str, Any]) -> None:
    """Print the last validation, where the weights are, and what can be done with them.

    Args:
        setup: of the recipe.
        folder: of the run.
        result: what the folder records of its end; an earlier version recorded neither its time nor what to show.
    """
    written = [folder / name for name in setup.weights or ()]
    metrics = result["metrics"]
    shown = result.get("shown", [name for name in metrics if name.startswith("val/")])
    time_taken = f", {timedelta(seconds=result['seconds'])}" if "seconds" in result else ""
    figures = "".join(f", {name} {metrics[name]:.4g}" for name in shown if name in metrics)
    print(f"\n{result['steps']} steps{time_taken}{figures}")
    print(f"written: {', '.join(map(str, written))}")
    print(f"next: {setup.next_command.format(file=written[0])}")
    if result.get("best"):
        best = Best(**result["best"])
        where = folder / BEST / written[0].name
        print(f"best: {best.metric} {best.value:.4g} in epoch {best.epoch}, at step {best.step}: {where}")


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
        *keep_apart(own_callbacks(cfg.trainer), folder),
        SaveAndRequeue(checkpoints / "stopped.ckpt", cfg.requeue and output_dir_is_stable()),
    ]
    plugins = [AtomicCheckpointIO(), *([SyncBatchNorms()] if cfg.trainer.sync_batchnorm else []), *cluster_plugins()]
    try:
        return instantiate(
            cfg.trainer,
            # ``RunLength`` ends the run after a step; without any, Lightning does
            max_steps=0 if cfg.trainer.max_steps == 0 else -1,
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
