"""Interactive segmentation: a simulated user clicks where the last mask was wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch

from mobilesamv2.evaluation.loop import EvaluateEachImage, ImageOutcome
from mobilesamv2.evaluation.prompted_masks import counted_objects, predict_chosen
from mobilesamv2.evaluation.shards import ResultShards
from mobilesamv2.masks import decode, tight_boxes
from mobilesamv2.metrics.average_recall import group_members
from mobilesamv2.metrics.clicks import (
    Click,
    FirstPrompt,
    NextClick,
    clicks_needed,
    farthest_click,
    random_click,
)
from mobilesamv2.metrics.mask_choice import MaskChoice, check_mask_choice, mask_ious
from mobilesamv2.metrics.prompt_iou import GROUPS
from mobilesamv2.metrics.stage_time import StageTimer
from mobilesamv2.models.sam import Sam
from mobilesamv2.ranges import Area, Count, NonNegativeInt, Share
from mobilesamv2.segany import PROMPTS_PER_BATCH, SegAny
from mobilesamv2.structures import RLE, GroundTruth, Prompts

CHOICES: tuple[str, ...] = ("by_prompt", "single", "predicted_iou", "oracle")
"""Of ``MaskChoice``, those that need no box."""


class EvaluateClicks(EvaluateEachImage):
    """Prompts the model for every object, click after click, and measures the IoU of its mask after each.

    An object without a wrong pixel left to click keeps its mask.

    Args:
        sam: the model.
        first_prompt: of an object; ``box`` comes before the first click.
        next_click: where the last mask is wrong.
        max_clicks: clicks of an object.
        mask_choice: which of the masks is scored, and corrected by the next click.
        mask_input: feed the low-res logits of the last mask back with the next click.
        ious: thresholds of the number of clicks.
        min_area: objects whose annotated area is smaller are left out, square pixels.
        seed: of random pixels.
        shards: where results are kept as they come, and those of an interrupted run are found; None keeps nothing.

    Raises:
        ValueError: if a choice is unknown, there is no threshold, or the model takes no background points.
    """

    def __init__(
        self,
        sam: Sam,
        first_prompt: FirstPrompt = "centre",
        next_click: NextClick = "farthest",
        max_clicks: Count = 20,
        mask_choice: MaskChoice = "by_prompt",
        mask_input: bool = True,
        ious: Sequence[Share] = (0.8, 0.85, 0.9),
        min_area: Area = 0.0,
        seed: NonNegativeInt = 0,
        shards: ResultShards | None = None,
    ) -> None:
        super().__init__(shards)
        for key, value, kind in (("first_prompt", first_prompt, FirstPrompt), ("next_click", next_click, NextClick)):
            if value not in get_args(kind):
                raise ValueError(f"task.{key} must be one of {', '.join(get_args(kind))}, got {value}.")
        check_mask_choice(mask_choice, CHOICES)
        if not sam.prompt_encoder.takes_background:
            raise ValueError(
                f"{sam.name} can't be evaluated by clicks: it takes no background points, which correct a mask. "
                "task=evaluate_prompts measures it with boxes and points."
            )
        if not ious:
            raise ValueError("task.ious, the IoUs that clicks are counted to, must have at least one, got none.")
        self.sam = sam
        self.ious = tuple(ious)
        self._first: FirstPrompt = first_prompt
        self._next: NextClick = next_click
        self._max_clicks = max_clicks
        self._choice: MaskChoice = mask_choice
        self._feeds_back = mask_input
        self._min_area = min_area
        self._seed = seed
        self._segany = SegAny(sam)
        self._timer = StageTimer(sam.device)

    @property
    def timer(self) -> StageTimer:
        """Return the timer of the image that was evaluated last; its ``prompt_sampling`` is that of the clicks."""
        return self._timer

    @property
    def first_step(self) -> int:
        """Return how many clicks there are when the IoU is measured first: none after a box."""
        return 0 if self._first == "box" else 1

    def evaluate_image(self, image: np.ndarray, truth: GroundTruth) -> ImageOutcome:
        """Return ``sums`` (steps + 2 * thresholds, groups) over the objects of an image, and ``n_gt`` (groups,)."""
        self._timer.device = self.sam.device
        self._timer.start_image()
        truth = counted_objects(truth, self._min_area)
        members = group_members(truth)[: len(GROUPS)]
        ious = np.zeros((len(truth.rles), self._max_clicks + 1 - self.first_step))
        if truth.rles:
            rng = np.random.default_rng((self._seed, truth.image_id % 2**63))
            with self._timer.stage("image_encoder"):
                self._segany.set_image(image)
            for start in range(0, len(ious), PROMPTS_PER_BATCH):
                some = slice(start, start + PROMPTS_PER_BATCH)
                ious[some] = self._click_through(truth.rles[some], rng)
        clicks, failed = clicks_needed(ious, self.ious, self.first_step, self._max_clicks)
        sums = np.concatenate([ious.T, clicks, failed]) @ members.T.astype(np.float64)
        return ImageOutcome({"sums": sums, "n_gt": members.sum(1)}, [])

    def _click_through(self, objects: list[RLE], rng: np.random.Generator) -> np.ndarray:
        """Return the IoU of each object's mask after each number of clicks, (N, steps)."""
        targets = np.stack([decode(rle) for rle in objects])
        masks, low_res = np.zeros_like(targets), None
        clicks: list[list[Click]] = [[] for _ in objects]
        boxes = tight_boxes(objects) if self._first == "box" else None
        ious = np.zeros((len(objects), self._max_clicks + 1 - self.first_step))
        corrected = np.arange(len(objects))
        for step in range(ious.shape[1]):
            if step or self.first_step:
                with self._timer.stage("prompt_sampling"):
                    corrected = self._click(corrected, targets, masks, clicks, rng)
            if len(corrected):
                found = predict_chosen(
                    self._segany,
                    _prompts([clicks[i] for i in corrected], None if boxes is None else boxes[corrected]),
                    self._choice,
                    self._timer,
                    targets[corrected],
                    low_res[corrected] if low_res is not None and self._feeds_back else None,
                )
                masks[corrected] = found.masks
                low_res = found.low_res_logits.clone() if low_res is None else low_res
                low_res[corrected] = found.low_res_logits
            ious[:, step] = ious[:, step - 1]
            ious[corrected, step] = mask_ious(masks[corrected], targets[corrected])
        return ious

    def _click(
        self,
        corrected: np.ndarray,
        targets: np.ndarray,
        masks: np.ndarray,
        clicks: list[list[Click]],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Add a click to each object; return the indices of those that had a wrong pixel left."""
        left = []
        for i in corrected.tolist():
            is_first = self._first != "box" and not clicks[i]
            if (self._first if is_first else self._next) == "random":
                click = random_click(targets[i], masks[i], rng)
            else:
                click = farthest_click(targets[i], masks[i], clicks[i])
            if click is not None:
                clicks[i].append(click)
                left.append(i)
        return np.array(left, dtype=np.int64)


def _prompts(clicks: list[list[Click]], boxes_xyxy: torch.Tensor | None) -> Prompts:
    """Return prompts of as many clicks each, and boxes."""
    if not clicks[0]:
        return Prompts(boxes_xyxy=boxes_xyxy)
    points = torch.tensor([[(click.x, click.y) for click in each] for each in clicks], dtype=torch.float64)
    labels = torch.tensor([[int(click.is_foreground) for click in each] for each in clicks])
    return Prompts(points=points, labels=labels, boxes_xyxy=boxes_xyxy)
