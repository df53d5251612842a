"""Run a benchmark: the cells that are not done, here or by a launcher of Hydra's, and its table at the end.

A cell that is done is not run again, one that was stopped resumes, and one that fails is named at the end.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from subprocess import Popen

from mobilesamv2.files import write_text_atomic
from mobilesamv2.recipes.benchmark_cells import Cell, config_arguments, images_done, is_done, waiting_cells
from mobilesamv2.recipes.folder_lock import locked
from mobilesamv2.recipes.processes import sigterm_raises, start, stop
from mobilesamv2.recipes.progress import job_bar
from mobilesamv2.recipes.sweep_cells import CALLBACK, SweepCells
from mobilesamv2.recipes.sweeps import ERROR_FILE

BAR = "{desc}: {n_fmt} of {total_fmt} cells|{bar}| {elapsed} elapsed{postfix}"

POLL_S = 0.2
"""Seconds between two looks at what runs."""


def describe_cells(cells: Sequence[Cell]) -> str:
    """Return a line for each cell with what is done of it, and below them the commands of those that are not done.

    Photos are not compared with those of a result, unlike where cells run.

    Raises:
        ValueError: as in ``is_done`` and ``images_done``.
    """
    done = {cell: is_done(cell, with_photos=False) for cell in cells}
    width = [max(len(getattr(cell, name)) for cell in cells) + 2 for name in ("model", "protocol")]
    lines = [f"{cell.model:<{width[0]}}{cell.protocol:<{width[1]}}{_state(cell, done[cell])}" for cell in cells]
    return "\n".join([*lines, "", *(cell.command for cell in cells if not done[cell])]).rstrip()


def _state(cell: Cell, done: bool) -> str:
    if done:
        return "done"
    images = images_done(cell)
    return f"{images} images are done" if images else "to do"


def run_benchmark(
    cells: Sequence[Cell], folder: Path, workers: int = 1, launcher: str | None = None, hydra: Sequence[str] = ()
) -> dict[str, str]:
    """Run the cells that are not done; return why cells failed, by their names.

    Args:
        cells: of ``benchmark_cells``.
        folder: of the benchmark; logs go to ``logs`` in it.
        workers: cells at a time, each a process of its own, without a launcher.
        launcher: of Hydra's, ``slurm`` for example, which gets all cells as one batch.
        hydra: overrides of the launcher.

    Raises:
        ValueError: if a folder holds another run, or another program runs this benchmark.
    """
    with locked(folder):
        waiting = waiting_cells(cells)
        run = _run_here(waiting, folder, workers) if launcher is None else _launch(waiting, folder, launcher, hydra)
        failed: dict[str, str] = {}
        with (
            sigterm_raises(),
            closing(run) as finished,
            job_bar(len(cells), "benchmark", BAR, initial=len(cells) - len(waiting)) as bar,
        ):
            for cell, reason in finished:
                name = f"{cell.model} {cell.protocol}"
                bar.update()
                bar.write(f"{name}: {'done' if reason is None else f'failed. {reason}'}", file=sys.stderr)
                if reason is not None:
                    failed[name] = reason
    return failed


def _run_here(cells: Sequence[Cell], folder: Path, workers: int) -> Generator[tuple[Cell, str | None]]:
    """Run cells in processes of their own; yield each as it ends, with why it failed."""
    waiting, running = list(cells), dict[Cell, Popen[bytes]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.pop(0)
                running[cell] = start(cell.arguments, _log(cell, folder))
            time.sleep(POLL_S)
            for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                code = running.pop(cell).returncode
                done = code == 0 and (cell.folder / "results.json").is_file()
                yield cell, None if done else _reason(code, _log(cell, folder))
    finally:
        stop(running.values())


def _launch(
    cells: Sequence[Cell], folder: Path, launcher: str, hydra: Sequence[str]
) -> Generator[tuple[Cell, str | None]]:
    """Run cells as one sweep by a launcher; yield those that have results as they come, and the others at its end."""
    if not cells:
        return
    jobs, log = folder / "cells.json", folder / "logs" / "launcher.log"
    subfolders = [f"hydra.sweep.subdir={cell.folder.relative_to(folder)}" for cell in cells]
    write_text_atomic(jobs, json.dumps([[*cell.overrides, sub] for cell, sub in zip(cells, subfolders, strict=True)]))
    for cell in cells:
        (cell.folder / ERROR_FILE).unlink(missing_ok=True)  # of an earlier sweep
    callback = [f"+{CALLBACK}._target_={SweepCells.__module__}.SweepCells", f"+{CALLBACK}.file={jobs}"]
    sweep = ["-m", f"hydra/launcher={launcher}", *callback, *hydra]
    process = start(["evaluate", *config_arguments(cells[0].config_dir), *sweep, f"output_dir={folder}"], log)
    waiting = list(cells)
    try:
        ended = False
        while waiting and not ended:
            time.sleep(POLL_S)
            ended = process.poll() is not None
            for cell in [cell for cell in waiting if (cell.folder / "results.json").is_file()]:
                waiting.remove(cell)
                yield cell, None
        process.wait()  # it has its own list of what failed
        for cell in waiting:
            error = cell.folder / ERROR_FILE
            yield cell, error.read_text().strip() if error.is_file() else _listed_reason(cell, process.returncode, log)
    finally:
        stop([process])


def _log(cell: Cell, folder: Path) -> Path:
    return folder / "logs" / cell.model / f"{cell.protocol}.log"


def _listed_reason(cell: Cell, code: int, log: Path) -> str:
    """Return why a job of a launcher failed, by the list that a sweep ends with: one refused has no file of its own."""
    begin = f"  {cell.folder}: "
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith(begin):
            return line.removeprefix(begin)
    return _reason(code, log)


def _reason(code: int, log: Path) -> str:
    """Return why a process failed: the last line of its log."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if code < 0:
        return f"It was ended by {signal.Signals(-code).name}; its log is {log}."
    return f"{lines[-1].removeprefix('error: ') if lines else f'It ended with status {code}.'} Its log is {log}."
