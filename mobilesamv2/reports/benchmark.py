"""The table of a benchmark: models, what each protocol measures, the published values beside it, and what it costs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from mobilesamv2.evaluation.results import percent, percent_range
from mobilesamv2.files import write_text_atomic
from mobilesamv2.metrics.clicks import SHOWN_CLICKS
from mobilesamv2.model_zoo import checkpoint_files, shipped_models
from mobilesamv2.reports.page import Page, write_page
from mobilesamv2.reports.published import Comparison, Published, comparisons
from mobilesamv2.reports.result_files import read_result
from mobilesamv2.reports.sweep import Run, write_csv
from mobilesamv2.reports.table import as_markdown

TITLE = "Models under protocols"

OF_ALL_OBJECTS = re.compile(r"mAR|AR@\d+|mB?IoU \w+|(mIoU|NoC)@[\d.]+|AP|(ar|recall)_\d+")
"""Names of metrics that a table shows; those by size and frequency are in the CSV file."""


@dataclass(frozen=True)
class CellResult:
    """A cell with its result.

    Attributes:
        model: name of the row.
        protocol: name of the columns.
        folder: of the evaluation.
        result: the content of its results.json.
    """

    model: str
    protocol: str
    folder: Path
    result: Mapping[str, Any]


def read_cells(cells: Iterable[tuple[str, str, Path]]) -> list[CellResult]:
    """Read the results of cells, given by model, protocol and folder; those without one are left out.

    Raises:
        ValueError: if a file is damaged, or two results of a protocol are of other images or annotations.
    """
    found = [
        CellResult(model, protocol, folder, read_result(folder))
        for model, protocol, folder in cells
        if (folder / "results.json").is_file()
    ]
    first: dict[str, CellResult] = {}
    for cell in found:
        other = first.setdefault(cell.protocol, cell)
        for key in ("image_list_sha256", "annotations_sha256"):
            values = [each.result["protocol"].get(key) for each in (other, cell)]
            if values[0] != values[1]:
                raise ValueError(
                    f"{cell.folder} can't stand beside {other.folder}: {key} in its results.json must be {values[0]}, "
                    f"got {values[1]}. Delete one of them, and repeat it."
                )
    return found


def write_benchmark(cells: Sequence[CellResult], published: Sequence[Published], output: Path) -> list[Path]:
    """Write every metric as ``cells.csv``, and the table as ``table.csv``, ``table.md`` and ``report.html``.

    Args:
        cells: of ``read_cells``, at least one.
        published: of ``read_published``.
        output: folder to write into.

    Raises:
        OSError: if a file can't be written.
    """
    table, notes = benchmark_table(cells, published), benchmark_notes(cells)
    write_csv([row for cell in cells for row in metric_rows(cell, published)], output / "cells.csv")
    write_csv([dict(zip(table[0], line, strict=True)) for line in table[1:]], output / "table.csv")
    write_text_atomic(output / "table.md", f"{as_markdown(table)}\n\n{notes}\n")
    runs = [Run(f"{cell.model}/{cell.protocol}", cell.folder, dict(cell.result), {}) for cell in cells]
    page = Page(
        title=TITLE,
        summary=f"{len({cell.model for cell in cells})} models, {len({cell.protocol for cell in cells})} protocols.",
        tables={"Results": table},
        notes={"Results": notes},
        figures=(),
        runs=runs,
        labels={run.name: run.name.replace("/", ", ") for run in runs},
    )
    write_page(page, output / "report.html")
    return [output / name for name in ("cells.csv", "table.csv", "table.md", "report.html")]


def metric_rows(cell: CellResult, published: Sequence[Published]) -> list[dict[str, Any]]:
    """Return a row for each metric of a cell, as plain values: fractions, numbers of clicks, ms, MiB."""
    result = cell.result
    run, protocol, ms = result["run"], result["protocol"], result["ms"] or {}
    cost, memory = run.get("encoder_cost") or {}, run.get("peak_memory") or {}
    rows = []
    for metric, value in result["metrics"].items():
        low, high = (result["interval"] or {}).get(metric) or (None, None)
        beside = _comparisons(cell, metric, published)
        rows.append(
            {
                "model": cell.model,
                "weights": weights_of(result),
                "protocol": cell.protocol,
                "metric": metric,
                "value": value,
                "low": low,
                "high": high,
                "published": "; ".join(map(str, beside)),
                "annotations": PurePath(str(protocol.get("annotations"))).name,
                "images": protocol.get("num_images"),
                "objects": result["n_gt"].get("all"),
                "encoder parameters": cost.get("parameters"),
                "encoder MACs": cost.get("macs"),
                "input side": cost.get("input_side"),
                "encoder ms": ms.get("image_encoder"),
                "total ms": ms.get("total"),
                "peak MiB": memory.get("mib"),
                "device": run.get("device"),
                "dtype": run.get("dtype"),
            }
        )
    return rows


def benchmark_table(cells: Sequence[CellResult], published: Sequence[Published]) -> list[list[str]]:
    """Return the head and the rows of the table: a row for each model on each device, the columns of each protocol."""
    rows = list(dict.fromkeys((cell.model, str(cell.result["run"].get("device"))) for cell in cells))
    metrics: dict[str, dict[str, None]] = {}
    for cell in cells:
        metrics.setdefault(cell.protocol, {}).update(dict.fromkeys(shown_metrics(cell.result)))
    columns = [(protocol, metric) for protocol, names in metrics.items() for metric in names]
    head = ["model", "weights", *(f"{protocol}: {metric}" for protocol, metric in columns)]
    head += ["M parameters", "G MACs", "input side", "encoder ms", *(f"{protocol}: ms" for protocol in metrics)]
    table = [[*head, "peak MiB", "device"]]
    for model, device in rows:
        own = {c.protocol: c for c in cells if (c.model, str(c.result["run"].get("device"))) == (model, device)}
        first = next(iter(own.values())).result
        line = [model, weights_of(first)]
        line += [_value(own[protocol], metric, published) if protocol in own else "-" for protocol, metric in columns]
        cost = first["run"].get("encoder_cost") or {}
        line += [_number(cost.get("parameters"), 1e6, 2), _number(cost.get("macs"), 1e9, 2)]
        line += [_number(cost.get("input_side")), _number((first["ms"] or {}).get("image_encoder"))]
        for protocol in metrics:
            line.append(_number(((own[protocol].result["ms"] or {}) if protocol in own else {}).get("total")))
        peaks = [(cell.result["run"].get("peak_memory") or {}).get("mib") for cell in own.values()]
        line.append(_number(max((peak for peak in peaks if peak is not None), default=None)))
        table.append([*line, device])
    return table


def benchmark_notes(cells: Sequence[CellResult]) -> str:
    """Return what the numbers of the table are, and which models have random weights."""
    facts = {}
    for cell in cells:
        record = cell.result["protocol"]
        images, objects = record.get("num_images"), cell.result["n_gt"].get("all")
        source = PurePath(str(record.get("annotations"))).name
        boxes = f", boxes of {PurePath(record['boxes']).name}" if record.get("boxes") else ""
        facts[cell.protocol] = f"{cell.protocol}: {images} images, {objects} objects of {source}{boxes}."
    memory = {str(each["of"]) for cell in cells if (each := cell.result["run"].get("peak_memory"))}
    notes = [
        "Metrics in percent, NoC in clicks, with 95% intervals from a bootstrap over images; behind them published "
        "values, whose they are, and whether they lie in the interval. Parameters and MACs are the image encoder's, at "
        "its input side; ms are medians over images on the clock.",
        *(f"Peak memory: {each}." for each in sorted(memory)),
        *facts.values(),
    ]
    random = sorted({cell.model for cell in cells if weights_of(cell.result) == RANDOM})
    if random:
        notes.append(f"With random weights, so that their metrics say nothing: {', '.join(random)}.")
    return " ".join(notes)


RANDOM = "random"


def weights_of(result: Mapping[str, Any]) -> str:
    """Return the weight files of a result's model, "random" if it has none."""
    model = result["run"].get("model") or {}
    files = [PurePath(file).name for file in checkpoint_files(model)]
    if not files:
        return RANDOM
    note = " (shipped miniature)" if model.get("name") in shipped_models() else ""
    return f"{', '.join(files)}{note}"


def shown_metrics(result: Mapping[str, Any]) -> list[str]:
    """Return the metrics of all objects that a table shows; all metrics of a kind that is not known."""
    names = [name for name in result["metrics"] if OF_ALL_OBJECTS.fullmatch(name)]
    few = [name for name in names if not name.startswith("mIoU@") or int(name.partition("@")[2]) in SHOWN_CLICKS]
    return few or list(result["metrics"])


def metric_text(name: str, value: float | None, interval: Sequence[float] | None) -> str:
    """Return a metric with its interval: clicks as they are, anything else in percent."""
    if name.startswith("NoC"):
        ends = "" if interval is None else f"[{interval[0]:.2f}, {interval[1]:.2f}]"
        return f"{'-' if value is None else f'{value:.2f}'} {ends}".rstrip()
    return f"{percent(value)} {percent_range(interval)}".rstrip()


def _value(cell: CellResult, metric: str, published: Sequence[Published]) -> str:
    result = cell.result
    text = metric_text(metric, result["metrics"].get(metric), (result["interval"] or {}).get(metric))
    return "; ".join([text, *map(str, _comparisons(cell, metric, published))])


def _comparisons(cell: CellResult, metric: str, published: Sequence[Published]) -> list[Comparison]:
    """Return the published values beside a metric; none for a result without the name of a protocol."""
    name = cell.result["protocol"].get("name")
    return [] if name is None else comparisons(cell.result, name, metric, published)


def _number(value: float | None, unit: float = 1, digits: int = 0) -> str:
    return "-" if value is None else f"{value / unit:.{digits}f}"
