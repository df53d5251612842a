"""Training and evaluation from Python, a notebook for example: what the two programs do, with the same arguments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from mobilesamv2.recipes import evaluate as evaluate_program
from mobilesamv2.recipes import schema
from mobilesamv2.recipes import train as train_program
from mobilesamv2.recipes.overrides import explanation


def train(*overrides: str) -> Path:
    """Train as ``mobilesamv2 train`` does with these arguments, and return the folder that was written.

    Args:
        overrides: ``experiment=distill_tinyvit`` and others, each as on the command line. A finished run of the same
            ``output_dir`` returns at once, and a stopped one goes on.

    Raises:
        FileNotFoundError: if weights or data are missing.
        ValueError: if the settings can't be composed, or one makes no sense.
    """
    cfg = compose_run("train", overrides)
    with _errors_of_parts():
        train_program.run(cfg, overrides)
    return Path(cfg.output_dir)


def evaluate(*overrides: str) -> Path:
    """Evaluate as ``mobilesamv2 evaluate`` does with these arguments, and return the folder of ``results.json``.

    Args:
        overrides: ``dataset=lvis``, ``model=mobile_sam`` and others, each as on the command line.

    Raises:
        FileNotFoundError: if weights or data are missing.
        ValueError: if the settings can't be composed, or one makes no sense.
    """
    cfg = compose_run("evaluate", overrides)
    with _errors_of_parts():
        evaluate_program.run(cfg)
    return Path(cfg.output_dir)


@contextmanager
def _errors_of_parts() -> Iterator[None]:
    """Raise the error of what Hydra builds, a data set for example, in place of Hydra's own around it."""
    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise cause from cause.__cause__  # from the error itself the two would name each other as their cause


def compose_run(program: str, overrides: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """Compose the configuration of one run.

    Args:
        program: ``train`` or ``evaluate``.
        overrides: as on the command line.
        config_dir: further configurations, those of ``--config-dir``.

    Raises:
        ValueError: if it can't be, or it is a sweep.
    """
    more = [] if config_dir is None else [f"hydra.searchpath=['file://{config_dir.resolve()}']"]
    try:
        with initialize_config_dir(str(schema.CONF), version_base="1.3"):
            cfg = compose(program, [*overrides, *more], return_hydra_config=True)
    except (CompactHydraException, OmegaConfBaseException) as error:
        raise ValueError(explanation(error, overrides)) from error
    if cfg.hydra.mode == RunMode.MULTIRUN:
        raise ValueError(
            f"A sweep is many runs, and this is one: mobilesamv2 {program} {' '.join(overrides)}, or a loop over its "
            "values."
        )
    with open_dict(cfg):
        del cfg["hydra"]
    cfg.output_dir = str(cfg.output_dir)  # named after the time by default, which would be another at each reading
    return cfg
