"""The report of a sweep: one page, and its tables and figures beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilesamv2.files import write_text_atomic
from mobilesamv2.reports.figures import Change, write_figures
from mobilesamv2.reports.labels import named_settings, run_labels
from mobilesamv2.reports.page import Page, Panels, mask_panels, write_page
from mobilesamv2.reports.picture import result_panels
from mobilesamv2.reports.sweep import Run, failed_jobs, load_runs, sweep_rows, table_cells, write_csv
from mobilesamv2.reports.table import as_latex, as_markdown

TABLE = "Results"

MOST_MASKS = 6
"""Runs whose masks a page shows."""


@dataclass(frozen=True)
class SweepReport:
    """What was written.

    Attributes:
        cells: of the table, the head first.
        failed: the command of each job without a result, by the name of its folder.
        written: the files.
    """

    cells: list[list[str]]
    failed: dict[str, str]
    written: list[Path]


def write_sweep(folder: Path, output: Path, baseline: str | None = None) -> SweepReport:
    """Write the report of all evaluations below a folder.

    Args:
        folder: the sweep's, or any other.
        output: folder to write into.
        baseline: name of the run that the others are compared with, paired by image.

    Raises:
        FileNotFoundError: if there is no evaluation.
        ValueError: if two can't be compared, there is no baseline of that name, or the record of a job is damaged.
        OSError: if a file can't be written.
    """
    failed, runs = failed_jobs(folder), load_runs(folder)
    rows, labels = sweep_rows(runs, baseline), run_labels(runs)
    cells = table_cells(rows)
    output.mkdir(parents=True, exist_ok=True)
    write_csv(rows, output / "runs.csv")
    write_text_atomic(output / "table.md", as_markdown(cells) + "\n")
    write_text_atomic(output / "table.tex", as_latex(cells) + "\n")
    figures = write_figures(runs, output, labels, _changes(rows, labels, baseline))
    masks, reason = _masks(runs, labels)
    result = runs[0].result
    page = Page(
        title=f"Evaluations in {folder.resolve().name}",
        summary=f"{len(runs)} runs on {result['protocol']['num_images']} images with {result['n_gt']['all']} objects.",
        tables={TABLE: _labelled(cells, labels, named_settings(runs))},
        notes={TABLE: _note(baseline), "": reason},
        figures=figures,
        runs=runs,
        labels=labels,
        masks=masks,
        failed=failed,
    )
    write_page(page, output / "report.html")
    names = ("report.html", "runs.csv", "table.md", "table.tex")
    return SweepReport(cells, failed, [*(output / name for name in names), *figures])


def _labelled(cells: Sequence[Sequence[str]], labels: Mapping[str, str], named: Sequence[str]) -> list[list[str]]:
    """Return the cells with labels instead of names, without the settings that the labels name."""
    kept = [i for i, head in enumerate(cells[0]) if head not in named]
    rows = ([labels[row[0]], *row[1:]] for row in cells[1:])
    return [[row[i] for i in kept] for row in (cells[0], *rows)]


def _note(baseline: str | None) -> str:
    note = (
        "AR in percent, with 95% intervals from a bootstrap over images; times are medians over images, on the clock."
    )
    if baseline is None:
        return note
    return f"{note} The change is against {baseline}, paired by image, in percentage points; * where 0 is outside."


def _changes(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str], baseline: str | None) -> list[Change]:
    if baseline is None:
        return []
    against = labels[baseline]
    return [
        Change(f"{labels[row['run']]} minus {against}", row["change"], row["change low"], row["change high"])
        for row in rows
        if row["change"] is not None
    ]


def _masks(runs: Sequence[Run], labels: Mapping[str, str]) -> tuple[Panels | None, str]:
    """Return the masks of the first runs that kept some, or why there are none."""
    kept = [run for run in runs if (run.folder / "masks").is_dir()][:MOST_MASKS]
    if not kept:
        return None, "No masks are shown: task.save_masks=true keeps them."
    try:
        return mask_panels(*result_panels({labels[run.name]: run.folder for run in kept}, num_images=3)), ""
    except (OSError, ValueError) as error:
        return None, f"No masks are shown: {error}"
