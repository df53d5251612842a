"""Jobs of a sweep: one that fails is named at the end, and the others run."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from typing_extensions import override

from mobilesamv2.files import write_text_atomic
from mobilesamv2.recipes.command_line import show_whole_command
from mobilesamv2.recipes.errors import errors_without_traceback, keep_matplotlib_out_of_home
from mobilesamv2.recipes.overrides import job_errors
from mobilesamv2.recipes.searches import is_search, require_repeatable_search

ERROR_FILE = "error.txt"
"""In the folder of a job that failed: why, a sentence."""

RECORD_OF_SWEEP = "multirun.yaml"
"""In the folder of a sweep: Hydra's configuration of it, which Hydra's own sweeper writes before any job."""

log = logging.getLogger(__name__)


class JobFailure(NamedTuple):
    """Why a job of a sweep failed.

    Attributes:
        job: its folder, or its number where it left no word.
        sentence: the reason.
        was_refused: it failed before it changed anything in a folder that holds a run.
    """

    job: str
    sentence: str
    was_refused: bool = False


class JobFailedError(RuntimeError):
    """A job of a sweep failed; a search is told so."""

    def __init__(self, failure: JobFailure) -> None:
        super().__init__(failure)
        self.failure = failure

    @override
    def __str__(self) -> str:
        return self.failure.sentence


def run_job(run: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run a program, or a job of a sweep, and return what it returns.

    A user's mistake ends a program with one sentence. In a sweep this and any other error is written into the job's
    folder, unless that holds another run, and named at the end.

    Raises:
        JobFailedError: if a job of a sweep failed.
    """
    from mobilesamv2.recipes.checks import is_sweep

    show_whole_command()
    keep_matplotlib_out_of_home()  # before anything imports it
    with job_errors():
        if not is_sweep():
            with errors_without_traceback():
                return run(cfg)
        result = _run_job_of_sweep(run, cfg)
    if isinstance(result, JobFailure):
        raise JobFailedError(result)
    return result


def _run_job_of_sweep(run: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Return what a program returns, or why it failed."""
    from mobilesamv2.recipes.build import output_folder

    folder = output_folder(cfg)
    before = _run_in(folder)
    try:
        with errors_without_traceback():
            result = run(cfg)
    except SystemExit as error:
        if not isinstance(error.code, str):  # a signal, of which the program has said what is kept
            raise
        print(error.code, file=sys.stderr, flush=True)
        sentence = error.code.removeprefix("error: ")
    except Exception as error:
        log.exception("This job failed.")
        sentence = f"{type(error).__name__}: {error}{_where_the_log_is(folder)}"
    else:
        (folder / ERROR_FILE).unlink(missing_ok=True)
        return result
    was_refused = before is not None and _run_in(folder) == before
    if not was_refused:
        write_text_atomic(folder / ERROR_FILE, f"{sentence}\n")
    sweep = HydraConfig.get().sweep
    return JobFailure(str(Path(sweep.dir) / str(sweep.subdir)), sentence, was_refused)


def _run_in(folder: Path) -> tuple[int, ...] | None:
    """Return what changes when a run begins in a folder; None for a folder without a run."""
    names = [path.name for path in folder.iterdir() if path.suffix != ".log"] if folder.is_dir() else []
    if not set(names) - {ERROR_FILE}:
        return None
    record = folder / ".hydra" / "overrides.yaml"
    return (record.stat().st_ino, record.stat().st_mtime_ns) if record.is_file() else ()


def _where_the_log_is(folder: Path) -> str:
    """Return the end of a sentence: Hydra's log of the job, where it writes one."""
    path = folder / f"{HydraConfig.get().job.name}.log"
    return f" (traceback in {path})" if path.is_file() else ""


class NameFailedJobs(Callback):
    """Lists the jobs of a sweep that failed when it ends, and ends the program with status 1 if there are any.

    Hydra's own sweeper would end at the first of them. The sweeper and its launcher are changed in place, since Hydra
    takes those of packages of its own alone, until the sweep ends.
    """

    def __init__(self) -> None:
        self._failures: list[JobFailure] = []
        self._jobs = 0
        self._no_result = ""
        self._changes = ExitStack()

    @override
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            require_repeatable_search(config)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error
        if "submitit" in config.hydra.launcher._target_:
            self._outlive_lost_jobs()
        # Hydra loads the modules of its plugins anew, so that the class that an import gives is another one
        classes: Any = Plugins.instance().class_name_to_class
        self._collect_failures_of(classes[config.hydra.launcher._target_], is_search(config))
        self._end_well(classes[config.hydra.sweeper._target_], config)

    @override
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self._failures:
            print(f"\n{len(self._failures)} of {self._jobs} jobs failed:", file=sys.stderr)
        for failure in self._failures:
            print(f"  {failure.job}: {failure.sentence}", file=sys.stderr)
        if self._no_result:
            print(self._no_result, file=sys.stderr)
        if self._failures or self._no_result:
            raise SystemExit(1)

    def _collect_failures_of(self, launcher: Any, is_read: bool) -> None:
        """Have a launcher's jobs that failed count as done, after they are noted, unless a search reads them."""
        launch = launcher.launch

        def launch_and_note(
            instance: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
        ) -> Sequence[JobReturn]:
            returns = launch(instance, job_overrides, initial_job_idx=initial_job_idx)
            self._jobs += len(returns)
            for number, job in enumerate(returns, initial_job_idx):
                if job.status == JobStatus.FAILED:
                    self._failures.append(_failure_of(number, job._return_value))
                    if not is_read:
                        job.status, job.return_value = JobStatus.COMPLETED, None
            return returns

        self._change(launcher, "launch", launch_and_note)

    def _end_well(self, sweeper: Any, config: DictConfig) -> None:
        """Have a search without a result end in a sentence, and a sweep of which a job is refused change no record."""
        sweep = sweeper.sweep
        record = Path(config.hydra.sweep.dir) / RECORD_OF_SWEEP

        def sweep_and_end(instance: Any, arguments: list[str]) -> Any:
            of_before = record.read_text() if record.is_file() else None
            try:
                return sweep(instance, arguments)
            except JobFailedError:  # of a search, whose sweeper counts them
                rate = config.hydra.sweeper.max_failure_rate
                self._no_result = f"The search ended here, since hydra.sweeper.max_failure_rate is {rate}."
            except ValueError as error:
                if not is_search(config) or "No trials are completed" not in str(error):
                    raise
                self._no_result = "No trial has a value, so that the search has no result."
            finally:
                self._changes.close()
                is_another = not self._jobs or any(failure.was_refused for failure in self._failures)
                if of_before is not None and is_another and record.read_text() != of_before:
                    write_text_atomic(record, of_before)

        self._change(sweeper, "sweep", sweep_and_end)

    def _outlive_lost_jobs(self) -> None:
        """Have a job of submitit that ends without a word, killed for its memory for example, count as one that failed.

        So does one of several processes, of which any failed.

        Hydra's launcher asks the jobs for their results in turn, and would end at the first that has none.
        """
        from submitit import Job
        from submitit.core.utils import UncompletedJobError

        results, numbers = Job.results, itertools.count()

        def results_or_failure(job: Job[Any]) -> list[Any]:
            number = next(numbers)
            try:
                return sorted(
                    results(job), key=lambda process: process.status != JobStatus.FAILED
                )  # its first one counts
            except UncompletedJobError as error:
                sentence = f"{str(error).splitlines()[0].strip()}; its output is {job.paths.stderr}"
                failure = JobFailure(f"job {number}", sentence)
                return [JobReturn(status=JobStatus.FAILED, _return_value=JobFailedError(failure))]

        self._change(Job, "results", results_or_failure)

    def _change(self, plugin: Any, method: str, changed: Callable[..., Any]) -> None:
        """Change a method until the sweep ends."""
        self._changes.callback(setattr, plugin, method, getattr(plugin, method))
        setattr(plugin, method, changed)


def _failure_of(number: int, error: Any) -> JobFailure:
    """Return why a job failed, of the error that Hydra has of it."""
    if isinstance(error, JobFailedError):
        return error.failure
    return JobFailure(f"job {number}", f"{type(error).__name__}: {error}")
