"""Jobs of a sweep: one that fails is named at the end, and the others run."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from mobilesamv2.files import write_text_atomic
from mobilesamv2.recipes.errors import errors_without_traceback, keep_matplotlib_out_of_home
from mobilesamv2.recipes.overrides import job_errors
from mobilesamv2.recipes.sweep_cells import CALLBACK, read_cells

ERROR_FILE = "error.txt"
"""In the folder of a job that failed: why, a sentence."""


class JobFailedError(RuntimeError):
    """A job of a search failed; the sampler is told so."""


def run_job(run: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run a program, or a job of a sweep, and return what it returns.

    A user's mistake ends a program with one sentence. In a sweep it is written into the job's folder, for the list at
    the end, and the other jobs run; a search is told that the job failed.

    Raises:
        JobFailedError: if a job of a search failed.
    """
    keep_matplotlib_out_of_home()  # before anything imports it
    with job_errors():
        return _run_job(run, cfg)


def _run_job(run: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    from mobilesamv2.recipes.build import output_folder
    from mobilesamv2.recipes.checks import is_sweep

    if not is_sweep():
        with errors_without_traceback():
            return run(cfg)
    path = output_folder(cfg) / ERROR_FILE
    try:
        with errors_without_traceback():
            result = run(cfg)
    except SystemExit as error:
        if not isinstance(error.code, str):  # a signal, of which the program has said what is kept
            raise
        write_text_atomic(path, f"{error.code.removeprefix('error: ')}\n")
        print(error.code, file=sys.stderr, flush=True)
        if "BasicSweeper" in HydraConfig.get().sweeper._target_:
            return None
        raise JobFailedError(error.code) from None
    except Exception as error:
        write_text_atomic(path, f"{type(error).__name__}: {error}\n")
        raise
    path.unlink(missing_ok=True)
    return result


class NameFailedJobs(Callback):
    """Lists the jobs of a sweep that failed when it ends, and ends the program with status 1 if there are any."""

    def __init__(self) -> None:
        self._lost: dict[int, str] = {}

    @override
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if "submitit" in config.hydra.launcher._target_:
            _outlive_lost_jobs(self._lost, "BasicSweeper" in config.hydra.sweeper._target_)

    @override
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        failed = {str(path.parent): path.read_text().strip() for path in sorted(folder.rglob(ERROR_FILE))}
        failed |= {f"job {number}": sentence for number, sentence in self._lost.items()}
        if not failed:
            return
        jobs = _number_of_jobs(config, folder)
        print(f"\n{len(failed)} of {jobs} jobs failed:", file=sys.stderr)
        for name, sentence in failed.items():
            print(f"  {name}: {sentence}", file=sys.stderr)
        raise SystemExit(1)


def _number_of_jobs(config: DictConfig, folder: Path) -> int:
    file = OmegaConf.select(config, f"{CALLBACK}.file")
    if file is not None:  # of a benchmark, which has folders within folders, and other jobs' beside those of this sweep
        return len(read_cells(file))
    return len([path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")])


def _outlive_lost_jobs(lost: dict[int, str], is_sweep: bool) -> None:
    """Have a job of submitit that ends without a word, killed for its memory for example, count as one that failed.

    Hydra's launcher asks the jobs for their results in turn, and would end at the first that has none.

    Args:
        lost: filled with the numbers of these jobs in the sweep, and why.
        is_sweep: whether nobody reads the results; a search is told that the job failed.
    """
    from submitit import Job
    from submitit.core.utils import UncompletedJobError

    results, numbers = Job.results, itertools.count()

    def results_or_failure(self: Job[Any]) -> list[Any]:
        number = next(numbers)
        try:
            return results(self)
        except UncompletedJobError as error:
            lost[number] = f"{str(error).splitlines()[0].strip()}; its output is {self.paths.stderr}"
            status = JobStatus.COMPLETED if is_sweep else JobStatus.FAILED
            return [JobReturn(status=status, _return_value=None if is_sweep else JobFailedError(lost[number]))]

    Job.results = results_or_failure
