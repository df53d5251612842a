"""What recipes build from a configuration: models, loggers, plugins, and the folder of the run."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, TQDMProgressBar
from pytorch_lightning.plugins.environments import SLURMEnvironment

from mobilesamv2.callbacks.log_lines import LogLines
from mobilesamv2.callbacks.pictures import PredictionPictures
from mobilesamv2.models.object_detector import ObjectDetector
from mobilesamv2.models.sam import Sam
from mobilesamv2.prompt_heads import EncodedDetector
from mobilesamv2.recipes.checks import is_sweep


def loggers(node: DictConfig | None, folder: Path, run_id: str | None = None) -> list[Any]:
    """Build the loggers of conf/logger, which write into a folder; Weights & Biases works offline without a login.

    There the jobs of a sweep are one group, named after the sweep's folder, and each is named after its overrides.

    Args:
        node: of conf/logger.
        folder: of the run.
        run_id: of a run that may resume, which is then one run there too.
    """
    if node and "wandb" in node and not os.environ.get("WANDB_API_KEY"):
        netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        if not (netrc.is_file() and "wandb.ai" in netrc.read_text()):
            os.environ.setdefault("WANDB_MODE", "offline")
    # in a sweep the folder is the job's, and output_dir the sweep's
    built = []
    for name, logger in (node or {}).items():
        given = {"save_dir": str(folder)}
        if name == "wandb" and run_id is not None:
            given |= {"id": run_id, "resume": "allow"}
        if name == "wandb" and is_sweep():
            own = {"group": folder.parent.name, "name": HydraConfig.get().job.override_dirname or folder.name}
            given |= {key: value for key, value in own.items() if key not in logger}
        built.append(instantiate(logger, **given, _convert_="all"))
    return built


@contextmanager
def own_wandb_run() -> Iterator[None]:
    """End the run of Weights & Biases that begins within, marked as failed after an error: the next one is another.

    One that was begun before, by a program that trains from Python, takes the run in and is left open.
    """
    before, exit_code = _open_wandb_run(), 1
    try:
        yield
        exit_code = 0
    finally:
        run = _open_wandb_run()
        if run is not None and run is not before:
            run.finish(exit_code)


def _open_wandb_run() -> Any:
    """Return the run that a new logger would write into, None if there is none."""
    return getattr(sys.modules.get("wandb"), "run", None)


def cluster_plugins() -> list[Any]:
    """Return on Slurm its environment without Lightning's own requeueing, which would disturb ours."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def progress_bars(trainer: DictConfig) -> list[Callback]:
    """Return what shows the progress, unless conf/trainer has none: tqdm's bar, or lines in a log file."""
    if not trainer.get("enable_progress_bar", True):
        return []
    return [TQDMProgressBar() if sys.stderr.isatty() or is_notebook() else LogLines()]


def is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, where a bar can move although nothing is a terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def picture_callbacks(cfg: DictConfig, model: Sam | ObjectDetector | EncodedDetector) -> list[Callback]:
    """Return the pictures of what a run trains, every ``picture_steps``, for loggers that show images."""
    return [] if cfg.picture_steps is None else [PredictionPictures(model, cfg.picture_steps)]


def own_callbacks(trainer: DictConfig) -> list[Callback]:
    """Build the callbacks of a user, ``+trainer.callbacks=[{_target_: ...}]``, which come beside ours.

    Raises:
        ValueError: if one can't be built, or is no callback; or if ``trainer`` has loggers or plugins, which would
            replace ours.
    """
    for key in ("logger", "plugins"):
        if key in trainer:
            raise ValueError(f"trainer.{key} would replace what this program needs: logger=NAME, one of conf/logger.")
    nodes = trainer.get("callbacks") or ()
    return [_build_callback(node, i) for i, node in enumerate([nodes] if isinstance(nodes, DictConfig) else nodes)]


def _build_callback(node: DictConfig, index: int) -> Callback:
    """Build one callback, whose arguments have been checked by name and type."""
    try:
        built = instantiate(node, _convert_="all")
    except InstantiationException as error:
        if error.__cause__ is None or isinstance(error.__cause__, ImportError):
            raise
        raise ValueError(f"trainer.callbacks[{index}], {node.get('_target_')}: {error.__cause__}") from error
    if not isinstance(built, Callback):
        raise ValueError(
            f"trainer.callbacks[{index}] must be a callback of Lightning, {{_target_: MODULE.CLASS, ...}}, got "
            f"{node.get('_target_', node)}."
        )
    return built


def build_model(node: DictConfig, encoder: str | None) -> Sam:
    """Build a model of conf/model, with another image encoder where ``encoder`` names one."""
    with_encoder = {"encoder": encoder} if encoder else {}
    return instantiate(node, **with_encoder, _convert_="all")


def needs_detector(cfg: DictConfig) -> bool:
    """Return whether the prompt sampler takes a detector."""
    return "detector" in inspect.signature(get_method(cfg.prompt_sampler._target_)).parameters


def reads_embedding(node: DictConfig) -> bool:
    """Return whether a detector of conf/detector is a prompt head, which is built for a model."""
    return "sam" in inspect.signature(get_method(node._target_)).parameters


def build_detector(node: DictConfig, sam: Sam | None = None) -> Any:
    """Build a detector of conf/detector.

    Args:
        node: of conf/detector.
        sam: the model whose embeddings a prompt head reads, not a copy for inference; None where none takes part.

    Raises:
        ValueError: if the detector is a prompt head, and there is no model.
    """
    if not reads_embedding(node):
        return instantiate(node, _convert_="all")
    if sam is None:
        raise ValueError("detector must be a YOLO for this task, which has no embedding that a prompt head could read.")
    return instantiate(node, sam=sam, _convert_="all")


def output_folder(cfg: DictConfig) -> Path:
    """Return where a run writes: ``output_dir``, or in a sweep the job's own folder inside it."""
    return Path(HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else cfg.output_dir)
