"""Names of runs that a reader of a figure understands, made from what distinguishes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from mobilesamv2.reports.sweep import Run, distinguishing_settings

SAMPLERS = {
    "ObjectAware": "boxes",
    "PromptHeadBoxes": "boxes of a prompt head",
    "GridProposals": "grid",
    "Grid": "grid with SAM's filters",
    "Hierarchical": "hierarchical grid",
}
"""What the prompts of a sampler are."""

MOST = 3
"""Settings that a name has at most."""

PLAIN = {"name", "encoder", "architecture", "prompt", "against"}
"""Last parts of settings whose value says what it is."""


def run_labels(runs: Sequence[Run]) -> dict[str, str]:
    """Return the label of each run by its name: the settings that distinguish it, or its folder if they are many.

    Args:
        runs: of ``load_runs``.
    """
    settings = named_settings(runs)
    if not settings:
        return {run.name: _folder(run.name) for run in runs}
    labels = {run.name: describe({key: run.differs[key] for key in settings}) or _folder(run.name) for run in runs}
    return unique(labels)


def named_settings(runs: Sequence[Run]) -> list[str]:
    """Return the settings that the labels of runs name; none where they are too many."""
    settings = distinguishing_settings([run.differs for run in runs])
    return settings if len(settings) <= MOST else []


def role_label(run: Run, roles: Mapping[str, str]) -> str:
    """Return the label of a run whose model has a role: ``boxes, teacher``.

    Args:
        run: of ``load_runs``.
        roles: by the name of the model.
    """
    protocol, model = run.result["protocol"], (run.result["run"].get("model") or {}).get("name")
    prompts = describe({key: protocol.get(key) for key in ("sampler", "points_per_side")})
    return f"{prompts}, {roles.get(str(model), str(model))}"


def describe(settings: Mapping[str, Any]) -> str:
    """Return settings in words, without those that a run does not have; the points of a grid stand beside it."""
    words = {key: _words(key, value) for key, value in settings.items() if value is not None}
    if {"sampler", "points_per_side"} <= words.keys():
        words["sampler"] += f" {words.pop('points_per_side')}"
    return ", ".join(words.values())


def setting_name(key: str) -> str:
    """Return the name of a setting in words."""
    part, _, last = key.rpartition(".")
    return (f"{part} {last}" if last in ("name", "checkpoint", "architecture") and part else last).replace("_", " ")


def setting_value(value: Any) -> str:
    """Return the value of a setting, short: numbers as they are, files without their folder."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(setting_value(each) for each in value)
    return PurePath(value).name if isinstance(value, str) and "/" in value else str(value)


def unique(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels with the name of the folder behind those that several runs share."""
    times = Counter(labels.values())
    return {name: label if times[label] == 1 else f"{label} ({_folder(name)})" for name, label in labels.items()}


def _folder(name: str) -> str:
    return f"run {name}" if name.isdigit() else "this run" if name == "." else name


def _words(key: str, value: Any) -> str:
    last = key.rpartition(".")[2]
    if key == "sampler":
        return SAMPLERS.get(str(value), str(value))
    if last == "points_per_side":
        return f"{value} x {value}"
    if isinstance(value, bool):
        return f"{'with' if value else 'without'} {setting_name(key)}"
    if last == "commit":
        return f"commit {str(value)[:7]}"
    return setting_value(value) if last in PLAIN else f"{setting_name(key)} {setting_value(value)}"
