"""A sweep of evaluations in one report: what differed, what it gave, and whether that is more than chance."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mobilesamv2.metrics.result_record import percent, percent_range
from mobilesamv2.reports.compare import mean_ar_change
from mobilesamv2.reports.table import check_alike, read_result
from mobilesamv2.whole_files import whole_file

OUTCOMES = {"mean_prompts_decoded", "mean_proposals", "images_without_proposals", "interval", "num_images", "ks"}
"""Keys of a protocol that say what came out, or that all runs of a report share."""

SETTINGS = ("model", "detector", "encoder_cost", "dtype", "device", "seed", "commit")
"""What of a run's record may tell it from another, beside its protocol."""


@dataclass(frozen=True)
class Run:
    """One evaluation of a sweep.

    Attributes:
        name: its folder under the sweep's, or what the user calls it.
        folder: where its results.json is.
        result: the content of that.
        differs: the settings that are not the same in all runs.
    """

    name: str
    folder: Path
    result: dict[str, Any]
    differs: dict[str, Any]


def gather(folder: str | Path) -> list[Run]:
    """Every evaluation under a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: two are of other images, objects, Ks or mask thresholds.
    """
    folder = Path(folder)
    files = sorted(folder.rglob("results.json"), key=_in_order)
    if not files:
        raise FileNotFoundError(f"There is no results.json in {folder} or below; evaluate.py writes one for each run.")
    results = {str(file.parent.relative_to(folder)): read_result(file) for file in files}
    check_alike(results)
    settings = {name: dict(_settings(result)) for name, result in results.items()}
    keys = dict.fromkeys(key for values in settings.values() for key in values)
    differing = [key for key in keys if len({str(values.get(key)) for values in settings.values()}) > 1]
    return [
        Run(name, folder / name, result, {key: settings[name].get(key) for key in differing})
        for name, result in results.items()
    ]


def failed_jobs(folder: str | Path) -> dict[str, str]:
    """Jobs of a sweep that Hydra started and that gave nothing: the command that runs each alone, by its folder's name.

    An evaluation gives a results.json, a training weights.
    """
    failed = {}
    for file in sorted(Path(folder).rglob(".hydra/overrides.yaml"), key=_in_order):
        job = file.parent.parent
        program = yaml.safe_load((file.parent / "hydra.yaml").read_text())["hydra"]["job"]["name"]
        gives = ("results.json",) if program == "evaluate" else ("*.safetensors", "detector.pt")
        if not any(next(job.glob(name), None) for name in gives):
            told = [str(o) for o in yaml.safe_load(file.read_text()) if not str(o).startswith("output_dir=")]
            failed[str(job.relative_to(folder))] = shlex.join(["python", f"{program}.py", *told, f"output_dir={job}"])
    return failed


def sweep_rows(runs: Sequence[Run], baseline: str | None = None) -> list[dict[str, Any]]:
    """A row for each run: what differed, AR with intervals, prompts, ms, parameters and MACs, as plain values.

    Args:
        runs: of ``gather``.
        baseline: name of the run that the others are compared with, in pairs of images.

    Raises:
        ValueError: there is no run of that name.
    """
    names = [run.name for run in runs]
    if baseline is not None and baseline not in names:
        raise ValueError(f"There is no run {baseline} to compare with; there are {', '.join(names)}.")
    by_name = dict(zip(names, runs, strict=True))
    return [_row(run, None if baseline is None else by_name[baseline]) for run in runs]


def _row(run: Run, baseline: Run | None) -> dict[str, Any]:
    """One row."""
    result = run.result
    row: dict[str, Any] = {"run": run.name, **run.differs}
    for name in (*(f"AR@{k}" for k in result["protocol"]["ks"]), "mAR"):
        interval = result["interval"][name] or (None, None)
        row |= {name: result["metrics"][name], f"{name} low": interval[0], f"{name} high": interval[1]}
    if baseline is not None:
        change = mean_ar_change(baseline.folder, run.folder) if run is not baseline else (None, None, None)
        row |= dict(zip(("change", "change low", "change high"), change, strict=True))
    ms, cost = result["ms"] or {}, result["run"].get("encoder_cost") or {}
    return row | {
        "prompts": result["protocol"].get("mean_prompts_decoded"),
        **{f"{stage} ms": ms.get(stage) for stage in ("image_encoder", "mask_decoder", "total")},
        "encoder parameters": cost.get("parameters"),
        "encoder MACs": cost.get("macs"),
    }


def telling(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that tell runs apart, without those that follow from one before: a sampler's own from the sampler.

    Args:
        settings: what differs, for each run, under the same names.
    """
    values = {key: [str(run[key]) for run in settings] for key in (settings[0] if settings else ())}
    kept: list[str] = []
    for key, own in values.items():
        pairs = (set(zip(values[earlier], own, strict=True)) for earlier in kept)
        follows = any(len(both) == len(set(values[earlier])) for both, earlier in zip(pairs, kept, strict=True))
        if not follows:
            kept.append(key)
    return kept


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Fractions, ms and counts as they are; what a run does not have stays empty."""
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Head and rows of the table for reading: percent with intervals, ms, millions and billions."""
    first = rows[0]
    recalls = [name.removesuffix(" low") for name in first if name.endswith(" low") and name != "change low"]
    settings = telling([{name: row[name] for name in list(first)[1 : list(first).index(recalls[0])]} for row in rows])
    head = ["run", *settings, *recalls[:-1], "mean AR [95%]"]
    head += ["change [95%]"] if "change" in first else []
    head += ["prompts", "encoder ms", "decoder ms", "total ms", "M parameters", "G MACs"]
    table = [head]
    for row in rows:
        line = [row["run"], *(str(row[name]) for name in settings), *(percent(row[name]) for name in recalls[:-1])]
        line.append(f"{percent(row['mAR'])} {_range(row, 'mAR')}".rstrip())
        if "change" in first:
            line.append("-" if row["change"] is None else _change(row))
        numbers = [row["prompts"], *(row[f"{stage} ms"] for stage in ("image_encoder", "mask_decoder", "total"))]
        line += ["-" if number is None else f"{number:.0f}" for number in numbers]
        for name, unit in (("encoder parameters", 1e6), ("encoder MACs", 1e9)):
            line.append("-" if row[name] is None else f"{row[name] / unit:.2f}")
        table.append(line)
    return table


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table."""
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def as_latex(table: Sequence[Sequence[str]]) -> str:
    """Cells as a LaTeX table, for the package booktabs."""
    escapes = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"})
    head, *rows = (" & ".join(cell.translate(escapes) for cell in line) + r" \\" for line in table)
    columns = "l" + "r" * (len(table[0]) - 1)
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(body)


def _settings(result: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What one run may differ in from another, by dotted names; hashes say no more than the files' names."""
    parts = {key: value for key, value in result["protocol"].items() if key not in OUTCOMES}
    parts |= {key: result["run"].get(key) for key in SETTINGS if key != "encoder_cost"}
    for key, value in parts.items():
        inner = value.items() if isinstance(value, dict) else ((None, value),)
        for name, leaf in inner:
            if "sha256" not in (name or key):
                yield (key if name is None else f"{key}.{name}"), leaf


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Sorts 10 after 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]


def _range(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name} low"], row[f"{name} high"]
    return "" if low is None else percent_range((low, high))


def _change(row: Mapping[str, Any]) -> str:
    """Points, with a star where 0 is outside the interval."""
    low, high = row["change low"], row["change high"]
    star = "" if low <= 0 <= high else " *"
    return f"{100 * row['change']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]{star}"
