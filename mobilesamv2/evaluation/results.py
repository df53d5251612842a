"""What every evaluation writes: results.json, and the counts of each image in per_image.npz."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilesamv2.data.json_files import read_json
from mobilesamv2.evaluation.shards import ImageResult
from mobilesamv2.files import atomic_write
from mobilesamv2.metrics.bootstrap import RESAMPLES
from mobilesamv2.metrics.mask_metric import MaskMetric, bootstrap_metrics
from mobilesamv2.metrics.stage_time import summarize

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
    """Return everything that a result must carry, as plain values.

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
    cpu_ms = summarize([image.cpu_ms for image in images or () if image.cpu_ms])
    prompts = [image.num_prompts for image in images or ()]
    bootstrap = {"method": "bootstrap over images, 95% percentile", "resamples": RESAMPLES, "seed": seed}
    return {
        "metrics": dict(metrics),
        "interval": None if interval is None else dict(interval),
        "n_gt": dict(n_gt),
        "ms": None if images is None else {stage: summary["median"] for stage, summary in ms.items()},
        "ms_p10_p90": None if images is None else {stage: [s["p10"], s["p90"]] for stage, s in ms.items()},
        # processor time over all threads, where no device computed
        "cpu_ms": {stage: summary["median"] for stage, summary in cpu_ms.items()} or None,
        "protocol": {
            "mean_prompts_decoded": float(np.mean(prompts)) if prompts else None,
            "interval": None if interval is None else bootstrap,
            **protocol,
        },
        "run": dict(run),
    }


def mask_metric_record(
    metric: MaskMetric,
    image_ids: Sequence[int],
    values: Mapping[str, np.ndarray],
    seed: int,
    protocol: Mapping[str, Any],
    run: Mapping[str, Any],
    images: Sequence[ImageResult] | None,
) -> tuple[Results, dict[str, np.ndarray]]:
    """Return the record of a metric of masks, and what per_image.npz holds.

    Args:
        metric: that measured the values.
        image_ids: of the images, ascending.
        values: (images, ...) by name, ``n_gt`` (images, groups) among them, and where the metric counts proposals
            ``detections`` (images, 2), proposed and counted.
        seed: of the bootstrap.
        protocol: how the masks were made.
        run: versions, commit, device and the like.
        images: times and prompts of each; None where no model ran.
    """
    sums = {name: each.sum(0) for name, each in values.items()}
    counted = values["detections"][:, 1] if "detections" in values else None
    facts: dict[str, Any] = {"num_images": len(image_ids)} | metric.settings
    if counted is not None:
        facts["mean_proposals"] = float(counted.mean())
        facts["images_without_proposals"] = int((counted == 0).sum())
    results = result_record(
        metric.summarize(sums),
        bootstrap_metrics(metric, values, seed),
        dict(zip(metric.groups, sums["n_gt"].tolist(), strict=True)),
        facts | dict(protocol),
        run,
        seed,
        images,
    )
    return results, {"image_ids": np.array(image_ids, dtype=np.int64)} | metric.per_image(values)


def stack_values(images: Sequence[ImageResult]) -> dict[str, np.ndarray]:
    """Return (images, ...) arrays by name."""
    return {name: np.stack([image.values[name] for image in images]) for name in images[0].values}


def read_masks(folder: Path) -> list[dict[str, Any]]:
    """Return all entries of the COCO-results files in a folder.

    Raises:
        ValueError: if one is not a JSON list of objects.
    """
    entries: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise ValueError(f"{path} must contain a list of objects, COCO results.")
        entries += content
    return entries


def write_record(results: Results, folder: Path, **per_image: np.ndarray) -> list[Path]:
    """Write ``results.json`` and ``per_image.npz``, and return their paths."""
    paths = [folder / "results.json", folder / "per_image.npz"]
    with atomic_write(paths[1]) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **per_image)  # pyright: ignore
    with atomic_write(paths[0]) as partial:
        partial.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    return paths


def time_lines(results: Results, width: int = 18) -> list[str]:
    """Return the lines of a table: the median time of each stage and its spread; none where no model ran."""
    if not results["ms"]:
        return []
    lines = ["", "ms per image".ljust(width) + "median".rjust(10) + "10% to 90%".rjust(22)]
    for stage, median in results["ms"].items():
        low, high = results["ms_p10_p90"][stage]
        lines.append(stage.ljust(width) + f"{median:.1f}".rjust(10) + f"{low:.1f} to {high:.1f}".rjust(22))
    run, prompts = results["run"], results["protocol"]["mean_prompts_decoded"]
    return [*lines, f"on {run['device']}, {run['dtype']}; {prompts:.1f} prompts per image"]


def percent(value: float | None) -> str:
    """Return a fraction in percent; a dash for none."""
    return "-" if value is None else f"{100 * value:.1f}"


def percent_range(bounds: Sequence[float] | None) -> str:
    """Return an interval of fractions in percent; nothing for none."""
    return "" if bounds is None else f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"
