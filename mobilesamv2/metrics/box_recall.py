"""Quality of a detector's boxes as prompts: how many objects they cover, and how many boxes that takes.

Class-agnostic box AR@K is COCOeval's with one category, by the rules of ``average_recall``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchvision.ops import box_iou

from mobilesamv2.metrics.average_recall import AREA_GROUPS, IOU_THRESHOLDS, average_recall, ranks_of_matches
from mobilesamv2.metrics.bootstrap import RESAMPLES, percentiles, resampled_sums

DEFAULT_KS = (10, 100, 320)
"""Numbers of boxes per image that count; 320 is MobileSAMv2's cap."""

IOU_REACHED = (0.5, 0.75)
"""An object counts as reached if a box has at least this IoU with it."""

CONFIDENCES = tuple(i / 20 for i in range(1, 19))
"""Thresholds of the calibration table, .05 to .9."""

GROUPS = ("all", *AREA_GROUPS)


@dataclass(frozen=True)
class BoxCounts:
    """Counts of one image.

    Attributes:
        matched: (groups, Ks, IoU thresholds) int64, objects that are matched greedily, one box for each.
        n_gt: (groups,) int64, objects.
        reached: (groups, ``IOU_REACHED``) int64, objects that any box reaches with that IoU.
        kept: (``CONFIDENCES``,) int64, boxes of at least that confidence.
        reached_at: (``CONFIDENCES``,) int64, objects that one of those boxes reaches with an IoU of .5.
    """

    matched: np.ndarray
    n_gt: np.ndarray
    reached: np.ndarray
    kept: np.ndarray
    reached_at: np.ndarray


class BoxReport(NamedTuple):
    """Results on a data set.

    Attributes:
        values: fractions by name: ``ar_K`` and by size ``ar_s_K``; ``recall_50``, ``recall_75`` and by size
            ``recall_s_50``, the share of objects with a box of that IoU. Groups without objects are omitted.
        calibration: for each of ``CONFIDENCES`` (confidence, mean number of boxes per image of at least that
            confidence, share of objects that one of these reaches with an IoU of .5).
    """

    values: dict[str, float]
    calibration: list[tuple[float, float, float]]


def count_boxes(
    boxes_xyxy: Tensor, confidence: Tensor, truths_xyxy: Tensor, areas: Tensor, ks: Sequence[int] = DEFAULT_KS
) -> BoxCounts:
    """Compare the boxes of one image with those of its objects.

    Args:
        boxes_xyxy: (N, 4) xyxy, in any order and frame.
        confidence: (N,); equal ones keep their order.
        truths_xyxy: (G, 4) xyxy, in the same frame.
        areas: (G,), the annotations', square pixels of the original image.
        ks: numbers of the most confident boxes that count; the largest bounds everything else too.
    """
    scores = confidence.double().cpu().numpy()
    order = np.argsort(-scores, kind="stable")[: max(ks)]
    scores = scores[order]
    ious = box_iou(boxes_xyxy.double().cpu()[order], truths_xyxy.double().cpu()).numpy()  # (N, G)
    area = areas.double().cpu().numpy()
    members = np.stack(
        [np.ones(len(area), dtype=bool), *((low <= area) & (area <= high) for low, high in AREA_GROUPS.values())]
    )
    matched = np.zeros((len(GROUPS), len(ks), len(IOU_THRESHOLDS)), dtype=np.int64)
    for g, member in enumerate(members):
        for t, ranks in enumerate(ranks_of_matches(ious[:, member])):
            matched[g, :, t] = np.searchsorted(ranks, ks)  # ranks ascend
    best = ious.max(0, initial=0.0)  # (G,)
    half = np.where(ious >= IOU_REACHED[0], scores[:, None], -1.0).max(
        0, initial=-1.0
    )  # of the most confident box that overlaps
    confidences = np.array(CONFIDENCES)
    return BoxCounts(
        matched,
        members.sum(1),
        np.stack([(members & (best >= iou)).sum(1) for iou in IOU_REACHED], axis=1),
        (scores[None] >= confidences[:, None]).sum(1),
        (half[None] >= confidences[:, None]).sum(1),
    )


def box_recalls(
    matched: np.ndarray, reached: np.ndarray, n_gt: np.ndarray, ks: Sequence[int]
) -> dict[str, float | None]:
    """Return ``BoxReport.values`` from counts summed over images, and None for groups without objects.

    Args:
        matched: (groups, Ks, IoU thresholds).
        reached: (groups, ``IOU_REACHED``).
        n_gt: (groups,).
        ks: of the counts.
    """
    ar = average_recall(matched, n_gt)  # (groups, Ks)
    values: dict[str, float | None] = {}
    for g, group in enumerate(GROUPS):
        size, objects = "" if group == "all" else f"{group}_", n_gt[g]
        values |= {f"ar_{size}{k}": float(ar[g, i]) if objects else None for i, k in enumerate(ks)}
        values |= {
            f"recall_{size}{round(100 * iou)}": float(reached[g, i] / objects) if objects else None
            for i, iou in enumerate(IOU_REACHED)
        }
    return values


def bootstrap_box_recalls(
    matched: np.ndarray, reached: np.ndarray, n_gt: np.ndarray, ks: Sequence[int], seed: int = 0
) -> dict[str, list[float] | None]:
    """Return 95% percentile intervals over resampled images, under the names of ``box_recalls``.

    Args:
        matched: (images, groups, Ks, IoU thresholds).
        reached: (images, groups, ``IOU_REACHED``).
        n_gt: (images, groups).
        ks: of the counts.
        seed: of the resampling.
    """
    draws = zip(*(resampled_sums(x, n_gt, seed, RESAMPLES) for x in (matched, reached)), strict=True)
    return percentiles(box_recalls(first, second, objects, ks) for (first, objects), (second, _) in draws)


class BoxRecall(Metric):
    """Box AR@K, reached objects, and the calibration of confidence, over a data set, in sums of fixed shape.

    Args:
        ks: numbers of the most confident boxes per image that count.

    Raises:
        ValueError: if there is no K, or one below 1.
    """

    matched: Tensor
    n_gt: Tensor
    reached: Tensor
    kept: Tensor
    reached_at: Tensor
    images: Tensor

    def __init__(self, ks: Sequence[int] = DEFAULT_KS) -> None:
        super().__init__()
        if not ks or min(ks) < 1:
            raise ValueError(f"ks must be one or more numbers of boxes, each at least 1, got {list(ks)}.")
        self.ks = tuple(ks)
        shapes = {
            "matched": (len(GROUPS), len(self.ks), len(IOU_THRESHOLDS)),
            "n_gt": (len(GROUPS),),
            "reached": (len(GROUPS), len(IOU_REACHED)),
            "kept": (len(CONFIDENCES),),
            "reached_at": (len(CONFIDENCES),),
            "images": (),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, counts: BoxCounts) -> None:
        """Add the counts of one image."""
        for name, value in vars(counts).items():
            state = getattr(self, name)
            state += torch.from_numpy(value).to(state.device)
        self.images += 1

    def compute(self) -> BoxReport:
        """Return the report, reduced over all processes."""
        matched, reached, n_gt = (x.cpu().numpy() for x in (self.matched, self.reached, self.n_gt))
        values = box_recalls(matched, reached, n_gt, self.ks)
        rows = zip(
            CONFIDENCES,
            (self.kept / self.images.clamp(min=1)).tolist(),
            (self.reached_at / self.n_gt[0].clamp(min=1)).tolist(),
            strict=True,
        )
        return BoxReport({name: value for name, value in values.items() if value is not None}, list(rows))
