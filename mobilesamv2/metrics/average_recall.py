"""Class-agnostic mask AR@K of object proposals, as COCOeval computes it with one category.

For each image the K best masks are matched to its objects, at each of ten IoU thresholds on its own; recall is the
matched share of all objects of a data set, and AR its mean over the thresholds. Objects are counted in seven groups.

Source: SAM, appendix D.3; the rules of matching and ties are pycocotools'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from mobilesamv2 import masks
from mobilesamv2.structures import RLE, GroundTruth

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's; np.arange differs in the last bit, and that changes results."""

AREA_GROUPS = {"s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e5**2)}
"""Bounds of the annotation's area field, square pixels, both inclusive."""

FREQUENCY_GROUPS = ("r", "c", "f")

GROUPS = ("all", *AREA_GROUPS, *FREQUENCY_GROUPS)

DEFAULT_KS = (10, 100, 1000)

RESAMPLES = 2000
"""Of the images, for the bootstrap intervals."""


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
    """Matches the proposals of one image to its objects.

    Args:
        truth: the image's objects.
        detections: masks at the image's size, in any order.
        scores: one for each mask, higher is better; equal scores keep the order given.
        ks: how many of the best masks count.
        prompt_ranks: place of each mask's prompt, the best being 0; the masks of the K best prompts then count, however
            many they are. None: the K best masks.

    Raises:
        ValueError: a score that is not a finite number, or a mask of another size; the sentence names the image.
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
    ious = masks.iou_from(best, truth.rles, float(IOU_THRESHOLDS[0]))  # (D, G)
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
    """(groups, G) bool: which objects each of ``GROUPS`` counts."""
    areas = np.asarray(truth.areas, dtype=np.float64)
    rows = [np.ones(len(areas), dtype=bool)]
    rows += [(low <= areas) & (areas <= high) for low, high in AREA_GROUPS.values()]
    rows += [np.array([f == group for f in truth.frequencies], dtype=bool) for group in FREQUENCY_GROUPS]
    return np.stack(rows)


def ranks_of_matches(ious: np.ndarray) -> list[list[int]]:
    """For each threshold the ranks of the detections that find an object, greedily and one to one.

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


class AverageRecall(Metric):
    """AR@K over a data set, accumulated image by image in sums of fixed shape.

    Args:
        ks: how many of the best masks of an image count.

    Raises:
        ValueError: no K, or one below 1.
    """

    matched: Tensor
    n_gt: Tensor

    def __init__(self, ks: Sequence[int] = DEFAULT_KS) -> None:
        super().__init__()
        if not ks or min(ks) < 1:
            raise ValueError(f"ks are numbers of masks, one or more of them and each 1 or more; got {list(ks)}.")
        self.ks = tuple(ks)
        shape = (len(GROUPS), len(self.ks), len(IOU_THRESHOLDS))
        self.add_state("matched", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("n_gt", torch.zeros(len(GROUPS), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, counts: ImageCounts) -> None:
        """Adds one image."""
        self.matched += torch.from_numpy(counts.matched).to(self.matched.device)
        self.n_gt += torch.from_numpy(counts.n_gt).to(self.n_gt.device)

    def compute(self) -> dict[str, float | None]:
        """AR by name, as fractions: ``AR@K``, ``ARs@K`` and so on, and ``mAR``; None for a group without objects."""
        ar = average_recall(self.matched.cpu().numpy(), self.n_gt.cpu().numpy())
        return named(ar, self.ks)


def average_recall(matched: np.ndarray, n_gt: np.ndarray) -> np.ndarray:
    """(..., groups, Ks, thresholds) and (..., groups) counts to AR (..., groups, Ks); NaN for an empty group."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (matched / n_gt[..., None, None]).mean(-1)


def bootstrap_intervals(
    matched: np.ndarray, n_gt: np.ndarray, ks: Sequence[int], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, list[float] | None]:
    """95% percentile intervals over resampled images.

    Args:
        matched: (images, groups, Ks, thresholds) counts.
        n_gt: (images, groups) counts.
        ks: as in ``matched``.
        seed: of the resampling; the same seed draws the same images, so that two results compare in pairs.
        resamples: how many.

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
    """95% percentile intervals of the second AR minus the first, over resamples of images that both share.

    Args:
        first: (images, groups, Ks, thresholds) counts.
        second: counts of the same images.
        n_gt: (images, groups) counts.
        ks: as in the counts.
        seed: of the resampling.
        resamples: how many.

    Returns:
        [low, high] under the names of ``AverageRecall.compute``; None where no resample has objects.
    """
    pairs = zip(*(resampled_sums(counts, n_gt, seed, resamples) for counts in (first, second)), strict=True)
    return percentiles(named(average_recall(*after) - average_recall(*before), ks) for before, after in pairs)


def percentiles(draws: Iterable[Mapping[str, float | None]]) -> dict[str, list[float] | None]:
    """[2.5th, 97.5th] percentile of each name over resamples; None where none of them has a value."""
    samples: dict[str, list[float]] = {}
    for values in draws:
        for name, value in values.items():
            samples.setdefault(name, []).extend([] if value is None else [value])
    return {
        name: [float(v) for v in np.quantile(values, [0.025, 0.975])] if values else None
        for name, values in samples.items()
    }


def resampled_sums(
    per_image: np.ndarray, n_gt: np.ndarray, seed: int, resamples: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sums over images drawn with replacement, a resample at a time; the same seed draws the same images.

    Args:
        per_image: (images, ...).
        n_gt: (images, groups).
        seed: of the resampling.
        resamples: how many.
    """
    rng = np.random.default_rng(seed)
    num_images = len(per_image)
    flat = per_image.reshape(num_images, -1).astype(np.float64)
    for _ in range(resamples if num_images else 0):
        times = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images).astype(np.float64)
        yield (times @ flat).reshape(per_image.shape[1:]), times @ n_gt


def named(ar: np.ndarray, ks: Sequence[int]) -> dict[str, float | None]:
    """(groups, Ks) AR by name: ``AR@K``, ``ARs@K`` and so on, and ``mAR``; NaN becomes None."""
    values = {
        f"AR{'' if group == 'all' else group}@{k}": float(ar[g, i])
        for g, group in enumerate(GROUPS)
        for i, k in enumerate(ks)
    }
    values["mAR"] = float(ar[0].mean())
    return {name: None if np.isnan(value) else value for name, value in values.items()}
