"""What a search by Optuna requires before its first trial, so that it has a result and can be resumed."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf


def is_search(config: DictConfig) -> bool:
    """Return whether a sweep, of which this is Hydra's configuration, reads what its jobs return."""
    return "BasicSweeper" not in config.hydra.sweeper._target_


def require_repeatable_search(config: DictConfig) -> None:
    """Check that a search has an objective, and that one which is run again will ask for the same trials.

    Others are refused one by one, since each folder belongs to a trial of before.

    Args:
        config: Hydra's, of the sweep.

    Raises:
        ValueError: if it has none, or won't.
    """
    sweeper = config.hydra.sweeper
    if "optuna" not in sweeper._target_:
        return
    if "objective" in config and config.objective is None:
        raise ValueError("A search requires the metric that it is to improve, objective=val/loss for example.")
    from mobilesamv2.recipes.run_folder import RECORD  # which imports torch, and most sweeps are no searches

    folder = Path(config.hydra.sweep.dir)
    if not any(folder.glob(f"*/{RECORD}")):
        return
    holds = f"{folder} holds trials of an earlier search, and this one would ask for others"
    if sweeper.storage is not None:
        raise ValueError(f"{holds}, those that follow in {sweeper.storage}. Name another output_dir for them.")
    if "GridSampler" in sweeper.sampler._target_:
        raise ValueError(
            f"{holds}, since Optuna's grid is in random order. Name another output_dir, or leave hydra/sweeper=optuna "
            "out: a sweep over KEY=A,B,C resumes."
        )
    if OmegaConf.select(sweeper.sampler, "seed") is None:
        raise ValueError(
            f"{holds}, since hydra.sweeper.sampler.seed is null. Name another output_dir, and with it "
            "hydra.sweeper.sampler.seed=0, so that the same command resumes the search."
        )
