"""Figures: every text is legible, whatever the number of runs, and each is drawn where it says something."""

import hashlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from matplotlib import style
from support.texts import drawn_texts, faults

from mobilesamv2.reports.figures import (
    Change,
    draw_ablation,
    draw_against_k,
    draw_against_time,
    draw_changes,
    write_figures,
)
from mobilesamv2.reports.labels import describe, run_labels, setting_value
from mobilesamv2.reports.style import STYLE, plain_number, run_style, wrapped, write_figure
from mobilesamv2.reports.sweep import Run

LONG = "efficientvit_l2.r384_in1k_of_a_very_long_name_that_somebody_chose_for_a_backbone"


def runs_of(settings: list[dict[str, Any]], ks: tuple[int, ...] = (10, 100, 1000), first_ms: float = 37.0) -> list[Run]:
    """Runs of about the same AR, each slower than the one before."""
    runs = []
    for i, differs in enumerate(settings):
        names = [*(f"AR@{k}" for k in ks), "mAR"]
        metrics = {name: 0.3 + 0.01 * i + 0.02 * j for j, name in enumerate(names)}
        result = {
            "metrics": metrics,
            "interval": {name: [value - 0.04, value + 0.05] for name, value in metrics.items()},
            "ms": {"mask_decoder": first_ms * 1.7**i, "total": 2 * first_ms * 1.2**i},
            "cpu_ms": None,
            "protocol": {"ks": list(ks)},
        }
        runs.append(Run(str(i), Path(str(i)), result, differs))
    return runs


SWEEPS = {
    2: [{"model.name": name} for name in ("mobile_sam", LONG)],
    5: [
        {"sampler": "GridProposals", "points_per_side": 16, "model.name": "mini_conv"},
        {"sampler": "GridProposals", "points_per_side": 32, "model.name": "mini_conv"},
        {"sampler": "GridProposals", "points_per_side": 64, "model.name": "mini_conv"},
        {"sampler": "ObjectAware", "points_per_side": None, "model.name": "mini_conv"},
        {"sampler": "ObjectAware", "points_per_side": None, "model.name": "mini_conv_slim"},
    ],
    12: [{"max_prompts": 10 * 2**i, "detector.architecture": LONG[: 8 + 6 * i]} for i in range(12)],
    40: [{"seed": i, "model.name": f"{LONG}_{i % 7}", "snap": i % 3} for i in range(40)],
}


@pytest.mark.parametrize(
    ("number", "ks", "first_ms"),
    [
        (2, (1000,), 91234.0),
        (2, (10, 100, 1000), 37.0),
        (5, (10, 100, 1000), 37.0),
        (5, (1, 2, 3, 5, 8, 10, 30, 100, 300, 1000), 0.04),
        (12, (10, 100, 1000), 3.7),
        (40, (10, 1000), 0.04),
    ],
)
def test_no_text_lies_on_another(number: int, ks: tuple[int, ...], first_ms: float) -> None:
    runs = runs_of(SWEEPS[number], ks, first_ms)
    labels = run_labels(runs)
    changes = [
        Change(f"{labels[run.name]} minus {labels['0']}", 0.01 * i, 0.01 * i - 0.02, 0.01 * i + 0.02)
        for i, run in enumerate(runs)
    ]
    with style.context(STYLE):
        for figure in (draw_against_k(runs, labels), draw_against_time(runs, labels), draw_changes(changes[:15])):
            assert faults(figure) == []


@pytest.mark.parametrize("number", [2, 12])
@pytest.mark.parametrize("value", [lambda i: 10 * 2**i, lambda i: f"{LONG}_{i}", lambda i: i % 2 == 0])
def test_an_ablation_of_any_setting_is_legible(number: int, value: Any) -> None:
    runs = runs_of([{"task.some_long_setting_of_the_sampler": value(i)} for i in range(number)])
    with style.context(STYLE):
        figure = draw_ablation(runs, "task.some_long_setting_of_the_sampler")
        assert faults(figure) == []
        written = " ".join(text.get_text().replace("\n", " ") for text in drawn_texts(figure))
    assert "some long setting of the sampler" in written
    assert all(wrapped(setting_value(value(i)), 99)[:30] in written for i in range(number))


def test_an_overlap_would_be_found() -> None:
    runs = runs_of(SWEEPS[12])
    with style.context({"axes.titlesize": 14}):
        assert any("lies on" in fault for fault in faults(draw_against_k(runs, run_labels(runs))))


def test_figures_are_drawn_where_they_say_something(tmp_path: Path) -> None:
    def drawn(*runs: Run, **more: Any) -> list[str]:
        with patch("mobilesamv2.reports.figures.write_figure", lambda draw, path: path):
            return [path.name for path in write_figures(runs, tmp_path, **more)]

    both = ["ar_against_k.png", "ar_against_time.png"]
    assert drawn(*runs_of([{"points_per_side": 16 * i} for i in (1, 2)])) == [*both, "ablation.png"]
    assert drawn(*runs_of([{}])) == both
    change = Change("a minus b", 0.1, 0.0, 0.2)
    assert drawn(*runs_of(SWEEPS[5]), changes=[change]) == ["differences.png", *both]


def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    hashes = []
    for name in ("a", "b"):
        write_figure(lambda: draw_changes([Change("a minus b", 0.1, 0.0, 0.2)]), tmp_path / name / "differences.png")
        files = sorted((tmp_path / name).iterdir())
        hashes.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    assert hashes[0] == hashes[1]


def test_labels_are_words() -> None:
    labels = run_labels(runs_of(SWEEPS[5]))
    assert labels["0"] == "grid 16 x 16, mini_conv"
    assert labels["4"] == "boxes, mini_conv_slim"
    assert describe({"multimask": False, "nms_iou": 0.9, "model.checkpoint": "a/b.pt", "snap": None}) == (
        "without multimask, nms iou 0.9, model checkpoint b.pt"
    )
    alike = run_labels(runs_of([{"model.checkpoint": f"{folder}/b.pt"} for folder in "ac"]))
    assert list(alike.values()) == ["model checkpoint b.pt (run 0)", "model checkpoint b.pt (run 1)"]
    many = [{f"key{j}": (i >> j) % 2 for j in range(4)} for i in range(16)]
    assert run_labels(runs_of(many))["3"] == "run 3"


def test_runs_differ_in_colour_or_marker() -> None:
    with style.context(STYLE):
        assert len({run_style(i) for i in range(50)}) == 50


def test_numbers_are_written_out() -> None:
    assert [plain_number(x) for x in (0.5, 200, 1e4, 2e9)] == ["0.5", "200", "10,000", "2e+09"]
