"""Mean IoU of the masks that prompts give: SegAny's quality, by kind of prompt and size of object.

Source: SAM, section 7.1 and appendix D.1; MobileSAM, section 4, compares with a teacher's masks in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from mobilesamv2.masks import decode, tight_boxes
from mobilesamv2.metrics.average_recall import AREA_GROUPS
from mobilesamv2.metrics.bootstrap import RESAMPLES, percentiles, resampled_sums
from mobilesamv2.structures import GroundTruth, Prompts

GROUPS = ("all", *AREA_GROUPS)
"""Those of AR@K, but for the frequencies that come after them."""

POINT_COUNTS = (1, 3, 5)
"""Points of a prompt that are sampled in an object."""

KINDS = ("box", "centre", *(f"points_{n}" for n in POINT_COUNTS))
"""An object's tight box; the pixel farthest from its edge; pixels drawn in it."""


@dataclass(frozen=True)
class ObjectPrompts:
    """The prompts of one kind for the objects of an image.

    Attributes:
        kind: one of ``KINDS``.
        prompts: one for each object.
    """

    kind: str
    prompts: Prompts


def object_prompts(truth: GroundTruth, kinds: Sequence[str], seed: int) -> list[ObjectPrompts]:
    """Return prompts of each kind for every object of an image, in pixels of the image.

    Args:
        truth: one object or more, each with a pixel at least.
        kinds: of ``KINDS``.
        seed: of the sampled points, which are the same ones for every model.
    """
    found = []
    for kind in kinds:
        if kind == "box":
            found.append(ObjectPrompts(kind, Prompts(boxes_xyxy=tight_boxes(truth.rles))))
            continue
        if kind == "centre":
            points = np.array([[_centre(decode(rle))] for rle in truth.rles])
        else:
            count = int(kind.removeprefix("points_"))
            rng = np.random.default_rng((seed, truth.image_id % 2**63, count))
            points = np.array([_sampled(decode(rle), count, rng) for rle in truth.rles])
        tensor = torch.from_numpy(points).double()  # (G, P, 2)
        labels = torch.ones(tensor.shape[:2], dtype=torch.int64)
        found.append(ObjectPrompts(kind, Prompts(points=tensor, labels=labels)))
    return found


def _centre(mask: np.ndarray) -> tuple[int, int]:
    """Return the pixel (x, y) farthest from the mask's edge; the image's border is an edge too."""
    distance = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]  # pyright: ignore
    y, x = np.unravel_index(int(np.argmax(distance)), mask.shape)
    return int(x), int(y)


def _sampled(mask: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return (count, 2) pixels of the mask, xy; repeated where it has fewer."""
    y, x = np.nonzero(mask)
    chosen = rng.choice(len(x), size=count, replace=len(x) < count)
    return np.stack([x[chosen], y[chosen]], axis=1)


def mean_ious(iou_sums: np.ndarray, n_gt: np.ndarray, kinds: Sequence[str]) -> dict[str, float | None]:
    """Return the mean IoU over objects: ``mIoU box``, ``mIoUs box`` and so on; None for a group without objects.

    Args:
        iou_sums: (kinds, groups), or (2 * kinds, groups) where boundary IoUs follow: ``mBIoU box``.
        n_gt: (groups,).
        kinds: of the sums.
    """
    names = [(name, kind) for name in ("mIoU", "mBIoU") for kind in kinds][: len(iou_sums)]
    return {
        f"{name}{'' if group == 'all' else group} {kind}": float(iou_sums[k, g] / n_gt[g]) if n_gt[g] else None
        for k, (name, kind) in enumerate(names)
        for g, group in enumerate(GROUPS)
    }


def bootstrap_mean_ious(
    iou_sums: np.ndarray, n_gt: np.ndarray, kinds: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, list[float] | None]:
    """Return 95% percentile intervals over resampled images, under the names of ``mean_ious``.

    Args:
        iou_sums: (images, kinds, groups), or (images, 2 * kinds, groups).
        n_gt: (images, groups).
        kinds: of the sums.
        seed: of the resampling.
        resamples: number of resamples.
    """
    return percentiles(mean_ious(*sums, kinds) for sums in resampled_sums(iou_sums, n_gt, seed, resamples))
