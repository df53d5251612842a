"""Masks of a detector's boxes: instance segmentation by box prompts, scored by AP."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from mobilesamv2.data.results_files import Boxes
from mobilesamv2.evaluation.loop import EvaluateEachImage, ImageOutcome
from mobilesamv2.evaluation.prompted_masks import predict_chosen, require_mask_prompts
from mobilesamv2.evaluation.shards import ResultShards
from mobilesamv2.masks import encode
from mobilesamv2.metrics.mask_choice import MaskChoice, check_mask_choice
from mobilesamv2.metrics.stage_time import StageTimer
from mobilesamv2.models.sam import Sam
from mobilesamv2.ranges import NonNegativeInt
from mobilesamv2.segany import PROMPTS_PER_BATCH, SegAny
from mobilesamv2.structures import GroundTruth, Prompts

CHOICES: tuple[str, ...] = ("single", "predicted_iou", "box_overlap")
"""Of ``MaskChoice``, those that need no object."""


class EvaluateBoxes(EvaluateEachImage):
    """Prompts the model with every box of a detector; the masks keep the detector's categories and scores.

    AP is computed of the masks that ``shards`` keeps, once all images are done.

    Args:
        sam: the model.
        boxes: of each image, by its id.
        shards: where masks are kept; it must keep them.
        mask_choice: which of a box's masks counts.
        mask_refinements: times that the mask is fed back with its box.

    Source: SAM, section 7.4, with the boxes of ViTDet; EfficientViT-SAM and EdgeSAM report the same, by other choices.

    Raises:
        ValueError: if the shards keep no masks, or the choice is unknown.
    """

    def __init__(
        self,
        sam: Sam,
        boxes: Mapping[int, Boxes],
        shards: ResultShards,
        mask_choice: MaskChoice = "single",
        mask_refinements: NonNegativeInt = 0,
    ) -> None:
        check_mask_choice(mask_choice, CHOICES)
        require_mask_prompts(sam, mask_refinements)
        if not shards.keep_masks:
            raise ValueError("shards.keep_masks must be true: AP is computed of the kept masks.")
        super().__init__(shards)
        self.sam = sam
        self._boxes = boxes
        self._choice: MaskChoice = mask_choice
        self._refinements = mask_refinements
        self._segany = SegAny(sam)
        self._timer = StageTimer(sam.device)

    @property
    def timer(self) -> StageTimer:
        """Return the timer of the image that was evaluated last."""
        return self._timer

    def evaluate_image(self, image: np.ndarray, truth: GroundTruth) -> ImageOutcome:
        """Return one mask for each box."""
        timer = self._timer
        timer.device = self.sam.device
        timer.start_image()
        found = self._boxes.get(truth.image_id)
        results = []
        if found is not None:
            with timer.stage("image_encoder"):
                self._segany.set_image(image)
            for start in range(0, len(found.scores), PROMPTS_PER_BATCH):
                some = slice(start, start + PROMPTS_PER_BATCH)
                prompts = Prompts(boxes_xyxy=found.boxes_xyxy[some])
                masks = predict_chosen(
                    self._segany, prompts, self._choice, timer, mask_refinements=self._refinements
                ).masks
                with timer.stage("postprocessing"):
                    rles = encode(torch.from_numpy(masks.transpose(0, 2, 1)))
                entries = zip(rles, found.scores[some], found.category_ids[some], strict=True)
                results += [
                    {"image_id": truth.image_id, "category_id": category, "segmentation": rle, "score": score}
                    for rle, score, category in entries
                ]
        values = {"num_boxes": np.array(len(results)), "n_gt": np.array([len(truth.rles)])}
        return ImageOutcome(values, results)
