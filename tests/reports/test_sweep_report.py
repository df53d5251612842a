"""The report of a sweep: what differed, intervals, significance, failed jobs, and figures."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.runs import write_run
from torch import nn

from mobilesamv2.cli.main import main
from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.models.cost import Cost, encoder_cost
from mobilesamv2.reports.compare import ar_change
from mobilesamv2.reports.figures import pareto_front
from mobilesamv2.reports.sweep import distinguishing_settings, load_runs
from mobilesamv2.reports.table import as_latex, as_markdown


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Runs 0, 2 and 10 of a sweep over two settings, and run 1, which failed."""
    main(["synthesize", str(tmp_path / "scenes"), "--scenes", "6", "--size", "64", "--workers", "0"])
    scenes = LvisDataset(tmp_path / "scenes" / "annotations.json", tmp_path / "scenes" / "images")
    folder = tmp_path / "sweep"
    for name, share, points in (("0", 0.3, 16), ("2", 0.9, 16), ("10", 0.9, 32)):
        write_run(scenes, folder / name, share, points_per_side=points, nms_iou=0.9)
        file = folder / name / "results.json"
        result = json.loads(file.read_text())
        result["ms"] = {"image_encoder": 4.0, "mask_decoder": 2.0 * points, "total": 3.0 * points}
        result["run"] |= {"model": {"name": "mini" if name == "0" else "mini_conv", "sha256": name}}
        result["run"] |= {"encoder_cost": {"parameters": 411904, "macs": 100173824}}
        file.write_text(json.dumps(result))
    hydra = folder / "1" / ".hydra"
    hydra.mkdir(parents=True)
    (hydra / "overrides.yaml").write_text("- dataset.size=[96,96]\n- output_dir=elsewhere\n")
    (hydra / "hydra.yaml").write_text("hydra:\n  job:\n    name: evaluate\n")
    return folder


def test_report(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main(["report", str(sweep), "--baseline", "0"])
    printed = capsys.readouterr().out
    assert (
        f"1 has no result. To run it alone: mobilesamv2 evaluate 'dataset.size=[96,96]' output_dir={sweep / '1'}"
        in printed
    )
    lines = [re.sub(" +", " ", line) for line in printed.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| run | points_per_side | model.name | AR@10 |")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 0", "| 2", "| 10"]
    assert "| 16 | mini |" in lines[2]
    assert "| 32 | mini_conv |" in lines[4]
    assert lines[4].endswith("| - | 4 | 64 | 96 | 0.41 | 0.10 |")

    with (sweep / "report" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    change, low, high = ar_change(sweep / "0", sweep / "2")
    assert rows[0]["change"] == ""
    assert float(rows[1]["change"]) == change == float(rows[1]["mAR"]) - float(rows[0]["mAR"]) > 0
    assert (float(rows[1]["change low"]), float(rows[1]["change high"])) == (low, high)
    assert 0 < low <= change <= high
    assert f"{100 * change:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] *" in lines[3]
    assert (sweep / "report" / "table.md").read_text().strip() in printed
    for name in ("differences", "ar_against_k", "ar_against_time"):
        with Image.open(sweep / "report" / f"{name}.png") as figure:
            assert min(figure.size) > 300
    page = (sweep / "report" / "report.html").read_text()
    assert "1 has no result. To run it alone:" in page
    assert ">16 x 16, mini</a>" in page
    assert page.count("data:image/png;base64,") == 3 * (2 + 3)  # three images, their objects, three runs
    assert "Its command was not recorded" in page


@pytest.mark.slow
def test_what_is_behind_the_numbers_is_on_the_page(sweep: Path) -> None:
    (sweep / "2" / ".hydra").mkdir()
    (sweep / "2" / ".hydra" / "overrides.yaml").write_text("- dataset.size=[96,96]\n")
    (sweep / "2" / ".hydra" / "hydra.yaml").write_text("hydra:\n  job:\n    name: evaluate\n")
    file = sweep / "10" / "results.json"
    result = json.loads(file.read_text())
    result["run"]["versions"] = {"torch": "2.9.1"}
    file.write_text(json.dumps(result))
    shutil.rmtree(sweep.parent / "scenes")
    main(["report", str(sweep)])
    page = (sweep / "report" / "report.html").read_text()
    assert "<pre>mobilesamv2 evaluate &#39;dataset.size=[96,96]&#39;</pre>" in page
    assert "<dt>versions</dt><dd>torch 2.9.1</dd>" in page
    assert "mini_conv, weights sha256 2" in page
    assert "No masks are shown: " in page


def test_runs_that_differ_in_nothing_or_have_no_times(sweep: Path, tmp_path: Path) -> None:
    (sweep / "10" / "results.json").unlink()
    (sweep / "2" / "results.json").unlink()
    main(["report", "sweep", str(sweep), "-o", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.html", "runs.csv", "table.md", "table.tex",
        *(f"{name}.{kind}" for name in ("ar_against_k", "ar_against_time") for kind in ("png", "pdf", "svg")),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), [("image_list_sha256", "c"), ("mask_threshold", 0.5), ("k_caps", "prompts"), ("ks", [10])]
)
def test_unlike_runs_are_not_mixed(sweep: Path, key: str, value: object) -> None:
    file = sweep / "10" / "results.json"
    result = json.loads(file.read_text())
    result["protocol"][key] = value
    file.write_text(json.dumps(result))
    with pytest.raises(SystemExit, match=f"error: 10 can't be compared with 0: {key} in its results.json must be"):
        main(["report", str(sweep)])


def test_errors(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: baseline must be one of the runs 0, 2, 10, got 7"):
        main(["report", str(sweep), "--baseline", "7"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"error: There is no results\.json in .*empty or below"):
        main(["report", str(tmp_path / "empty")])


def test_names_are_short_or_numbers_in_order(sweep: Path) -> None:
    assert [run.name for run in load_runs(sweep)] == ["0", "2", "10"]
    assert [run.differs["points_per_side"] for run in load_runs(sweep)] == [16, 16, 32]


def test_settings_may_be_lists(sweep: Path) -> None:
    """As the files of a model are, where its parts come from several."""
    for name, decoder in (("0", "a.pt"), ("2", "b.pt"), ("10", "a.pt")):
        file = sweep / name / "results.json"
        result = json.loads(file.read_text())
        result["run"]["model"]["checkpoint"] = ["l2.pt", decoder]
        file.write_text(json.dumps(result))
    main(["report", str(sweep)])
    assert "model checkpoint l2.pt, b.pt" in (sweep / "report" / "report.html").read_text()


def test_tables_escape_what_would_break_them() -> None:
    table = [["run", "50%"], ["a|b_c", "1"]]
    assert as_markdown(table).splitlines()[2].split() == ["|", "a/b_c", "|", "1", "|"]
    assert r"50\% \\" in as_latex(table)
    assert [r"a|b\_c", r"&", r"1", r"\\"] in [line.split() for line in as_latex(table).splitlines()]


def test_settings_that_follow_from_others_are_left_out() -> None:
    runs = [
        {"sampler": "Grid", "multimask": True, "points": 16, "model": "a"},
        {"sampler": "Grid", "multimask": True, "points": 32, "model": "a"},
        {"sampler": "Boxes", "multimask": False, "points": None, "model": "b"},
        {"sampler": "Boxes", "multimask": False, "points": None, "model": "a"},
    ]
    assert distinguishing_settings(runs) == ["sampler", "points", "model"]
    assert distinguishing_settings([]) == []


def test_pareto_front() -> None:
    assert pareto_front([(3, 5.0), (1, 1.0), (2, 4.0), (2, 3.0), (4, 5.0), (5, 6.0)]) == [1, 2, 0, 5]


def test_cost_is_counted_by_hand() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.linear = nn.Linear(4, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.linear(self.conv(images).permute(0, 2, 3, 1))

    assert encoder_cost(Two(), 8) == Cost(4 * 3 * 9 + 4 * 5 + 5, 64 * (4 * 3 * 9 + 4 * 5))
