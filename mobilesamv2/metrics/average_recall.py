"""Class-agnostic mask AR@K of object proposals, as COCOeval computes it with one category.

For each image the K best masks are matched to its objects, at each of ten IoU thresholds on its own; recall is the
matched share of all objects of a data set, and AR its mean over the thresholds. Objects are counted in seven groups.

Source: SAM, appendix D.3; the rules of matching and ties are pycocotools'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from mobilesamv2 import masks
from mobilesamv2.metrics.bootstrap import RESAMPLES, percentiles, resampled_sums
from mobilesamv2.metrics.mask_metric import MaskMetric, RankedMasks
from mobilesamv2.ranges import Count
from mobilesamv2.structures import RLE, GroundTruth

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's; np.arange differs in the last bit, and that changes results."""

AREA_GROUPS = {"s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e5**2)}
"""Bounds of the annotation's area field, square pixels, both inclusive."""

FREQUENCY_GROUPS = ("r", "c", "f")

GROUPS = ("all", *AREA_GROUPS, *FREQUENCY_GROUPS)

DEFAULT_KS = (10, 100, 1000)


KCaps = Literal["masks", "prompts"]


@dataclass(frozen=True)
class ImageCounts:
    """What one image adds to the recall of a data set.

    Attributes:
        image_id: the image's id in its annotation file.
        matched: (groups, Ks, thresholds) int64, objects that were found.
        n_gt: (groups,) int64, objects.
        num_detections: masks that were proposed, before K.
        num_counted: masks that count at the largest K.
    """

    image_id: int
    matched: np.ndarray
    n_gt: np.ndarray
    num_detections: int
    num_counted: int


def count_matches(
    truth: GroundTruth,
    detections: Sequence[RLE],
    scores: Sequence[float],
    ks: Sequence[int] = DEFAULT_KS,
    prompt_ranks: Sequence[int] | None = None,
) -> ImageCounts:
    """Match the proposals of one image to its objects.

    Args:
        truth: the image's objects.
        detections: masks at the image's size, in any order.
        scores: one for each mask, higher is better; equal scores keep the order given.
        ks: how many of the best masks count.
        prompt_ranks: place of each mask's prompt, the best being 0; the masks of the K best prompts then count, however
            many they are. None: the K best masks.

    Raises:
        ValueError: if a score is not a finite number, or a mask is of another size.
    """
    values = np.asarray(scores, dtype=np.float64)
    if len(values) != len(detections):
        raise ValueError(f"Image {truth.image_id} has {len(detections)} masks and {len(values)} scores.")
    if not np.isfinite(values).all():
        raise ValueError(f"A score of image {truth.image_id} is NaN or infinite; half precision may be why.")
    order = np.argsort(-values, kind="stable")
    if prompt_ranks is None:
        order = order[: max(ks)]
    best = [detections[i] for i in order.tolist()]
    for rle in best:
        if tuple(rle["size"]) != truth.size:
            raise ValueError(f"A mask of image {truth.image_id} is {rle['size']}, and the image {list(truth.size)}.")
    ious = masks.iou_at_least(best, truth.rles, float(IOU_THRESHOLDS[0]))  # (D, G)
    members = group_members(truth)
    matched = np.zeros((len(GROUPS), len(ks), len(IOU_THRESHOLDS)), dtype=np.int64)
    prompts = None if prompt_ranks is None else np.asarray(prompt_ranks, dtype=np.int64)[order]
    for g, member in enumerate(members):
        of_group = ious[:, member]
        if prompts is None:
            for t, ranks in enumerate(ranks_of_matches(of_group)):
                matched[g, :, t] = np.searchsorted(ranks, ks)  # ranks ascend
            continue
        for i, k in enumerate(ks):
            matched[g, i] = [len(ranks) for ranks in ranks_of_matches(of_group[prompts < k])]
    num_counted = len(best) if prompts is None else int((prompts < max(ks)).sum())
    return ImageCounts(truth.image_id, matched, members.sum(1), len(detections), num_counted)


def group_members(truth: GroundTruth) -> np.ndarray:
    """Return (groups, G) bool: which objects each of ``GROUPS`` counts."""
    areas = np.asarray(truth.areas, dtype=np.float64)
    rows = [np.ones(len(areas), dtype=bool)]
    rows += [(low <= areas) & (areas <= high) for low, high in AREA_GROUPS.values()]
    rows += [np.array([f == group for f in truth.frequencies], dtype=bool) for group in FREQUENCY_GROUPS]
    return np.stack(rows)


def ranks_of_matches(ious: np.ndarray) -> list[list[int]]:
    """Return for each threshold the ranks of the detections that find an object, greedily and one to one.

    A detection takes the free object of largest IoU; among equals the last one, which is COCOeval's way.

    Args:
        ious: (D, G), the best detection first.
    """
    thresholds = [min(float(threshold), 1 - 1e-10) for threshold in IOU_THRESHOLDS]
    options: dict[int, list[tuple[float, int]]] = {}
    for rank, truth in np.argwhere(ious >= thresholds[0]).tolist():
        options.setdefault(rank, []).append((float(ious[rank, truth]), truth))
    candidates = [(rank, sorted(pairs, reverse=True)) for rank, pairs in options.items()]
    found = []
    for threshold in thresholds:
        candidates = [candidate for candidate in candidates if candidate[1][0][0] >= threshold]
        taken: set[int] = set()
        ranks: list[int] = []
        for rank, pairs in candidates:
            for iou, truth in pairs:
                if iou < threshold:
                    break
                if truth not in taken:
                    taken.add(truth)
                    ranks.append(rank)
                    break
        found.append(ranks)
    return found


class AverageRecall(Metric, MaskMetric):
    """AR@K over a data set, accumulated image by image in sums of fixed shape.

    Args:
        ks: how many of the best masks of an image count.
        k_caps: ``masks``, or ``prompts`` for the masks of the K best prompts (MobileSAMv2, table 4).

    Raises:
        ValueError: if there is no K, one below 1, or ``k_caps`` is neither.
    """

    matched: Tensor
    n_gt: Tensor
    groups = GROUPS

    def __init__(self, ks: Sequence[Count] = DEFAULT_KS, k_caps: KCaps = "masks") -> None:
        super().__init__()
        if not ks or min(ks) < 1:
            raise ValueError(f"ks, numbers of masks, must be at least one number of at least 1, got {list(ks)}.")
        if k_caps not in get_args(KCaps):
            raise ValueError(f"k_caps must be one of {', '.join(get_args(KCaps))}, got '{k_caps}'.")
        self.ks = tuple(ks)
        self.k_caps: KCaps = k_caps
        self.needs_prompt_ranks = k_caps == "prompts"
        shape = (len(GROUPS), len(self.ks), len(IOU_THRESHOLDS))
        self.add_state("matched", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("n_gt", torch.zeros(len(GROUPS), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def settings(self) -> dict[str, Any]:
        """Return Ks and what they cap."""
        return {"ks": list(self.ks), "k_caps": self.k_caps}

    def measure(self, truth: GroundTruth, masks: RankedMasks) -> dict[str, np.ndarray]:
        """Return the counts of one image: ``matched``, ``n_gt``, and ``detections``, proposed and counted."""
        prompt_index: Tensor | None = getattr(masks, "prompt_index", None) if self.needs_prompt_ranks else None
        ranks = None if prompt_index is None else prompt_index.tolist()
        counts = count_matches(truth, masks.rles, masks.scores.tolist(), self.ks, ranks)
        detections = np.array([counts.num_detections, counts.num_counted])
        return {"matched": counts.matched, "n_gt": counts.n_gt, "detections": detections}

    def summarize(self, sums: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """Return AR by name, as fractions: ``AR@K``, ``ARs@K`` and so on, and ``mAR``; None for an empty group."""
        return named(average_recall(sums["matched"], sums["n_gt"]), self.ks)

    def per_image(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return ``matches`` (images, groups, Ks, thresholds), ``n_gt`` (images, groups), ``groups`` and ``ks``."""
        return {
            "matches": values["matched"].astype(np.int32),
            "n_gt": values["n_gt"].astype(np.int32),
            "groups": np.array(GROUPS),
            "ks": np.array(self.ks),
        }

    def update(self, counts: ImageCounts) -> None:
        """Add one image to the sums."""
        self.matched += torch.from_numpy(counts.matched).to(self.matched.device)
        self.n_gt += torch.from_numpy(counts.n_gt).to(self.n_gt.device)

    def compute(self) -> dict[str, float | None]:
        """Return AR of the sums, as ``summarize`` does."""
        return self.summarize({"matched": self.matched.cpu().numpy(), "n_gt": self.n_gt.cpu().numpy()})


def average_recall(matched: np.ndarray, n_gt: np.ndarray) -> np.ndarray:
    """Return AR (..., groups, Ks) of counts (..., groups, Ks, thresholds) and (..., groups); NaN for an empty group."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (matched / n_gt[..., None, None]).mean(-1)


def bootstrap_intervals(
    matched: np.ndarray, n_gt: np.ndarray, ks: Sequence[int], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, list[float] | None]:
    """Return 95% percentile intervals over resampled images.

    Args:
        matched: (images, groups, Ks, thresholds) counts.
        n_gt: (images, groups) counts.
        ks: as in ``matched``.
        seed: of the resampling; the same seed draws the same images, so that two results compare in pairs.
        resamples: number of resamples.

    Returns:
        [low, high] under the names of ``AverageRecall.compute``; None where no resample has objects.
    """
    return percentiles(named(average_recall(*sums), ks) for sums in resampled_sums(matched, n_gt, seed, resamples))


def paired_intervals(
    first: np.ndarray,
    second: np.ndarray,
    n_gt: np.ndarray,
    ks: Sequence[int],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, list[float] | None]:
    """Return 95% percentile intervals of the second AR minus the first, over resamples of images that both share.

    Args:
        first: (images, groups, Ks, thresholds) counts.
        second: counts of the same images.
        n_gt: (images, groups) counts.
        ks: as in the counts.
        seed: of the resampling.
        resamples: number of resamples.

    Returns:
        [low, high] under the names of ``AverageRecall.compute``; None where no resample has objects.
    """
    pairs = zip(*(resampled_sums(counts, n_gt, seed, resamples) for counts in (first, second)), strict=True)
    return percentiles(named(average_recall(*after) - average_recall(*before), ks) for before, after in pairs)


def metric_name(group: str, k: int) -> str:
    """Return the name of AR at K of a group of objects: ``AR@K``, ``ARs@K`` and so on."""
    return f"AR{'' if group == 'all' else group}@{k}"


def named(ar: np.ndarray, ks: Sequence[int]) -> dict[str, float | None]:
    """Return (groups, Ks) AR by name: ``AR@K``, ``ARs@K`` and so on, and ``mAR``; NaN becomes None."""
    values = {metric_name(group, k): float(ar[g, i]) for g, group in enumerate(GROUPS) for i, k in enumerate(ks)}
    values["mAR"] = float(ar[0].mean())
    return {name: None if np.isnan(value) else value for name, value in values.items()}
