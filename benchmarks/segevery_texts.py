"""The figures of ``segevery.py`` as the documentation states them."""

from __future__ import annotations

import csv
import textwrap
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from result_pages import RESULTS, ROOT, write_csv, write_pages

from mobilesamv2.reports.stated import LINE_WIDTH
from mobilesamv2.reports.table import as_markdown

SEGEVERY = RESULTS / "segevery.csv"
PAGES = README, GUIDE = ROOT / "README.md", ROOT / "docs" / "evaluate.md"


@dataclass(frozen=True)
class Measured:
    """One measurement of an image.

    Attributes:
        code: MobileSAM, MobileSAMv2 or ours.
        prompts: a grid, 32 x 32 for example, or a number of boxes.
        timed_prompts: from which the seconds of all are extrapolated; 0 if all were decoded.
        encoder: seconds.
        mask_decoder: seconds.
        rest: seconds.
        total: seconds from image to masks.
        peak_mib: MiB at most, beyond those of the loaded model.
        masks_iou: mean IoU of ours with the official masks of the same prompts; None where they are not compared.
        passing_share: share of some of the grid's prompts of which masks pass SAM's filters; None where not measured.
        height: of the image, pixels.
        width: of the image, pixels.
        threads: of torch.
    """

    code: str
    prompts: str
    timed_prompts: int
    encoder: float
    mask_decoder: float
    rest: float
    total: float
    peak_mib: float
    masks_iou: float | None
    passing_share: float | None
    height: int
    width: int
    threads: int


def write_measured(measured: list[Measured]) -> None:
    """Write the file of results, and README's and the guide's texts."""
    names = [field.name for field in fields(Measured)]
    rows = [["" if value is None else value for value in asdict(one).values()] for one in measured]
    write_csv(SEGEVERY, [names, *rows])
    write_pages(PAGES, texts(measured))


def read_measured(path: Path = SEGEVERY) -> list[Measured]:
    """Read the file of results."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Measured(
            row["code"], row["prompts"], int(row["timed_prompts"]),
            *(float(row[name]) for name in ("encoder", "mask_decoder", "rest", "total", "peak_mib")),
            *(float(row[name]) if row[name] else None for name in ("masks_iou", "passing_share")),
            *(int(row[name]) for name in ("height", "width", "threads")),
        )
        for row in rows
    ]  # fmt: skip


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return texts(read_measured())


def texts(measured: list[Measured]) -> dict[str, str]:
    """Return the texts of the documentation by their names; the first four measurements are the comparison."""
    official_grid, our_grid, official_boxes, our_boxes, few, dense = measured
    size = f"one image of {our_grid.height} x {our_grid.width} pixels"
    beside = (
        f"One machine, {our_grid.threads} threads on its CPU, {size}, one run of each: with the grid, ours takes "
        f"about 1/{_times(official_grid.total / our_grid.total)} of MobileSAM's time, with the boxes about "
        f"1/{_times(official_boxes.total / our_boxes.total)} of MobileSAMv2's."
    )
    fewer, faster = (official_grid.mask_decoder / one.mask_decoder for one in (official_boxes, our_boxes))
    code = official_boxes.mask_decoder / our_boxes.mask_decoder
    grids = [[one.mask_decoder / boxes.mask_decoder for boxes in (our_boxes, few)] for one in (dense, our_grid)]
    ratios = (
        f"One machine, {our_grid.threads} threads on its CPU, {size}, one run of each; the random weights let "
        f"{our_grid.passing_share:.0%} of the grid's prompts pass SAM's filters. The masks are the same (mean IoU "
        f"{our_grid.masks_iou:.4f} with the grid, {our_boxes.masks_iou:.5f} with the boxes). From MobileSAM's grid to "
        f"our {our_boxes.prompts} the mask decoder takes about {_times(faster)} times less, by these rounded seconds: "
        f"{_times(fewer)} times from boxes instead of the grid in the official code, and about {_times(code)} times "
        f"from faster code. Compared with our own grid of {dense.prompts}, which AR@K is measured with, "
        f"{our_boxes.prompts} take about {_times(grids[0][0])} times less and {few.prompts} about "
        f"{_times(grids[0][1])}; with our own {our_grid.prompts}, about {_times(grids[1][0])} and "
        f"{_times(grids[1][1])}."
    )
    return {
        "segevery": f"{_table(measured[:4])}\n\n{textwrap.fill(beside, LINE_WIDTH)}",
        "segevery_all": f"{_table(measured)}\n\n{textwrap.fill(ratios, LINE_WIDTH)}",
    }


def _table(measured: list[Measured]) -> str:
    rows = [["seconds", "encoder", "mask decoder", "rest", "total", "peak MiB, beyond the model"]]
    for one in measured:
        grid = "grid of " if " x " in one.prompts else ""
        extrapolated = f", extrapolated from {one.timed_prompts} of the prompts" if one.timed_prompts else ""
        seconds = [f"{value:.3g}" for value in (one.encoder, one.mask_decoder, one.rest, one.total)]
        rows.append([f"{one.code}, {grid}{one.prompts}{extrapolated}", *seconds, f"{one.peak_mib:.0f}"])
    return as_markdown(rows)


def _times(ratio: float) -> str:
    """Return a ratio of rounded seconds, with no digit that they do not bear."""
    return f"{ratio:.1f}" if ratio < 5 else f"{ratio:.0f}"
