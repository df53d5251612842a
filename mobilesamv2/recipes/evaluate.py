"""The program that evaluates: ``mobilesamv2 evaluate dataset=lvis``, or ``python evaluate.py``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import hydra
from omegaconf import DictConfig

from mobilesamv2.recipes import schema
from mobilesamv2.recipes.errors import silence_warnings
from mobilesamv2.recipes.overrides import explain_overrides
from mobilesamv2.recipes.sweeps import run_job

schema.register()


@explain_overrides
@hydra.main(config_path=str(schema.CONF), config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Compose, check, build, run, and print the table."""
    run_job(run, cfg)


def run(cfg: DictConfig) -> None:
    """Check a composed configuration, build, run, and print the table."""
    # imported once the configuration is composed, so that --help and a mistyped key answer at once
    import pytorch_lightning as pl
    from pytorch_lightning.utilities import rank_zero_only

    from mobilesamv2.evaluation.results import write_record
    from mobilesamv2.recipes import checks
    from mobilesamv2.recipes.build import output_folder, own_wandb_run
    from mobilesamv2.recipes.folder_lock import locked
    from mobilesamv2.recipes.protocols import protocol_record, require_protocol
    from mobilesamv2.recipes.records import environment
    from mobilesamv2.reports.printed import format_results

    silence_warnings()
    folder, known = output_folder(cfg), environment(cfg.seed)
    recipe: Any = schema.find_recipe(cfg, "evaluate", "evaluate.py")
    checks.require_folder_of("evaluate", folder)
    schema.require_settings(cfg, recipe.NEEDS, recipe.OPTIONS)
    require_protocol(cfg)
    checks.check_single_process_sweep(cfg)
    if "trainer" in recipe.NEEDS:
        checks.check_precision(cfg)
    checks.check_shared_folder()
    checks.require_all(recipe.missing_files(cfg))
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    is_first = rank_zero_only.rank == 0  # pyright: ignore[reportFunctionMemberAccess]
    with locked(folder) if is_first else nullcontext(), own_wandb_run():
        results, per_image = recipe.evaluate(cfg)
        if not is_first:
            return
        results["run"] = known | results["run"]  # of the part that evaluated the images, where another one did
        results["protocol"] = protocol_record(cfg) | results["protocol"]
        written = write_record(results, folder, **per_image)
    print(format_results(results))
    print(f"\nwritten: {' and '.join(map(str, written))}")


if __name__ == "__main__":
    main()
