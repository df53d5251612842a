"""Prompt mIoU of SegAny, against annotated objects or a teacher's masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mobilesamv2.evaluation.loop import EvaluateEachImage, ImageOutcome
from mobilesamv2.evaluation.shards import ResultShards
from mobilesamv2.masks import MASK_THRESHOLD, areas, decode
from mobilesamv2.metrics.average_recall import group_members
from mobilesamv2.metrics.prompt_iou import GROUPS, KINDS, ObjectPrompts, object_prompts
from mobilesamv2.metrics.stage_time import StageTimer
from mobilesamv2.models.sam import Sam
from mobilesamv2.ranges import NonNegativeInt
from mobilesamv2.segany import PROMPTS_PER_BATCH, SegAny
from mobilesamv2.structures import RLE, GroundTruth


class EvaluatePrompts(EvaluateEachImage):
    """Prompts the model for every annotated object and measures the IoU of its mask.

    Of the three masks of a single point the one of highest predicted IoU counts.

    Args:
        sam: the model.
        teacher: a model whose masks of the same prompts take the place of the annotated ones, as MobileSAM measures;
            None measures against the annotated objects.
        kinds: of prompts.
        seed: of the sampled points.
        shards: where results are kept as they come, and those of an interrupted run are found; None keeps nothing.

    Raises:
        ValueError: if a kind of prompt is unknown.
    """

    def __init__(
        self,
        sam: Sam,
        teacher: Sam | None = None,
        kinds: Sequence[str] = KINDS,
        seed: NonNegativeInt = 0,
        shards: ResultShards | None = None,
    ) -> None:
        super().__init__(shards)
        self.sam = sam
        self.teacher = teacher
        self.kinds = tuple(kinds)
        self._seed = seed
        self._student = SegAny(sam)
        self._reference = None if teacher is None else SegAny(teacher)
        self._timer = StageTimer(sam.device)
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds:
            raise ValueError(f"task.kinds must be some of {', '.join(KINDS)}, got {', '.join(kinds) or 'none'}.")

    @property
    def timer(self) -> StageTimer:
        """Return the timer of the image that was evaluated last, without the teacher's time."""
        return self._timer

    def evaluate_image(self, image: np.ndarray, truth: GroundTruth) -> ImageOutcome:
        """Return ``iou_sums`` (kinds, groups) and ``n_gt`` (groups,) of an image."""
        self._timer.device = self.sam.device
        self._timer.start_image()
        seen = [i for i, area in enumerate(areas(truth.rles).tolist()) if area]
        truth = GroundTruth(
            truth.image_id,
            truth.size,
            [truth.rles[i] for i in seen],
            [truth.areas[i] for i in seen],
            [truth.frequencies[i] for i in seen],
        )
        members = group_members(truth)[: len(GROUPS)]
        ious = np.zeros((len(self.kinds), len(seen)))
        if seen:
            with self._timer.stage("image_encoder"):
                self._student.set_image(image)
            if self._reference is not None:
                self._reference.set_image(image)
            for k, asked in enumerate(object_prompts(truth, self.kinds, self._seed)):
                ious[k] = self._ious(asked, truth.rles)
        return ImageOutcome({"iou_sums": ious @ members.T.astype(np.float64), "n_gt": members.sum(1)}, [])

    def _ious(self, asked: ObjectPrompts, objects: list[RLE]) -> list[float]:
        """Return the IoU of each object's mask with the object, or with the teacher's mask."""
        ious: list[float] = []
        for start in range(0, len(objects), PROMPTS_PER_BATCH):
            batch = ObjectPrompts(asked.kind, asked.prompts[start : start + PROMPTS_PER_BATCH], asked.multimask_output)
            with self._timer.stage("mask_decoder"):
                logits, chosen = _low_res(self._student, batch)
            self._timer.num_prompts += len(batch.prompts)
            with self._timer.stage("postprocessing"):
                masks = _full_size(self._student, logits, chosen)
            if self._reference is None:
                wanted = np.stack([decode(rle) for rle in objects[start : start + PROMPTS_PER_BATCH]])
            else:
                wanted = _full_size(self._reference, *_low_res(self._reference, batch))
            overlap, union = (masks & wanted).sum((1, 2)), (masks | wanted).sum((1, 2))
            # two empty masks agree
            ious += np.where(union > 0, overlap / np.maximum(union, 1), 1.0).tolist()
        return ious


def _low_res(segany: SegAny, asked: ObjectPrompts) -> tuple[torch.Tensor, torch.Tensor]:
    """Return low-res logits (N, M, S/4, S/4), and which of the M is the most confident."""
    logits, predicted_iou = segany.predict_low_res(asked.prompts, asked.multimask_output)
    return logits, predicted_iou.argmax(1)


def _full_size(segany: SegAny, logits: torch.Tensor, chosen: torch.Tensor) -> np.ndarray:
    """Return the chosen masks, (N, H, W) bool."""
    height, width = segany.frame.original_size
    masks = np.empty((len(logits), height, width), dtype=bool)
    for i, best in enumerate(chosen.tolist()):
        full = segany.frame.logits_to_original(logits[i, best][None])  # (1, W, H)
        masks[i] = (full[0] > MASK_THRESHOLD).T.cpu().numpy()
    return masks
