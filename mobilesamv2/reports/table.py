"""Several evaluations in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilesamv2.data.coco import read_json
from mobilesamv2.metrics.result_record import percent, percent_range


def read_result(path: str | Path) -> dict[str, Any]:
    """The content of a ``results.json``, named itself or by its folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not one.
    """
    path = Path(path)
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"There is no result {file}; evaluate.py writes one into its output_dir.")
    result = read_json(file)
    if not isinstance(result, dict) or not {"metrics", "interval", "protocol"} <= result.keys():
        raise ValueError(f"{file} is not a result of evaluate.py: it has no metrics, interval and protocol.")
    return result


def result_table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table with a row for each result: AR@K in percent, its mean with the 95% interval, prompts, and ms.

    Args:
        results: by the name that its row is to have.

    Raises:
        ValueError: the results have other Ks, or are on other images.
    """
    check_alike(results)
    first = next(iter(results.values()))
    ks = first["protocol"]["ks"]
    head = ["run", *(f"AR@{k}" for k in ks), "mean AR [95%]", "prompts", "decoder ms", "total ms"]
    rows = [head, ["---"] * len(head)]
    for name, result in results.items():
        metrics, ms = result["metrics"], result["ms"] or {}
        prompts = result["protocol"].get("mean_prompts_decoded")
        rows.append(
            [
                name,
                *(percent(metrics[f"AR@{k}"]) for k in ks),
                f"{percent(metrics['mAR'])} {percent_range(result['interval']['mAR'])}".rstrip(),
                "-" if prompts is None else f"{prompts:.0f}",
                *(f"{ms[stage]:.0f}" if stage in ms else "-" for stage in ("mask_decoder", "total")),
            ]
        )
    widths = [max(len(row[c]) for row in rows) for c in range(len(head))]
    padded = (
        [cell.ljust(width, "-" if cell == "---" else " ") for cell, width in zip(r, widths, strict=True)] for r in rows
    )
    lines = [f"| {' | '.join(cells)} |" for cells in padded]
    num_images, num_objects = first["protocol"]["num_images"], first["n_gt"]["all"]
    return "\n".join(
        [*lines, "", f"{num_images} images, {num_objects} objects; AR in percent; ms is the median image's."]
    )


def check_alike(results: dict[str, dict[str, Any]]) -> None:
    """Nothing, if the results can stand side by side.

    Raises:
        ValueError: one is no result of proposals, or has other images, annotations or Ks than the first; the sentence
            names it.
    """
    for name, result in results.items():
        if "ks" not in result["protocol"]:
            raise ValueError(f"{name} is no result of task=evaluate_proposals or evaluate_prompt_free: it has no AR@K.")
    for key in ("ks", "k_caps", "mask_threshold", "image_list_sha256", "annotations_sha256", "annotations"):
        values = {name: result["protocol"].get(key) for name, result in results.items()}
        first_name, first = next(iter(values.items()))
        moved = key == "annotations" and next(iter(results.values()))["protocol"].get("annotations_sha256") is not None
        for name, value in values.items():
            if value != first and not moved:
                raise ValueError(f"{name} is not like {first_name}: its {key} is {value} instead of {first}.")
