"""What is behind the numbers of a report: the command of each run, and the versions, weights and device it ran with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mobilesamv2.reports.sweep import Run, run_command


@dataclass(frozen=True)
class Provenance:
    """What is behind one run.

    Attributes:
        label: of the run.
        folder: where its results.json lies.
        command: that made it; None if it was not recorded.
        facts: versions, weights and the like in which it differs from the others, by name.
    """

    label: str
    folder: str
    command: str | None
    facts: dict[str, str]


def provenance(runs: Sequence[Run], labels: Mapping[str, str]) -> tuple[dict[str, str], list[Provenance]]:
    """Return the facts that all runs share, and what is behind each.

    Args:
        runs: of ``load_runs``.
        labels: of the runs, by name.

    Raises:
        ValueError: if the record of a command can't be read.
    """
    facts = {run.name: _facts(run.result) for run in runs}
    first = next(iter(facts.values()))
    shared = {key: value for key, value in first.items() if all(each.get(key) == value for each in facts.values())}
    return shared, [
        Provenance(
            labels[run.name],
            str(run.folder),
            run_command(run.folder),
            {key: value for key, value in facts[run.name].items() if key not in shared},
        )
        for run in runs
    ]


def _facts(result: Mapping[str, Any]) -> dict[str, str]:
    run, protocol = result["run"], result["protocol"]
    versions = run.get("versions")
    facts = {name: run.get(name) for name in ("commit", "device", "dtype", "seed")}
    if isinstance(versions, dict):
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    for name in ("model", "detector"):
        node = run.get(name)
        if isinstance(node, dict):
            what = node.get("name") or node.get("architecture") or name
            facts[name] = f"{what}, weights {_short(node.get('sha256'))}"
    facts["images"] = protocol.get("images")
    facts["annotations"] = protocol.get("annotations")
    return {name: str(value) for name, value in facts.items() if value is not None}


def _short(sha256: Any) -> str:
    """Return the first digits of one hash or of several."""
    hashes = sha256 if isinstance(sha256, list) else [sha256]
    return ", ".join(f"sha256 {str(each)[:12]}" for each in hashes if each) or "without a file"
