"""A sweep over a list of jobs, which any launcher of Hydra's runs: the cells of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from typing_extensions import override

from mobilesamv2.data.json_files import read_json

CALLBACK = "hydra.callbacks.cells"
"""Where the command line of a sweep has ``SweepCells``."""


class SweepCells(Callback):
    """Has Hydra's own sweeper run the jobs of a file, as one batch, where it would take all combinations of settings.

    Hydra takes sweepers of packages of its own alone, so that this one is given its jobs in place.

    Args:
        file: JSON, a list with the overrides of each job; those of the command line are added to all.
    """

    def __init__(self, file: str) -> None:
        self._cells = read_cells(file)

    @override
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        cells = self._cells

        def jobs(overrides: Sequence[Override], max_batch_size: int | None) -> list[list[list[str]]]:
            shared = [str(each.input_line) for each in overrides]
            return [[[*shared, *cell] for cell in cells]]

        # Hydra loads the modules of its plugins anew, so that the class that an import gives is another one
        sweeper: Any = Plugins.instance().class_name_to_class[config.hydra.sweeper._target_]
        sweeper.split_arguments = staticmethod(jobs)


def read_cells(path: str | Path) -> list[list[str]]:
    """Read the jobs of a sweep.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a list of lists of overrides.
    """
    cells = read_json(Path(path))
    if not isinstance(cells, list) or not all(
        isinstance(cell, list) and all(isinstance(each, str) for each in cell) for cell in cells
    ):
        raise ValueError(f"{path} must be a list of lists of overrides; mobilesamv2 benchmark writes it.")
    return cells
