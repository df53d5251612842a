"""The program that trains: ``mobilesamv2 train experiment=distill_tinyvit``, or ``python train.py``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from mobilesamv2.recipes import schema
from mobilesamv2.recipes.errors import silence_warnings
from mobilesamv2.recipes.overrides import explain_overrides
from mobilesamv2.recipes.sweeps import run_job

schema.register()


@explain_overrides
@hydra.main(config_path=str(schema.CONF), config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    """Compose, check, build, fit, and write the weights; return what a search of a sweep is to improve."""
    return run_job(run, cfg)


def run(cfg: DictConfig, overrides: Sequence[str] | None = None) -> float | None:
    """Check a composed configuration, build, fit, and write the weights; return as ``main`` does.

    Args:
        cfg: the configuration.
        overrides: that it was composed with; None for those of the command line.
    """
    # imported once the configuration is composed, so that --help and a mistyped key answer at once
    import pytorch_lightning as pl
    from pytorch_lightning.utilities import rank_zero_only

    from mobilesamv2.recipes import checks, training
    from mobilesamv2.recipes.build import output_folder, own_wandb_run
    from mobilesamv2.recipes.folder_lock import locked
    from mobilesamv2.recipes.run_outputs import checkpoint_to_resume

    silence_warnings()
    recipe: Any = schema.find_recipe(cfg, "build", "train.py")
    folder = output_folder(cfg)
    checks.require_folder_of("train", folder)
    if not checks.is_sweep():
        cfg.output_dir = str(folder)  # named after the time by default, which would be another in each process
    schema.require_settings(cfg, recipe.NEEDS, recipe.OPTIONS)
    checks.check_pixels_are_read(cfg, recipe.NEEDS)
    checks.check_networks_are_read(checks.command_line() if overrides is None else overrides, recipe)
    checks.check_single_process_sweep(cfg)
    checks.check_precision(cfg)
    checks.check_shared_folder()
    named = [] if cfg.resume in (None, "auto") else [lambda: checks.require_file(cfg.resume)]
    checks.require_all([*recipe.missing_files(cfg), *named, *checks.dataset_checks(cfg.dataset)])
    is_first = rank_zero_only.rank == 0  # pyright: ignore[reportFunctionMemberAccess]
    with locked(folder) if is_first else nullcontext(), own_wandb_run():
        resume: Path | None = checkpoint_to_resume(cfg, folder)
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        return training.run_training(cfg, recipe.build(cfg), folder, resume)


if __name__ == "__main__":
    main()
