"""A sweep of evaluations in one report: which settings differ, the results, and which differences are significant."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mobilesamv2.evaluation.results import percent, percent_range
from mobilesamv2.files import atomic_write
from mobilesamv2.reports.compare import ar_change
from mobilesamv2.reports.result_files import read_result
from mobilesamv2.reports.table import check_comparable

OUTCOMES = {
    *("mean_prompts_decoded", "mean_proposals", "images_without_proposals", "interval", "num_images", "ks"),
    *("source", "silent"),
}
"""Keys of a protocol that are results, that all runs of a report share, or that only explain its name."""

SETTINGS = ("model", "detector", "encoder_cost", "dtype", "device", "seed", "commit")
"""Keys of a run's record that may distinguish it from another, beside its protocol."""


@dataclass(frozen=True)
class Run:
    """One evaluation of a sweep.

    Attributes:
        name: its folder, relative to the sweep's.
        folder: the folder of its results.json.
        result: the content of that file.
        differs: the settings that are not the same in all runs.
    """

    name: str
    folder: Path
    result: dict[str, Any]
    differs: dict[str, Any]


def load_runs(folder: str | Path) -> list[Run]:
    """Load every evaluation under a folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if two differ in images, objects, Ks or mask thresholds.
    """
    folder = Path(folder)
    files = sorted(folder.rglob("results.json"), key=_natural_key)
    if not files:
        raise FileNotFoundError(f"There is no results.json in {folder} or below; evaluate.py writes one per run.")
    results = {str(file.parent.relative_to(folder)): read_result(file) for file in files}
    check_comparable(results)
    settings = {name: dict(_settings(result)) for name, result in results.items()}
    keys = dict.fromkeys(key for values in settings.values() for key in values)
    differing = [key for key in keys if len({str(values.get(key)) for values in settings.values()}) > 1]
    return [
        Run(name, folder / name, result, {key: settings[name].get(key) for key in differing})
        for name, result in results.items()
    ]


def stage_times(runs: Sequence[Run]) -> tuple[str, dict[str, dict[str, float]]]:
    """Return the unit and the median times of each stage by run: of the processor, if all of them have it.

    Times on the clock grow where other programs run, and the ratio of two with them.

    Args:
        runs: of ``load_runs``; one in which no model ran has no times.
    """
    if all(run.result["cpu_ms"] for run in runs):
        return "ms of CPU time", {run.name: run.result["cpu_ms"] for run in runs}
    return "ms", {run.name: run.result["ms"] or {} for run in runs}


def failed_jobs(folder: str | Path) -> dict[str, str]:
    """Return the jobs of a sweep without a result: the command that runs each alone, by the name of its folder.

    The result of an evaluation is a results.json, that of a training run weights.

    Raises:
        ValueError: if a job's record can't be read.
    """
    failed = {}
    for file in sorted(Path(folder).rglob(".hydra/overrides.yaml"), key=_natural_key):
        job = file.parent.parent
        program, overrides = _read_record(file.parent)
        outputs = ("results.json",) if program == "evaluate" else ("*.safetensors", "detector.pt")
        if not any(next(job.glob(name), None) for name in outputs):
            overrides = [each for each in overrides if not each.startswith("output_dir=")]
            command = ["mobilesamv2", program, *overrides, f"output_dir={job}"]
            failed[str(job.relative_to(folder))] = shlex.join(command)
    return failed


def run_command(folder: Path) -> str | None:
    """Return the command that made a run, from its .hydra; None if it has none.

    Raises:
        ValueError: if the record can't be read.
    """
    if not (folder / ".hydra" / "overrides.yaml").is_file():
        return None
    program, overrides = _read_record(folder / ".hydra")
    return shlex.join(["mobilesamv2", program, *overrides])


def _read_record(folder: Path) -> tuple[str, list[str]]:
    """Return the program of a job, and its overrides, from its .hydra."""
    file = folder / "hydra.yaml"
    try:
        program = str(yaml.safe_load(file.read_bytes())["hydra"]["job"]["name"])
        file = folder / "overrides.yaml"
        return program, [str(each) for each in yaml.safe_load(file.read_bytes())]
    except (OSError, ValueError, RecursionError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{file}, the record of a job, can't be read: {error!r}. Delete its folder.") from error


def sweep_rows(runs: Sequence[Run], baseline: str | None = None) -> list[dict[str, Any]]:
    """Return a row per run: settings that differ, AR with intervals, prompts, ms, parameters and MACs, as plain values.

    Args:
        runs: of ``load_runs``.
        baseline: name of the run that the others are compared with, paired by image.

    Raises:
        ValueError: if there is no run of that name.
    """
    names = [run.name for run in runs]
    if baseline is not None and baseline not in names:
        raise ValueError(f"baseline must be one of the runs {', '.join(names)}, got {baseline}.")
    by_name = dict(zip(names, runs, strict=True))
    return [_row(run, None if baseline is None else by_name[baseline]) for run in runs]


def _row(run: Run, baseline: Run | None) -> dict[str, Any]:
    result = run.result
    row: dict[str, Any] = {"run": run.name, **run.differs}
    for name in (*(f"AR@{k}" for k in result["protocol"]["ks"]), "mAR"):
        interval = result["interval"][name] or (None, None)
        row |= {name: result["metrics"][name], f"{name} low": interval[0], f"{name} high": interval[1]}
    if baseline is not None:
        change = ar_change(baseline.folder, run.folder) if run is not baseline else (None, None, None)
        row |= dict(zip(("change", "change low", "change high"), change, strict=True))
    ms, cost = result["ms"] or {}, result["run"].get("encoder_cost") or {}
    return row | {
        "prompts": result["protocol"].get("mean_prompts_decoded"),
        **{f"{stage} ms": ms.get(stage) for stage in ("image_encoder", "mask_decoder", "total")},
        "encoder parameters": cost.get("parameters"),
        "encoder MACs": cost.get("macs"),
    }


def distinguishing_settings(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the settings that distinguish runs, without those that follow from an earlier one.

    A sampler's own settings, for example, follow from the sampler.

    Args:
        settings: those that differ, for each run, under the same names.
    """
    values = {key: [str(run[key]) for run in settings] for key in (settings[0] if settings else ())}
    kept: list[str] = []
    for key, column in values.items():
        pairs = (set(zip(values[earlier], column, strict=True)) for earlier in kept)
        follows = any(len(both) == len(set(values[earlier])) for both, earlier in zip(pairs, kept, strict=True))
        if not follows:
            kept.append(key)
    return kept


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as CSV, with fractions, ms and counts as they are; a value that a run does not have is empty."""
    with atomic_write(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def table_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the head and the rows of the formatted table: percent with intervals, ms, millions and billions."""
    first = rows[0]
    recalls = [name.removesuffix(" low") for name in first if name.endswith(" low") and name != "change low"]
    settings = distinguishing_settings(
        [{name: row[name] for name in list(first)[1 : list(first).index(recalls[0])]} for row in rows]
    )
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


def _settings(result: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings that may differ between runs, by dotted names; hashes add nothing to the files' names."""
    parts = {key: value for key, value in result["protocol"].items() if key not in OUTCOMES}
    parts |= {key: result["run"].get(key) for key in SETTINGS if key != "encoder_cost"}
    for key, value in parts.items():
        inner = value.items() if isinstance(value, dict) else ((None, value),)
        for name, leaf in inner:
            if "sha256" not in (name or key):
                yield (key if name is None else f"{key}.{name}"), leaf


def _natural_key(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts 10 after 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]


def _range(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name} low"], row[f"{name} high"]
    return "" if low is None else percent_range((low, high))


def _change(row: Mapping[str, Any]) -> str:
    """Format the change in percentage points, with a star if 0 is outside the interval."""
    low, high = row["change low"], row["change high"]
    star = "" if low <= 0 <= high else " *"
    return f"{100 * row['change']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]{star}"
