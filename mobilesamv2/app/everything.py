"""Everything in a photo, by any of the page's models and prompt samplers, with progress, times and a stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from typing_extensions import override

from mobilesamv2.metrics.stage_time import STAGES, StageTimer
from mobilesamv2.models.sam import Sam
from mobilesamv2.prompts.grid import Grid
from mobilesamv2.prompts.hierarchical import Hierarchical
from mobilesamv2.prompts.object_aware import Detector, EmbeddingDetector, ObjectAware
from mobilesamv2.prompts.sampler import PromptSampler
from mobilesamv2.segany import PROMPTS_PER_BATCH
from mobilesamv2.segevery import PROMPTS_PER_DEVICE_BATCH, SegEvery
from mobilesamv2.structures import RLE, Masks
from mobilesamv2.visualize import overlay, same_objects

SAMPLERS = {
    "grid": "Grid of points (SAM)",
    "hierarchical": "Coarse grid, then a fine one (TinySAM)",
    "object_aware": "Boxes of a detector (MobileSAMv2)",
}
"""What the page calls the prompt samplers, by their names in conf/prompt_sampler."""


class Stopped(Exception):  # noqa: N818  # no error: a visitor wanted it
    """A visitor pressed Stop."""


@dataclass(frozen=True)
class Settings:
    """What a visitor chooses for one of the two results.

    Attributes:
        model: name of the model.
        sampler: one of ``SAMPLERS``.
        points_per_side: of a grid.
        pred_iou_thresh: of a grid; a mask is kept above it.
        stability_score_thresh: of a grid; a mask is kept at or above it.
        confidence: lowest confidence of a detector's box.
    """

    model: str
    sampler: str
    points_per_side: int = 32
    pred_iou_thresh: float | None = None
    stability_score_thresh: float | None = None
    confidence: float = 0.4

    def build_sampler(self, detector: Detector | EmbeddingDetector | None) -> PromptSampler:
        """Build the prompt sampler.

        Raises:
            ValueError: if it requires a detector and there is none.
        """
        if self.sampler == "object_aware":
            if detector is None:
                raise ValueError("Boxes require a detector.")
            return ObjectAware(detector, confidence=self.confidence)
        kind = Hierarchical if self.sampler == "hierarchical" else Grid
        return kind(
            self.points_per_side,
            pred_iou_thresh=self.pred_iou_thresh,
            stability_score_thresh=self.stability_score_thresh,
        )


class AutoMasks(NamedTuple):
    """Everything in a photo.

    Attributes:
        masks: at the size of the photo as it is shown.
        overlay: RGB uint8 (H, W, 3), the masks over the photo.
        ms: milliseconds of each stage.
        prompts: number of prompts decoded.
        made_by: the settings of the prompt sampler, and the name of the model.
    """

    masks: Masks
    overlay: np.ndarray
    ms: dict[str, float]
    prompts: int
    made_by: dict[str, Any]


class WatchedTimer(StageTimer):
    """Timer of ``SegEvery`` that reports how many prompts are decoded, whenever a stage begins.

    ``SegEvery`` enters a stage for each batch of prompts, so a report that raises ``Stopped`` ends it within a batch.

    Args:
        device: the device of the model.
        report: receives the prompts decoded and the prompts known so far; a sampler of several rounds adds to these.
    """

    def __init__(self, device: torch.device, report: Callable[[int, int], None]) -> None:
        self._report = report
        self._batch = PROMPTS_PER_BATCH if device.type == "cpu" else PROMPTS_PER_DEVICE_BATCH
        super().__init__(device)

    @override
    def start_image(self) -> None:
        super().start_image()
        self._decoded = 0

    @override
    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._report(self._decoded, self.num_prompts)
        with super().stage(name):
            yield
        if name == "mask_decoder":
            self._decoded = min(self._decoded + self._batch, self.num_prompts)


def segment_everything(
    sam: Sam,
    sampler: PromptSampler,
    image: np.ndarray,
    report: Callable[[int, int], None] | None = None,
    beside: Sequence[RLE] = (),
) -> AutoMasks:
    """Segment everything in an image.

    Args:
        sam: the model.
        sampler: chooses the prompts.
        image: RGB uint8 (H, W, 3).
        report: see ``WatchedTimer``; it may raise ``Stopped``.
        beside: masks that are shown beside these; an object has one colour in both.
    """
    segevery = SegEvery(sam, sampler)
    timer = segevery.timer = WatchedTimer(sam.device, report or (lambda decoded, known: None))
    masks = segevery(image)
    made_by = {"model": sam.name} | segevery.sampler.settings
    drawn = overlay(image, masks.rles, objects=same_objects([*beside, *masks.rles])[len(beside) :])
    return AutoMasks(masks, drawn, dict(timer.ms), timer.num_prompts, made_by)


def times_table(results: Mapping[str, AutoMasks | None]) -> str:
    """Format times as a Markdown table: one row per stage, one column per result.

    Args:
        results: title -> result; None, shown as a dash, if there is none yet.
    """
    rows: list[tuple[str, list[str]]] = [
        (f"{stage.replace('_', ' ').replace('post', 'post-')}, ms", [_ms(r and r.ms[stage]) for r in results.values()])
        for stage in STAGES
    ]
    rows += [
        ("**total, ms**", [f"**{_ms(r and sum(r.ms.values()))}**" for r in results.values()]),
        ("prompts", [f"{r.prompts:,}" if r else "-" for r in results.values()]),
        ("masks", [f"{len(r.masks):,}" if r else "-" for r in results.values()]),
    ]
    head = [f"| | {' | '.join(results)} |", f"|---|{'--:|' * len(results)}"]
    table = [*head, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows)]
    empty = [name for name, result in results.items() if result and not len(result.masks)]
    return "\n".join(table + [f"\nNo mask of {name} passed the thresholds; try lower ones." for name in empty])


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value < 10 else f"{value:,.0f}"
