"""What every evaluation writes: results.json, and the counts of each image in per_image.npz."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilesamv2.metrics.average_recall import RESAMPLES
from mobilesamv2.metrics.result_shards import ImageResult
from mobilesamv2.metrics.stage_time import summarize
from mobilesamv2.whole_files import whole_file

Results = dict[str, Any]


def result_record(
    metrics: Mapping[str, float | None],
    interval: Mapping[str, list[float] | None] | None,
    n_gt: Mapping[str, int],
    protocol: Mapping[str, Any],
    run: Mapping[str, Any],
    seed: int,
    images: Sequence[ImageResult] | None,
) -> Results:
    """Everything that a result must carry, as plain values.

    Args:
        metrics: by name, fractions.
        interval: [low, high] under the same names; None where there are none.
        n_gt: objects in each group.
        protocol: how the masks were made and are counted.
        run: versions, commit, device and the like.
        seed: of the bootstrap.
        images: the times and prompts of each; None where no model ran.
    """
    ms = summarize([image.ms for image in images or () if image.ms])
    prompts = [image.num_prompts for image in images or ()]
    bootstrap = {"method": "bootstrap over images, 95% percentile", "resamples": RESAMPLES, "seed": seed}
    return {
        "metrics": dict(metrics),
        "interval": None if interval is None else dict(interval),
        "n_gt": dict(n_gt),
        "ms": None if images is None else {stage: summary["median"] for stage, summary in ms.items()},
        "ms_p10_p90": None if images is None else {stage: [s["p10"], s["p90"]] for stage, s in ms.items()},
        "protocol": {
            "mean_prompts_decoded": float(np.mean(prompts)) if prompts else None,
            "interval": None if interval is None else bootstrap,
            **protocol,
        },
        "run": dict(run),
    }


def write_record(results: Results, folder: Path, **per_image: np.ndarray) -> list[Path]:
    """Writes ``results.json`` and ``per_image.npz``, and returns their paths."""
    paths = [folder / "results.json", folder / "per_image.npz"]
    with whole_file(paths[1]) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **per_image)  # pyright: ignore
    with whole_file(paths[0]) as partial:
        partial.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    return paths


def time_lines(results: Results, width: int = 18) -> list[str]:
    """Lines of a table: the median time of each stage and its spread; none where no model ran."""
    if not results["ms"]:
        return []
    lines = ["", "ms an image".ljust(width) + "median".rjust(10) + "10% to 90%".rjust(22)]
    for stage, median in results["ms"].items():
        low, high = results["ms_p10_p90"][stage]
        lines.append(stage.ljust(width) + f"{median:.1f}".rjust(10) + f"{low:.1f} to {high:.1f}".rjust(22))
    run, prompts = results["run"], results["protocol"]["mean_prompts_decoded"]
    return [*lines, f"on {run['device']}, {run['dtype']}; {prompts:.1f} prompts an image"]


def percent(value: float | None) -> str:
    """A fraction in percent; a dash for none."""
    return "-" if value is None else f"{100 * value:.1f}"


def percent_range(bounds: Sequence[float] | None) -> str:
    """An interval of fractions in percent; nothing for none."""
    return "" if bounds is None else f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"
