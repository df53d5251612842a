"""The report of the claims: the paper's tables 2, 4 and 5, figures, pictures, and the outcome of each claim."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mobilesamv2.evaluation.results import percent, percent_range
from mobilesamv2.files import write_text_atomic
from mobilesamv2.reports.claims import Claim, ClaimRuns, demo_figures, evaluate_claims, select_runs
from mobilesamv2.reports.compare import ar_change
from mobilesamv2.reports.figures import CAPTIONS, Change, write_figures
from mobilesamv2.reports.page import Page, mask_panels, write_page
from mobilesamv2.reports.picture import result_panels, result_picture
from mobilesamv2.reports.stated import against_stated, read_demo_figures
from mobilesamv2.reports.sweep import Run, load_runs, stage_times
from mobilesamv2.reports.table import as_markdown


def claim_tables(runs: ClaimRuns) -> dict[str, list[list[str]]]:
    """Return the paper's tables 2, 4 and 5 in miniature, by their titles, as cells."""
    ks = runs.boxes.result["protocol"]["ks"]
    recalls = [*(f"AR@{k}" for k in ks), "mean AR [95%]"]
    timed = [*(run for run in runs.dense_apart if run is runs.dense), *runs.grids, runs.boxes]
    tables = {
        "Time of each stage, as MobileSAMv2's table 2": _time_table(runs, timed),
        "AR against K, as its table 4": _recall_table(runs, [*runs.grids, runs.boxes], recalls),
    }
    if runs.dense_apart:
        number = runs.dense.result["protocol"]["num_images"]
        title = f"AR against K of the densest grid, on the first {number} images"
        tables[title] = _recall_table(runs, runs.dense_apart, recalls)
    unit, times = stage_times([runs.boxes, runs.student])
    encoders = [["run", "model", "M parameters", "G MACs", f"encoder, {unit}", *recalls]]
    for run in (runs.boxes, runs.student):
        cost = run.result["run"]["encoder_cost"]
        sizes = [f"{cost['parameters'] / 1e6:.2f}", f"{cost['macs'] / 1e9:.3f}"]
        names = [runs.labels[run.name], run.result["run"]["model"]["name"]]
        encoders.append([*names, *sizes, f"{times[run.name]['image_encoder']:.1f}", *_recalls(run)])
    return tables | {"Image encoders prompted with boxes, as its table 5": encoders}


def _time_table(runs: ClaimRuns, shown: Sequence[Run]) -> list[list[str]]:
    """Return the prompts and the time of each stage of some evaluations, as cells."""
    unit, times = stage_times(shown)
    stages = ("mask_decoder", "postprocessing", "total")
    table = [["prompts of", "prompts", "masks per prompt", *(f"{stage.replace('_', ' ')}, {unit}" for stage in stages)]]
    for run in shown:
        protocol = run.result["protocol"]
        numbers = [f"{times[run.name][stage]:.0f}" for stage in stages]
        masks = "3" if protocol["multimask"] else "1"
        table.append([runs.labels[run.name], f"{protocol['mean_prompts_decoded']:.0f}", masks, *numbers])
    return table


def _recall_table(runs: ClaimRuns, shown: Sequence[Run], recalls: Sequence[str]) -> list[list[str]]:
    """Return AR for each K of some evaluations, and the number of masks, as cells."""
    table = [["prompts of", *recalls, "masks counted"]]
    for run in shown:
        proposals = f"{run.result['protocol']['mean_proposals']:.0f}"
        table.append([runs.labels[run.name], *_recalls(run), proposals])
    return table


def write_claims(
    folder: str | Path,
    teacher: str,
    student: str,
    dense_folder: str | Path | None = None,
    start_folder: str | Path | None = None,
    seed: int | None = None,
) -> tuple[ClaimRuns, list[Claim], dict[str, list[list[str]]]]:
    """Evaluate the claims on the evaluations of a folder; write ``report.md`` and ``report.html`` with figures into it.

    Args:
        folder: evaluations with ``task.save_masks=true``, of one data set.
        teacher: model name of the teacher.
        student: model name of the student.
        dense_folder: evaluations of the teacher by the 64 x 64 grid and by the boxes, on fewer images; None if
            ``folder`` has that grid.
        start_folder: an evaluation of the student before it learned, by the boxes, on the same images or the first of
            them; None if there is none.
        seed: of a demo, whose figures are set beside those of the documentation; None for other evaluations.

    Returns:
        The evaluations, the claims, and the tables as cells by their titles.

    Raises:
        FileNotFoundError: if there is no evaluation, or one has no saved masks.
        ValueError: if an evaluation is missing, or they are of different images.
    """
    folder = Path(folder)
    dense_runs, start_runs = ([] if other is None else load_runs(other) for other in (dense_folder, start_folder))
    runs = select_runs(load_runs(folder), teacher, student, dense_runs, start_runs)
    claims, tables, labels = evaluate_claims(runs), claim_tables(runs), runs.labels
    notes = dict.fromkeys(tables, NOTE)
    if seed is not None:
        tables |= against_stated(demo_figures(runs, seed), read_demo_figures())
    shown = picture_columns(runs)
    result_picture(shown).save(folder / "masks.png")
    figures = write_figures(runs.in_order, folder, labels, _changes(runs))
    protocol, num_objects = runs.boxes.result["protocol"], runs.boxes.result["n_gt"]["all"]
    page = Page(
        title="MobileSAMv2's claims in miniature",
        summary=f"{protocol['num_images']} images, {num_objects} objects, on {runs.boxes.result['run']['device']}. "
        f"Teacher: {teacher}. Student: {student}.",
        claims=claims,
        tables=tables,
        notes=notes,
        figures=figures,
        runs=[*runs.in_order, *runs.dense_apart],
        labels=labels,
        masks=mask_panels(*result_panels(shown)),
    )
    write_text_atomic(folder / "report.md", _markdown(page, [folder / "masks.png", *figures]))
    write_page(page, folder / "report.html")
    return runs, claims, tables


def picture_columns(runs: ClaimRuns) -> dict[str, Path]:
    """Return the folders whose masks are shown beside each other, by a title with the time of the mask decoder."""
    shown = (runs.best_grid, runs.boxes, runs.student)
    unit, times = stage_times(shown)
    return {f"{runs.labels[run.name]}\n{times[run.name]['mask_decoder']:.0f} {unit}": run.folder for run in shown}


NOTE = "Times are medians over images; AR in percent, with 95% intervals from a bootstrap over images."


def _changes(runs: ClaimRuns) -> list[Change]:
    """Return the differences that the claims are about: of the boxes from each grid, and of the student."""
    pairs = [*((grid, runs.boxes) for grid in runs.grids), (runs.boxes, runs.student)]
    if runs.dense_apart:
        pairs.insert(0, (runs.dense, runs.boxes_beside_dense))
    return [
        Change(f"{runs.labels[second.name]} minus {runs.labels[first.name]}", *ar_change(first.folder, second.folder))
        for first, second in pairs
    ]


def format_claims(claims: Sequence[Claim]) -> str:
    """Return two lines per claim: its outcome and text, and the measurement."""
    width = len("unresolved")
    return "\n".join(f"{c.outcome.upper():<{width}} {c.text}\n{'':<{width}} {c.measured}" for c in claims)


def _recalls(run: Run) -> list[str]:
    """Format AR for each K, and the mean with its interval."""
    metrics, interval = run.result["metrics"], run.result["interval"]
    values = [percent(metrics[f"AR@{k}"]) for k in run.result["protocol"]["ks"]]
    return [*values, f"{percent(metrics['mAR'])} {percent_range(interval['mAR'])}".rstrip()]


def _markdown(page: Page, pictures: Sequence[Path]) -> str:
    lines = [f"# {page.title}", "", page.summary, ""]
    lines += [f"- **{claim.outcome}**: {claim.text} {claim.measured}." for claim in page.claims]
    for title, cells in page.tables.items():
        lines += ["", f"## {title}", "", as_markdown(cells)]
    for path in pictures:
        lines += ["", f"![{CAPTIONS[path.stem]}]({path.name})"]
    return "\n".join(lines) + "\n"
