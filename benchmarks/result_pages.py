"""What the documentation reads from files of results: texts between two comments of a page, written by a benchmark."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from mobilesamv2.files import write_text_atomic

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
