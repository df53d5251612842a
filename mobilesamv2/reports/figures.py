"""Figures of a sweep: AR against K, AR against time with its Pareto front, and one panel per setting of an ablation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from mobilesamv2.data.json_files import is_finite_number
from mobilesamv2.files import atomic_write
from mobilesamv2.reports.sweep import Run, distinguishing_settings


def write_figures(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write the figures that the runs have data for, as PNG, and return their paths.

    Args:
        runs: of ``load_runs``.
        folder: folder to write into.
    """
    written = [_save(_against_k(runs), folder / "ar_against_k.png")]
    if all(run.result["ms"] for run in runs):
        written.append(_save(_against_time(runs), folder / "ar_against_time.png"))
    settings = distinguishing_settings([run.differs for run in runs])
    if settings:
        written.append(_save(_small_multiples(runs, settings[:6]), folder / "ablation.png"))
    return written


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points on the Pareto front, in order of cost: no other is as cheap and has more value.

    Args:
        points: (cost, value) of each.
    """
    best, front = float("-inf"), []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            front.append(i)
    return front


def run_label(run: Run) -> str:
    """Return a run's label in a figure: its name, and its settings if there are at most two."""
    settings = ", ".join(f"{key.split('.')[-1]}={value}" for key, value in run.differs.items())
    return f"{run.name}: {settings}" if 0 < len(run.differs) <= 2 else run.name


def _against_k(runs: Sequence[Run]) -> Any:
    figure, axes = plt.subplots(figsize=(6, 4))
    for run in runs:
        ks = run.result["protocol"]["ks"]
        ar, low, high = _percent(run, [f"AR@{k}" for k in ks])
        line = axes.plot(ks, ar, marker="o", label=run_label(run))[0]
        axes.fill_between(ks, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xscale="log", xlabel="K", ylabel="mask AR@K (%), 95% interval", ylim=(0, None))
    axes.legend(fontsize=7)
    return figure


def _against_time(runs: Sequence[Run]) -> Any:
    # a model without prompts has no mask decoder
    stages = [stage for stage in ("mask_decoder", "total") if any(stage in run.result["ms"] for run in runs)]
    figure, panels = plt.subplots(1, len(stages), figsize=(5 * len(stages), 4), sharey=True, squeeze=False)
    for axes, stage in zip(panels[0], stages, strict=True):
        points = []
        for run in (run for run in runs if stage in run.result["ms"]):
            (ar,), (low,), (high,) = _percent(run, ["mAR"])
            ms = run.result["ms"][stage]
            points.append((ms, ar))
            axes.errorbar(ms, ar, yerr=_bars(ar, low, high), marker="o", capsize=2, label=run_label(run))
        front = [points[i] for i in pareto_front(points)]
        axes.plot(*zip(*front, strict=True), color="0.6", linestyle="--", zorder=0)
        axes.set(xscale="log", xlabel=f"{stage.replace('_', ' ')}, ms per image")
    panels[0][0].set(ylabel="mean mask AR (%), 95% interval")
    panels[0][-1].legend(fontsize=7)
    return figure


def _small_multiples(runs: Sequence[Run], settings: Sequence[str]) -> Any:
    """Draw one panel per setting: mean AR of all runs over its values."""
    figure, panels = plt.subplots(1, len(settings), figsize=(3 * len(settings), 3.2), sharey=True, squeeze=False)
    for axes, key in zip(panels[0], settings, strict=True):
        values = {str(run.differs[key]): run.differs[key] for run in runs}  # a value may be a list
        texts = sorted(values, key=lambda text: _number_or_text(values[text]))
        for run in runs:
            (ar,), (low,), (high,) = _percent(run, ["mAR"])
            position = texts.index(str(run.differs[key]))
            axes.errorbar(position, ar, yerr=_bars(ar, low, high), marker="o", capsize=2, color="C0")
        axes.set_xticks(range(len(texts)), [text[-18:] for text in texts], rotation=30, ha="right", fontsize=7)
        axes.set(xlabel=key)
    panels[0][0].set(ylabel="mean mask AR (%)")
    return figure


def _percent(run: Run, names: Sequence[str]) -> tuple[list[float], list[float], list[float]]:
    """Return values and interval ends in percent; NaN if there is none."""
    nan = float("nan")
    values = [nan if (v := run.result["metrics"][name]) is None else 100 * v for name in names]
    ends = [run.result["interval"][name] or (nan, nan) for name in names]
    return values, [100 * low for low, _ in ends], [100 * high for _, high in ends]


def _bars(ar: float, low: float, high: float) -> list[list[float]]:
    """Return the lengths of error bars; 0 on the side of an interval that does not reach the value."""
    return np.maximum([[ar - low], [high - ar]], 0.0).tolist()


def _number_or_text(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, bool) or is_finite_number(value)
    return (0, float(value), "") if number else (1, 0.0, str(value))


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
    plt.close(figure)
    return path
