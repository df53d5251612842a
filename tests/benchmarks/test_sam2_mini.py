"""The benchmark of a small SAM 2: the documentation shows what the file of its results holds."""

import re
import sys
from pathlib import Path

import pytest
from support import ROOT

from mobilesamv2.reports.table import as_markdown


def test_the_page_is_written_from_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import sam2_mini  # pyright: ignore[reportMissingImports]

    page, copy = ROOT / "docs" / "train.md", tmp_path / "train.md"
    assert as_markdown(sam2_mini.read_results()) in page.read_text()
    copy.write_text(re.sub(r"(?<=sam2_mini: begin -->\n).*(?=<!-- sam2_mini: end)", "", page.read_text(), flags=re.S))
    assert copy.read_text() != page.read_text()
    monkeypatch.setattr(sam2_mini, "PAGES", (copy,))
    monkeypatch.setattr(sys, "argv", ["sam2_mini.py", "--write-only"])
    sam2_mini.main()
    assert copy.read_text() == page.read_text()
