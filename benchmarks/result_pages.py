"""What the documentation reads from files of results: texts between two comments of a page, written by a benchmark."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from mobilesamv2.files import write_text_atomic
from mobilesamv2.reports.stated import LINE_WIDTH

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")


def write_pages(pages: Sequence[Path], texts: Mapping[str, str]) -> None:
    """Write each text where a page has a place for it, ``<!-- NAME: begin -->`` to ``<!-- NAME: end -->``."""
    for page in pages:
        content = page.read_text()
        for name, text in texts.items():
            begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
            before, found, rest = content.partition(begin)
            if found:
                content = f"{before}{begin}{text}\n{end}{rest.partition(end)[2]}"
        write_text_atomic(page, content)


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Write cells."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path.parent.mkdir(exist_ok=True)
    write_text_atomic(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a row for each line but the first, which has the keys."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_figures(path: Path, figures: Mapping[str, float]) -> None:
    """Write numbers by name, a line for each, to six digits."""
    write_csv(path, [["figure", "value"], *([name, f"{value:.6g}"] for name, value in figures.items())])


def read_figures(path: Path) -> dict[str, float]:
    """Read what ``write_figures`` wrote."""
    return {row["figure"]: float(row["value"]) for row in read_csv(path)}


def paragraph(*sentences: str) -> str:
    """Return sentences as lines of a page."""
    return textwrap.fill(" ".join(sentences), LINE_WIDTH, break_long_words=False, break_on_hyphens=False)


def digits(value: float, number: int = 2) -> str:
    """Return a number of at least 0 rounded to so many digits: 0.67, 3.7, 11, 840."""
    if value <= 0:
        return "0"
    rounded = float(f"{value:.{number}g}")
    return f"{rounded:,.{max(0, number - 1 - math.floor(math.log10(rounded)))}f}"
