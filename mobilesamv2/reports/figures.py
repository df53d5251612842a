"""Figures of a sweep: AR against K and against time, paired differences, and AR over the one setting that varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mobilesamv2.data.json_files import is_finite_number
from mobilesamv2.reports.labels import run_labels, setting_name, setting_value
from mobilesamv2.reports.style import (
    COLUMN,
    PAGE,
    plain_number,
    run_style,
    set_log_ticks,
    set_ticks,
    wrapped,
    write_figure,
)
from mobilesamv2.reports.sweep import Run, distinguishing_settings, stage_times

MOST_RUNS = 15
"""Runs that a figure names; of more, those of the highest mean AR."""

CAPTIONS = {
    "masks": "The best mask of each object, where its IoU is .5 or more",
    "differences": "Paired differences of mean AR, with 95% intervals",
    "ar_against_k": "Mask AR@K of each run with its 95% interval; grey: the others",
    "ar_against_time": "Mean AR over K, with 95% intervals, against time; dashed: the Pareto front",
    "ablation": "Mean AR over K, with 95% intervals, over the one setting that varies",
}
"""What each figure shows, by the name of its file."""


class Change(NamedTuple):
    """A paired difference of mean AR, as fractions.

    Attributes:
        label: what minus what.
        change: the difference.
        low: lower end of its 95% interval.
        high: upper end.
    """

    label: str
    change: float
    low: float
    high: float


def write_figures(
    runs: Sequence[Run], folder: Path, labels: Mapping[str, str] | None = None, changes: Sequence[Change] = ()
) -> list[Path]:
    """Write the figures that the runs have data for, as PNG, PDF and SVG, and return the paths of the PNGs.

    Args:
        runs: of ``load_runs``.
        folder: folder to write into.
        labels: of the runs, by name; by default, the settings that distinguish them.
        changes: the differences that are claimed.

    Raises:
        OSError: if a file can't be written.
    """
    names = labels or run_labels(runs)
    written = []
    if changes:
        written.append(write_figure(lambda: draw_changes(changes), folder / "differences.png"))
    written.append(write_figure(lambda: draw_against_k(runs, names), folder / "ar_against_k.png"))
    if all(run.result["ms"] for run in runs):
        written.append(write_figure(lambda: draw_against_time(runs, names), folder / "ar_against_time.png"))
    settings = distinguishing_settings([run.differs for run in runs])
    if len(settings) == 1:
        written.append(write_figure(lambda: draw_ablation(runs, settings[0]), folder / "ablation.png"))
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


def draw_changes(changes: Sequence[Change]) -> Figure:
    """Draw paired differences, one a row, on both sides of 0."""
    texts = [wrapped(change.label, 44) for change in changes]
    lines = [text.count("\n") + 1 for text in texts]
    figure = Figure(figsize=(PAGE * 0.75, 0.7 + 0.17 * sum(lines) + 0.1 * len(lines)), layout="constrained")
    axes = figure.subplots()
    heights = np.cumsum([0.6 + n for n in lines]).tolist()
    for height, change in zip(heights, changes, strict=True):
        resolved = change.low > 0 or change.high < 0
        bars = 100 * _bars(change.change, change.low, change.high)
        style = {"color": run_style(0)[0], "markerfacecolor": None if resolved else "white"}
        axes.errorbar(100 * change.change, height, xerr=bars, marker="o", **style)
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_yticks(heights, texts)
    axes.set(ylim=(heights[-1] + 1.2, heights[0] - 1.2), xlabel="difference of mean AR, percentage points")
    axes.grid(visible=False, axis="y")
    return figure


def draw_against_k(runs: Sequence[Run], labels: Mapping[str, str]) -> Figure:
    """Draw one panel per run, so that their intervals do not cover each other; the other runs are grey."""
    shown = _best(runs)
    columns = len(shown) if len(shown) < 5 else 3 if len(shown) < 10 else 4
    rows = -(-len(shown) // columns)
    texts = [wrapped(labels[run.name], (44, 34, 29, 22)[columns - 1]) for run in shown]
    height = 1.35 + 0.13 * max(text.count("\n") for text in texts)
    width = min(PAGE, COLUMN + (columns - 1) * PAGE / 4)
    figure = Figure(figsize=(width, 0.5 + rows * height), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    ks = runs[0].result["protocol"]["ks"]
    for number, (axes, run, text) in enumerate(zip(panels[: len(shown)], shown, texts, strict=True)):
        for other in runs:
            axes.plot(ks, _percent(other, [f"AR@{k}" for k in ks])[0], color="0.8", linewidth=0.8)
        ar, low, high = _percent(run, [f"AR@{k}" for k in ks])
        colour, marker = run_style(number)
        axes.fill_between(ks, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(ks, ar, color=colour, marker=marker)
        axes.set(xscale="log", title=text)
        axes.set_xlim(min(ks) / 1.6, max(ks) * 1.6)
        set_ticks(axes.xaxis, _apart(ks, max(ks) / min(ks) * 2.56), plain_number)
    panels[0].set(ylim=(0, None))
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(shown) - columns) : len(shown)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("K, masks per image", fontsize="medium")
    figure.supylabel("mask AR@K (%)", fontsize="medium")
    return figure


def draw_against_time(runs: Sequence[Run], labels: Mapping[str, str]) -> Figure:
    """Draw mean AR against the time of the mask decoder and of all stages, with the names beside the panels."""
    # a model without prompts has no mask decoder
    unit, times = stage_times(runs)
    stages = [stage for stage in ("mask_decoder", "total") if any(stage in each for each in times.values())]
    shown = _best(runs)
    lines = sum(wrapped(labels[run.name], 30).count("\n") + 1 for run in shown)
    size = (PAGE if len(stages) > 1 else PAGE * 0.7, max(2.2, 0.4 + 0.17 * lines))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
    for axes, stage in zip(panels, stages, strict=True):
        _draw_stage(axes, {name: each[stage] for name, each in times.items() if stage in each}, runs, labels)
        axes.set(xlabel=f"{stage.replace('_', ' ')}, {unit} per image")
    panels[0].set(ylabel="mean AR over K (%)")
    handles = {text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper")
    return figure


def _draw_stage(axes: Axes, times: Mapping[str, float], runs: Sequence[Run], labels: Mapping[str, str]) -> None:
    """Draw mean AR against the times, ms by the names of the runs."""
    shown, points = _best(runs), []
    for run in (run for run in runs if run.name in times):
        (ar,), (low,), (high,) = _percent(run, ["mAR"])
        points.append((times[run.name], ar))
        if run in shown:
            colour, marker = run_style(shown.index(run))
            label = wrapped(labels[run.name], 30)
        else:
            colour, marker, label = "0.75", ".", None
        bars = _bars(ar, low, high)
        axes.errorbar(times[run.name], ar, yerr=bars, color=colour, marker=marker, linestyle="", label=label)
    front = [points[i] for i in pareto_front(points)]
    if front:
        axes.plot(*zip(*front, strict=True), color="0.5", linestyle="--", linewidth=0.9, zorder=0)
    if min(times.values()) > 0:  # 0 ms has no logarithm
        low, high = min(times.values()) / 1.3, max(times.values()) * 1.3
        axes.set(xscale="log", xlim=(low, high))
        set_log_ticks(axes.xaxis, low, high)
    else:
        axes.locator_params(axis="x", nbins=4)


def draw_ablation(runs: Sequence[Run], key: str) -> Figure:
    """Draw mean AR over the values of the one setting that distinguishes the runs: upwards for a few numbers."""
    ordered = sorted(runs, key=lambda run: _number_or_text(run.differs[key]))
    texts = [setting_value(run.differs[key]) for run in ordered]
    values = [_percent(run, ["mAR"]) for run in ordered]
    upright = all(_number_or_text(run.differs[key])[0] == 0 for run in ordered) and sum(map(len, texts)) <= 60
    wide = sum(len(text) + 2 for text in texts) > 30
    texts = texts if upright else [wrapped(text, 36) for text in texts]
    lines = sum(text.count("\n") + 1 for text in texts)
    size = (PAGE if wide else COLUMN, 2.2) if upright else (PAGE * 0.75, 0.7 + 0.17 * lines + 0.1 * len(texts))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    colour, marker = run_style(0)
    for place, ((ar,), (low,), (high,)) in enumerate(values):
        bars = _bars(ar, low, high)
        x, y = (place, ar) if upright else (ar, place)
        axes.errorbar(x, y, yerr=bars if upright else None, xerr=None if upright else bars, color=colour, marker=marker)
    name, measured = wrapped(setting_name(key), 30), "mean AR over K (%)"
    if upright:
        axes.plot([ar for (ar,), _, _ in values], color=colour)
        axes.set_xticks(range(len(texts)), texts)
        axes.set(xlabel=name, ylabel=measured)
    else:
        axes.set_yticks(range(len(texts)), texts)
        axes.set(ylabel=name, xlabel=measured, ylim=(len(texts) - 0.5, -0.5))
    return figure


def _best(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that a figure names, in their order."""
    ranked = sorted(runs, key=lambda run: -(run.result["metrics"]["mAR"] or 0.0))[:MOST_RUNS]
    return [run for run in runs if run in ranked]


def _apart(ks: Sequence[int], ratio: float) -> list[int]:
    """Return the Ks whose labels have room on a logarithmic axis, the last one always among them.

    Args:
        ks: the Ks, ascending or not.
        ratio: of the ends of the axis.
    """
    kept: list[int] = []
    for k in sorted(ks, reverse=True):
        if not kept or kept[-1] / k >= ratio**0.24:
            kept.append(k)
    return kept


def _percent(run: Run, names: Sequence[str]) -> tuple[list[float], list[float], list[float]]:
    """Return values and interval ends in percent; NaN if there is none."""
    nan = float("nan")
    values = [nan if (v := run.result["metrics"][name]) is None else 100 * v for name in names]
    ends = [run.result["interval"][name] or (nan, nan) for name in names]
    return values, [100 * low for low, _ in ends], [100 * high for _, high in ends]


def _bars(value: float, low: float, high: float) -> np.ndarray:
    """Return the lengths of error bars (2, 1); 0 on the side of an interval that does not reach the value."""
    return np.maximum([[value - low], [high - value]], 0.0)


def _number_or_text(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, bool) or is_finite_number(value)
    return (0, float(value), "") if number else (1, 0.0, str(value))
