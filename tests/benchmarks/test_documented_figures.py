"""The documentation states what the files of results hold."""

import sys
from pathlib import Path

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import segevery_texts
from result_pages import write_pages


def test_the_speed_is_that_of_the_file() -> None:
    measured = segevery_texts.read_measured()
    texts = segevery_texts.texts(measured)
    for page, name in ((segevery_texts.README, "segevery"), (segevery_texts.GUIDE, "segevery_all")):
        assert f"<!-- {name}: begin -->\n{texts[name]}\n<!-- {name}: end -->" in page.read_text()
    for one in measured:
        assert abs(one.total - one.encoder - one.mask_decoder - one.rest) <= 0.5 + 0.01 * one.total
    official_grid, our_grid, official_boxes, our_boxes, *_ = measured
    assert official_grid.total > 4 * our_grid.total  # "a fraction", as README says
    assert official_boxes.total > 4 * our_boxes.total


def test_a_text_replaces_the_one_before(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x: begin -->\nold\nlines\n<!-- x: end -->\nb\n")
    write_pages([page], {"x": "new", "y": "elsewhere"})
    assert page.read_text() == "a\n<!-- x: begin -->\nnew\n<!-- x: end -->\nb\n"


def test_measurements_are_read_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = segevery_texts.read_measured()
    path = tmp_path / "results" / "segevery.csv"
    monkeypatch.setattr(segevery_texts, "SEGEVERY", path)
    monkeypatch.setattr(segevery_texts, "write_pages", lambda *_: None)
    segevery_texts.write_measured(measured)
    assert segevery_texts.read_measured(path) == measured
