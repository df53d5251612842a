"""Results as tables: Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from mobilesamv2.evaluation.results import percent, percent_range


def result_table(results: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table with one row per result: AR@K in percent, their mean with the 95% interval, prompts, ms.

    Args:
        results: by the name of their row.

    Raises:
        ValueError: if the results have different Ks or images.
    """
    check_comparable(results)
    first = next(iter(results.values()))
    ks = first["protocol"]["ks"]
    table = [["run", *(f"AR@{k}" for k in ks), "mean AR [95%]", "prompts", "decoder ms", "total ms"]]
    for name, result in results.items():
        metrics, ms = result["metrics"], result["ms"] or {}
        prompts = result["protocol"].get("mean_prompts_decoded")
        table.append(
            [
                name,
                *(percent(metrics[f"AR@{k}"]) for k in ks),
                f"{percent(metrics['mAR'])} {percent_range(result['interval']['mAR'])}".rstrip(),
                "-" if prompts is None else f"{prompts:.0f}",
                *(f"{ms[stage]:.0f}" if stage in ms else "-" for stage in ("mask_decoder", "total")),
            ]
        )
    num_images, num_objects = first["protocol"]["num_images"], first["n_gt"]["all"]
    note = f"{num_images} images, {num_objects} objects; AR in percent; ms is the median over images."
    return f"{as_markdown(table)}\n\n{note}"


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    """Return cells, the head first, as a Markdown table; a ``|`` in a cell becomes a ``/``."""
    return _tabulate([[cell.replace("|", "/") for cell in line] for line in table], "pipe")


def as_latex(table: Sequence[Sequence[str]]) -> str:
    """Return cells, the head first, as a LaTeX table, which needs the package booktabs."""
    return _tabulate(table, "latex_booktabs")


def check_comparable(results: dict[str, dict[str, Any]]) -> None:
    """Check that results can stand side by side.

    Raises:
        ValueError: if one has no AR@K, or other images, annotations or Ks than the first.
    """
    for name, result in results.items():
        if "ks" not in result["protocol"]:
            raise ValueError(
                f"{name} has no mask AR@K: it must be a result of task=evaluate_proposals or evaluate_fastsam."
            )
    for key in ("ks", "k_caps", "mask_threshold", "image_list_sha256", "annotations_sha256", "annotations"):
        values = {name: result["protocol"].get(key) for name, result in results.items()}
        first_name, first = next(iter(values.items()))
        moved = key == "annotations" and next(iter(results.values()))["protocol"].get("annotations_sha256") is not None
        for name, value in values.items():
            if value != first and not moved:
                place = f"{key} in its results.json"
                raise ValueError(f"{name} can't be compared with {first_name}: {place} must be {first}, got {value}.")


def _tabulate(table: Sequence[Sequence[str]], tablefmt: str) -> str:
    """Lay out cells, the first column left-aligned and the others right-aligned."""
    head, *rows = table
    alignment = ["left", *["right"] * (len(head) - 1)]
    return tabulate(rows, head, tablefmt=tablefmt, disable_numparse=True, colalign=alignment)
