"""The result of scoring proposals: AR@K with intervals, as a table, as results.json and as per_image.npz."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilesamv2.metrics.average_recall import GROUPS, RESAMPLES, AverageRecall, ImageCounts, bootstrap_intervals

Results = dict[str, Any]


def proposal_results(
    recall: AverageRecall,
    images: Sequence[ImageCounts],
    seed: int,
    protocol: dict[str, Any],
    run: dict[str, Any],
    ms: dict[str, dict[str, float]] | None = None,
    num_prompts: Sequence[int] | None = None,
) -> Results:
    """Everything that a result must carry, as plain values.

    Args:
        recall: the sums over all images.
        images: the counts of each image, from which the intervals come.
        seed: of the bootstrap.
        protocol: how the masks were made and are counted.
        run: versions, commit, device and the like.
        ms: ``summarize`` of the images' stage times; None where no model ran.
        num_prompts: decoded prompts of each image; None where no model ran.
    """
    matched, n_gt = _stacked(images, recall.ks)
    proposals = [min(c.num_detections, max(recall.ks)) for c in images]
    return {
        "metrics": recall.compute(),
        "interval": bootstrap_intervals(matched, n_gt, recall.ks, seed=seed),
        "n_gt": dict(zip(GROUPS, n_gt.sum(0).tolist(), strict=True)),
        "ms": None if ms is None else {stage: summary["median"] for stage, summary in ms.items()},
        "ms_p10_p90": None if ms is None else {stage: [s["p10"], s["p90"]] for stage, s in ms.items()},
        "protocol": {
            "num_images": len(images),
            "ks": list(recall.ks),
            "mean_prompts_decoded": float(np.mean(num_prompts)) if num_prompts else None,
            "mean_proposals": float(np.mean(proposals)) if proposals else None,
            "images_without_proposals": sum(count == 0 for count in proposals),
            "interval": {"method": "bootstrap over images, 95% percentile", "resamples": RESAMPLES, "seed": seed},
            **protocol,
        },
        "run": run,
    }


def write_results(results: Results, images: Sequence[ImageCounts], ks: Sequence[int], folder: Path) -> None:
    """Writes ``results.json`` and ``per_image.npz`` (image ids, and the counts that the intervals come from)."""
    folder.mkdir(parents=True, exist_ok=True)
    matched, n_gt = _stacked(images, ks)
    np.savez_compressed(
        folder / "per_image.npz",
        image_ids=np.array([c.image_id for c in _by_id(images)]),
        matches=matched.astype(np.int32),
        n_gt=n_gt.astype(np.int32),
        groups=np.array(GROUPS),
        ks=np.array(ks),
    )
    (folder / "results.json").write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")


def format_table(results: Results) -> str:
    """The table that is printed: a row for each K, a column for each group, percent with the 95% interval below."""
    metrics, interval, n_gt = results["metrics"], results["interval"], results["n_gt"]
    width = 14
    lines = ["mask AR@K (%)".ljust(width) + "".join(group.rjust(width) for group in GROUPS)]
    for k in results["protocol"]["ks"]:
        names = [f"AR{'' if group == 'all' else group}@{k}" for group in GROUPS]
        lines.append(f"AR@{k}".ljust(width) + "".join(_percent(metrics[name]).rjust(width) for name in names))
        lines.append(" " * width + "".join(_range(interval[name]).rjust(width) for name in names))
    lines.append("objects".ljust(width) + "".join(str(n_gt[group]).rjust(width) for group in GROUPS))
    lines.append(f"mean AR over K: {_percent(metrics['mAR'])} {_range(interval['mAR'])}".rstrip())
    protocol = results["protocol"]
    if protocol["mean_proposals"] is not None:
        lines.append(
            f"{protocol['num_images']} images, {protocol['mean_proposals']:.1f} masks counted an image on average, "
            f"{protocol['images_without_proposals']} without any"
        )
    if results["ms"]:
        spread = results["ms_p10_p90"]
        lines += ["", "ms an image".ljust(width + 4) + "median".rjust(10) + "10% to 90%".rjust(22)]
        for stage, median in results["ms"].items():
            low, high = spread[stage]
            lines.append(stage.ljust(width + 4) + f"{median:.1f}".rjust(10) + f"{low:.1f} to {high:.1f}".rjust(22))
    return "\n".join(lines)


def _stacked(images: Sequence[ImageCounts], ks: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(images, groups, Ks, thresholds) and (images, groups), by image id, so that any number of processes agree."""
    if not images:
        empty = AverageRecall(ks)
        return empty.matched.numpy()[None][:0], empty.n_gt.numpy()[None][:0]
    images = _by_id(images)
    return np.stack([c.matched for c in images]), np.stack([c.n_gt for c in images])


def _by_id(images: Sequence[ImageCounts]) -> list[ImageCounts]:
    return sorted(images, key=lambda counts: counts.image_id)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _range(bounds: list[float] | None) -> str:
    return "" if bounds is None else f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"
