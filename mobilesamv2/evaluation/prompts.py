"""Prompt mIoU of SegAny, against annotated objects or a teacher's masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mobilesamv2.evaluation.loop import EvaluateEachImage, ImageOutcome
from mobilesamv2.evaluation.prompted_masks import counted_objects, predict_chosen, require_mask_prompts
from mobilesamv2.evaluation.shards import ResultShards
from mobilesamv2.masks import decode
from mobilesamv2.metrics.average_recall import group_members
from mobilesamv2.metrics.boundary_iou import boundary_ious
from mobilesamv2.metrics.mask_choice import MaskChoice, check_mask_choice, mask_ious
from mobilesamv2.metrics.prompt_iou import GROUPS, KINDS, ObjectPrompts, object_prompts
from mobilesamv2.metrics.stage_time import StageTimer
from mobilesamv2.models.sam import Sam
from mobilesamv2.ranges import Area, NonNegativeInt, Share
from mobilesamv2.segany import PROMPTS_PER_BATCH, SegAny
from mobilesamv2.structures import RLE, GroundTruth


class EvaluatePrompts(EvaluateEachImage):
    """Prompts the model for every annotated object and measures the IoU of its mask.

    Args:
        sam: the model.
        teacher: a model whose masks of the same prompts take the place of the annotated ones, as MobileSAM measures;
            None measures against the annotated objects.
        kinds: of prompts.
        mask_choice: which of a prompt's masks is scored. A teacher has no object to choose by: its most confident one.
        mask_refinements: times that the mask is fed back with its prompt before it is scored.
        min_area: objects whose annotated area is smaller are left out, square pixels.
        boundary_dilation_ratio: measure boundary IoU too, with boundaries of this share of the image's diagonal.
        seed: of the sampled points.
        shards: where results are kept as they come, and those of an interrupted run are found; None keeps nothing.

    Raises:
        ValueError: if a kind of prompt or the choice is unknown, or boxes choose where there are none.
    """

    def __init__(
        self,
        sam: Sam,
        teacher: Sam | None = None,
        kinds: Sequence[str] = KINDS,
        mask_choice: MaskChoice = "by_prompt",
        mask_refinements: NonNegativeInt = 0,
        min_area: Area = 0.0,
        boundary_dilation_ratio: Share | None = None,
        seed: NonNegativeInt = 0,
        shards: ResultShards | None = None,
    ) -> None:
        super().__init__(shards)
        for each in (sam, teacher):
            if each is not None:
                require_mask_prompts(each, mask_refinements)
        self.sam = sam
        self.teacher = teacher
        self.kinds = tuple(kinds)
        self._choice: MaskChoice = mask_choice
        self._refinements = mask_refinements
        self._min_area = min_area
        self._boundary_ratio = boundary_dilation_ratio
        self._seed = seed
        self._student = SegAny(sam)
        self._reference = None if teacher is None else SegAny(teacher)
        self._timer = StageTimer(sam.device)
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds:
            raise ValueError(f"task.kinds must be some of {', '.join(KINDS)}, got {', '.join(kinds) or 'none'}.")
        check_mask_choice(mask_choice)
        if mask_choice == "box_overlap" and set(kinds) != {"box"}:
            raise ValueError("task.mask_choice=box_overlap compares masks with the prompted box: task.kinds=[box].")

    @property
    def timer(self) -> StageTimer:
        """Return the timer of the image that was evaluated last, without the teacher's time."""
        return self._timer

    def evaluate_image(self, image: np.ndarray, truth: GroundTruth) -> ImageOutcome:
        """Return ``iou_sums`` (kinds, groups) and ``n_gt`` (groups,) of an image; boundary IoUs follow the kinds."""
        self._timer.device = self.sam.device
        self._timer.start_image()
        truth = counted_objects(truth, self._min_area)
        members = group_members(truth)[: len(GROUPS)]
        ious = np.zeros((1 if self._boundary_ratio is None else 2, len(self.kinds), len(truth.rles)))
        if truth.rles:
            with self._timer.stage("image_encoder"):
                self._student.set_image(image)
            if self._reference is not None:
                self._reference.set_image(image)
            for k, asked in enumerate(object_prompts(truth, self.kinds, self._seed)):
                ious[:, k] = self._ious(asked, truth.rles)
        sums = np.concatenate(list(ious)) @ members.T.astype(np.float64)
        return ImageOutcome({"iou_sums": sums, "n_gt": members.sum(1)}, [])

    def _ious(self, asked: ObjectPrompts, objects: list[RLE]) -> np.ndarray:
        """Return the IoU, and below it the boundary IoU, of each mask with the object or the teacher's mask, (., N)."""
        parts = []
        for start in range(0, len(objects), PROMPTS_PER_BATCH):
            some = slice(start, start + PROMPTS_PER_BATCH)
            prompts, targets = asked.prompts[some], np.stack([decode(rle) for rle in objects[some]])
            if self._reference is not None:
                own: MaskChoice = "predicted_iou" if self._choice == "oracle" else self._choice
                targets = predict_chosen(self._reference, prompts, own, mask_refinements=self._refinements).masks
            masks = predict_chosen(
                self._student, prompts, self._choice, self._timer, targets, mask_refinements=self._refinements
            ).masks
            measured = [mask_ious(masks, targets)]
            if self._boundary_ratio is not None:
                measured.append(boundary_ious(masks, targets, self._boundary_ratio))
            parts.append(np.stack(measured))
        return np.concatenate(parts, axis=1)
