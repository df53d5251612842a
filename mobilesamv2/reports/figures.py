"""Figures of a sweep: AR against K, AR against time with its front, and an ablation's settings one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from mobilesamv2.reports.sweep import Run, telling
from mobilesamv2.whole_files import whole_file


def write_figures(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Writes the figures that the runs have something for, as PNG, and returns their paths.

    Args:
        runs: of ``gather``.
        folder: where to.
    """
    written = [_save(_against_k(runs), folder / "ar_against_k.png")]
    if all(run.result["ms"] for run in runs):
        written.append(_save(_against_time(runs), folder / "ar_against_time.png"))
    settings = telling([run.differs for run in runs])
    if settings:
        written.append(_save(_small_multiples(runs, settings[:6]), folder / "ablation.png"))
    return written


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats, in order of cost: none is as cheap and gives more.

    Args:
        points: cost, and what it gives.
    """
    best, kept = float("-inf"), []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            kept.append(i)
    return kept


def label(run: Run) -> str:
    """What a figure calls a run: its name, and its settings if they are few."""
    settings = ", ".join(f"{key.split('.')[-1]}={value}" for key, value in run.differs.items())
    return f"{run.name}: {settings}" if 0 < len(run.differs) <= 2 else run.name


def _against_k(runs: Sequence[Run]) -> Any:
    figure, axes = plt.subplots(figsize=(6, 4))
    for run in runs:
        ks = run.result["protocol"]["ks"]
        ar, low, high = _percent(run, [f"AR@{k}" for k in ks])
        line = axes.plot(ks, ar, marker="o", label=label(run))[0]
        axes.fill_between(ks, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xscale="log", xlabel="K", ylabel="mask AR@K (%), 95% interval", ylim=(0, None))
    axes.legend(fontsize=7)
    return figure


def _against_time(runs: Sequence[Run]) -> Any:
    # masks without prompts have no decoder
    stages = [stage for stage in ("mask_decoder", "total") if any(stage in run.result["ms"] for run in runs)]
    figure, panels = plt.subplots(1, len(stages), figsize=(5 * len(stages), 4), sharey=True, squeeze=False)
    for axes, stage in zip(panels[0], stages, strict=True):
        points = []
        for run in (run for run in runs if stage in run.result["ms"]):
            (ar,), (low,), (high,) = _percent(run, ["mAR"])
            ms = run.result["ms"][stage]
            points.append((ms, ar))
            axes.errorbar(ms, ar, yerr=[[ar - low], [high - ar]], marker="o", capsize=2, label=label(run))
        best = [points[i] for i in front(points)]
        axes.plot(*zip(*best, strict=True), color="0.6", linestyle="--", zorder=0)
        axes.set(xscale="log", xlabel=f"{stage.replace('_', ' ')}, ms an image")
    panels[0][0].set(ylabel="mean mask AR (%), 95% interval")
    panels[0][-1].legend(fontsize=7)
    return figure


def _small_multiples(runs: Sequence[Run], settings: Sequence[str]) -> Any:
    """A panel for each setting: mean AR of all runs over its values."""
    figure, panels = plt.subplots(1, len(settings), figsize=(3 * len(settings), 3.2), sharey=True, squeeze=False)
    for axes, key in zip(panels[0], settings, strict=True):
        shown = {str(run.differs[key]): run.differs[key] for run in runs}  # a list is a value too
        values = sorted(shown, key=lambda text: _number_or_text(shown[text]))
        for run in runs:
            (ar,), (low,), (high,) = _percent(run, ["mAR"])
            place = values.index(str(run.differs[key]))
            axes.errorbar(place, ar, yerr=[[ar - low], [high - ar]], marker="o", capsize=2, color="C0")
        axes.set_xticks(range(len(values)), [value[-18:] for value in values], rotation=30, ha="right", fontsize=7)
        axes.set(xlabel=key)
    panels[0][0].set(ylabel="mean mask AR (%)")
    return figure


def _percent(run: Run, names: Sequence[str]) -> tuple[list[float], list[float], list[float]]:
    """Values and interval ends in percent; what has none is NaN."""
    nan = float("nan")
    values = [nan if (v := run.result["metrics"][name]) is None else 100 * v for name in names]
    ends = [run.result["interval"][name] or (nan, nan) for name in names]
    return values, [100 * low for low, _ in ends], [100 * high for _, high in ends]


def _number_or_text(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, int | float)
    return (0, float(value), "") if number else (1, 0.0, str(value))


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
    plt.close(figure)
    return path
