"""The results that were submitted, kept as CSV in the repository, and the page that the documentation makes of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from mobilesamv2.files import atomic_write
from mobilesamv2.model_zoo import checkpoint_files
from mobilesamv2.reports.benchmark import metric_text, shown_metrics
from mobilesamv2.reports.published import Published, comparisons
from mobilesamv2.reports.table import as_markdown

COLUMNS: tuple[str, ...] = (
    "protocol", "annotations", "annotations_sha256", "images", "image_list_sha256", "objects", "model", "encoder",
    "weights", "weights_sha256", "inputs_sha256", "metric", "value", "low", "high", "published", "parameters", "macs",
    "input_side", "encoder_ms", "total_ms", "peak_mib", "device", "dtype", "seed", "mobilesamv2", "torch", "commit",
    "code_sha256", "by", "photos_sha256",
)  # fmt: skip
"""A line is a metric of a result; fractions, clicks, ms and MiB as they are. ``inputs_sha256`` is of what the model is
given beside the images: a detector's weights or boxes, or the weights of a teacher whose masks are the truth."""

LATER = ("photos_sha256",)
"""Columns, the last ones, that files of earlier versions lack; their lines have nothing there."""

OUTCOMES = ("value", "low", "high", "published", "encoder_ms", "total_ms", "peak_mib", "by")
"""Columns that do not tell one result from another."""

COMPARED = tuple(column for column in OUTCOMES if column != "by")
"""Outcomes in which a line must agree with the result that it is of; whoever checks it may be another person."""

INTRODUCTION = """# Leaderboard

Results that `mobilesamv2 benchmark submit` has checked ([how](benchmark.md#submit-a-result)), from
`benchmarks/results.csv`. Results stand beside each other where protocol, annotations and images are the same. Behind a
value is its 95% interval, and below it what others have published of the same weights and protocol. Milliseconds and
memory are of the device that is named.
"""


def result_rows(result: Mapping[str, Any], by: str, published: Sequence[Published]) -> list[dict[str, Any]]:
    """Return the lines of a result that was checked.

    Args:
        result: the content of its results.json.
        by: who made it.
        published: of ``read_published``.
    """
    run, protocol, ms = result["run"], result["protocol"], result["ms"] or {}
    model, cost, memory = run["model"], run["encoder_cost"], run.get("peak_memory") or {}
    shared = {
        "protocol": protocol["name"],
        "annotations": PurePath(protocol["annotations"]).name,
        "annotations_sha256": protocol["annotations_sha256"],
        "images": protocol["num_images"],
        "image_list_sha256": protocol["image_list_sha256"],
        "objects": result["n_gt"]["all"],
        "model": model["name"],
        "encoder": model["encoder"],
        "weights": " ".join(PurePath(file).name for file in checkpoint_files(model)),
        "weights_sha256": " ".join(model["sha256"]),
        "inputs_sha256": " ".join(_input_hashes(run, protocol)),
        "parameters": cost["parameters"],
        "macs": cost["macs"],
        "input_side": cost["input_side"],
        "encoder_ms": ms.get("image_encoder"),
        "total_ms": ms.get("total"),
        "peak_mib": memory.get("mib"),
        "mobilesamv2": run["versions"]["mobilesamv2"],
        "torch": run["versions"]["torch"],
        **{key: run[key] for key in ("device", "dtype", "seed", "commit", "code_sha256")},
        "by": by,
        "photos_sha256": run["photos_sha256"],
    }
    rows = []
    for metric in shown_metrics(result):
        low, high = (result["interval"] or {}).get(metric) or (None, None)
        beside = comparisons(result, protocol["name"], metric, published)
        own = {"metric": metric, "value": result["metrics"][metric], "low": low, "high": high}
        rows.append(shared | own | {"published": "; ".join(map(str, beside))})
    return rows


def _input_hashes(run: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[str]:
    networks = [run[name] for name in ("detector", "teacher") if run.get(name)]
    boxes = [protocol["boxes_sha256"]] if protocol.get("boxes_sha256") else []
    return [*(sha256 for network in networks for sha256 in network["sha256"]), *boxes]


def read_results_file(path: Path) -> list[dict[str, str]]:
    """Read the results file; no lines if it is not there yet.

    Raises:
        ValueError: if it has other columns.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) not in (COLUMNS, COLUMNS[: -len(LATER)]):
            raise ValueError(f"{path} must have the columns {', '.join(COLUMNS)}, got {reader.fieldnames}.")
        rows = [dict.fromkeys(set(LATER) - set(reader.fieldnames or ()), "") | row for row in reader]
    if any(None in row or None in row.values() for row in rows):
        raise ValueError(f"{path} has a line of more or fewer values than columns.")
    return rows


def add_results(results: Sequence[Sequence[Mapping[str, Any]]], path: Path, dry_run: bool = False) -> list[bool]:
    """Add the lines of results to the results file, all or none; return of each whether it was not there before.

    Args:
        results: of each the lines, of ``result_rows``.
        path: the results file.
        dry_run: compare alone, and write nothing.

    Raises:
        ValueError: if the file has other columns, or another outcome of one of the results.
        OSError: if it can't be written.
    """
    lines = read_results_file(path)
    added = []
    for rows in results:
        new = _new_lines(rows, lines, path)
        lines += new
        added.append(bool(new))
    if any(added) and not dry_run:
        with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    return added


def _new_lines(
    rows: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, str]], path: Path
) -> list[dict[str, str]]:
    """Return the lines of a result that are not there before, whose own must all say what it says."""
    lines = [{column: "" if row[column] is None else str(row[column]) for column in COLUMNS} for row in rows]
    own, known = {_key(line): line for line in lines}, {_key(line) for line in before}
    settings = {_key(line, "metric") for line in lines}
    for line in before:
        if _key(line, "metric") not in settings:
            continue
        here = own.get(_key(line), dict.fromkeys(COMPARED, "absent"))
        column = next((column for column in COMPARED if line[column] != here[column]), None)
        if column is not None:
            raise ValueError(
                f"{path} has another outcome of this result of {line['model']} under {line['protocol']}: {column} of "
                f"{line['metric']} is {line[column] or 'empty'} there and {here[column] or 'empty'} here. Nothing was "
                "added. Find out which of the two is right; if it is this one, delete the lines that are there."
            )
    return [line for line in lines if _key(line) not in known]


def _key(row: Mapping[str, str], *without: str) -> tuple[str, ...]:
    return tuple(row[column] for column in COLUMNS if column not in (*OUTCOMES, *without))


def leaderboard_page(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the page of the documentation, as Markdown: a section for each protocol and its images."""
    if not rows:
        return f"{INTRODUCTION}\nNobody has submitted a result so far.\n"
    sections: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        of_data = ("annotations", "annotations_sha256", "image_list_sha256", "photos_sha256")
        key = tuple(row[name] for name in ("protocol", *of_data))
        sections.setdefault(key, []).append(row)
    parts = [INTRODUCTION]
    for _, lines in sorted(sections.items()):
        first = lines[0]
        parts.append(
            f"## {first['protocol']}, {first['annotations']}, {first['images']} images\n\n{first['objects']} objects. "
            f"SHA-256 of the annotations `{first['annotations_sha256'][:12]}`, of the list of images "
            f"`{first['image_list_sha256'][:12]}`, of the photos "
            f"{_hash(first['photos_sha256'])}.\n\n{as_markdown(_table(lines))}\n"
        )
    return "\n".join(parts)


def _table(lines: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Return a row for each result, the best of the first metric first, and a column for each metric."""
    metrics = list(dict.fromkeys(line["metric"] for line in lines))
    results: dict[tuple[str, ...], dict[str, Mapping[str, str]]] = {}
    for line in lines:
        results.setdefault(_key(line, "metric"), {})[line["metric"]] = line
    head = [
        "model",
        "weights",
        "detector or teacher",
        *metrics,
        "M parameters",
        "G MACs (input side)",
        "ms",
        "peak MiB",
        "device",
        "made by",
    ]
    table = []
    for own in sorted(
        results.values(), key=lambda one: -float(one[metrics[0]]["value"] or 0) if metrics[0] in one else 0
    ):
        first = next(iter(own.values()))
        table.append(
            [
                first["model"],
                f"{first['weights']} `{first['weights_sha256'][:12]}`",
                _hash(first["inputs_sha256"]),
                *(_cell(own[metric]) if metric in own else "-" for metric in metrics),
                f"{float(first['parameters']) / 1e6:.2f}",
                f"{float(first['macs']) / 1e9:.1f} ({first['input_side']})",
                f"{float(first['total_ms']):.0f}" if first["total_ms"] else "-",
                f"{float(first['peak_mib']):.0f}" if first["peak_mib"] else "-",
                f"{first['device']}, {first['dtype']}",
                f"{first['by']}, {first['mobilesamv2']} at `{first['commit'][:7] or first['code_sha256'][:7]}`",
            ]
        )
    return [head, *table]


def _hash(sha256: str) -> str:
    return f"`{sha256[:12]}`" if sha256 else "-"


def _cell(line: Mapping[str, str]) -> str:
    interval = [float(line["low"]), float(line["high"])] if line["low"] else None
    text = metric_text(line["metric"], float(line["value"]) if line["value"] else None, interval)
    return f"{text}<br>{line['published']}" if line["published"] else text
