"""The result of scoring proposals: AR@K with intervals, as a record and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mobilesamv2.metrics.average_recall import GROUPS, AverageRecall, ImageCounts, bootstrap_intervals
from mobilesamv2.metrics.result_record import Results, percent, percent_range, result_record, time_lines
from mobilesamv2.metrics.result_shards import ImageResult


def proposal_results(
    recall: AverageRecall,
    counts: Sequence[ImageCounts],
    seed: int,
    protocol: Mapping[str, Any],
    run: Mapping[str, Any],
    images: Sequence[ImageResult] | None = None,
) -> Results:
    """Everything that a result must carry, as plain values.

    Args:
        recall: the sums over all images.
        counts: those of each image, from which the intervals come.
        seed: of the bootstrap.
        protocol: how the masks were made and are counted.
        run: versions, commit, device and the like.
        images: the times and prompts of each; None where no model ran.
    """
    arrays = per_image_arrays(counts, recall.ks)
    matched, n_gt = arrays["matches"], arrays["n_gt"]
    proposals = [c.num_counted for c in counts]
    protocol = {
        "num_images": len(counts),
        "ks": list(recall.ks),
        "mean_proposals": float(np.mean(proposals)) if proposals else None,
        "images_without_proposals": sum(count == 0 for count in proposals),
        **protocol,
    }
    intervals = bootstrap_intervals(matched, n_gt, recall.ks, seed=seed)
    of_group = dict(zip(GROUPS, n_gt.sum(0).tolist(), strict=True))
    return result_record(recall.compute(), intervals, of_group, protocol, run, seed, images)


def per_image_arrays(counts: Sequence[ImageCounts], ks: Sequence[int]) -> dict[str, np.ndarray]:
    """What ``per_image.npz`` holds, by image id, so that any number of processes agree.

    ``matches`` (images, groups, Ks, thresholds), ``n_gt`` (images, groups), ``image_ids``, ``groups`` and ``ks``.
    """
    counts = sorted(counts, key=lambda c: c.image_id)
    empty = AverageRecall(ks)
    matched = np.stack([c.matched for c in counts]) if counts else empty.matched.numpy()[None][:0]
    n_gt = np.stack([c.n_gt for c in counts]) if counts else empty.n_gt.numpy()[None][:0]
    return {
        "image_ids": np.array([c.image_id for c in counts], dtype=np.int64),
        "matches": matched.astype(np.int32),
        "n_gt": n_gt.astype(np.int32),
        "groups": np.array(GROUPS),
        "ks": np.array(ks),
    }


def format_table(results: Results) -> str:
    """The table that is printed: a row for each K, a column for each group, percent with the 95% interval below."""
    metrics, interval, n_gt = results["metrics"], results["interval"], results["n_gt"]
    width = 14
    lines = ["mask AR@K (%)".ljust(width) + "".join(group.rjust(width) for group in GROUPS)]
    for k in results["protocol"]["ks"]:
        names = [f"AR{'' if group == 'all' else group}@{k}" for group in GROUPS]
        lines.append(f"AR@{k}".ljust(width) + "".join(percent(metrics[name]).rjust(width) for name in names))
        lines.append(" " * width + "".join(percent_range(interval[name]).rjust(width) for name in names))
    lines.append("objects".ljust(width) + "".join(str(n_gt[group]).rjust(width) for group in GROUPS))
    lines.append(f"mean AR over K: {percent(metrics['mAR'])} {percent_range(interval['mAR'])}".rstrip())
    protocol = results["protocol"]
    if protocol["mean_proposals"] is not None:
        lines.append(
            f"{protocol['num_images']} images, {protocol['mean_proposals']:.1f} masks counted an image on average, "
            f"{protocol['images_without_proposals']} without any; K caps {protocol['k_caps']}"
        )
    return "\n".join([*lines, *time_lines(results)])
