"""The one mask of each prompt that an evaluation scores, by the rule that its protocol names."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mobilesamv2.masks import MASK_THRESHOLD, areas
from mobilesamv2.metrics.mask_choice import MaskChoice, chosen_mask, wants_three
from mobilesamv2.metrics.stage_time import StageTimer
from mobilesamv2.models.sam import Sam
from mobilesamv2.segany import SegAny
from mobilesamv2.structures import GroundTruth, Prompts


class PromptedMasks(NamedTuple):
    """The masks of N prompts that count.

    Attributes:
        masks: (N, H, W) bool, a view of contiguous (N, W, H).
        low_res_logits: (N, 1, S/4, S/4), which can be passed back as ``mask_input``, see ``Sam.as_mask_input``.
    """

    masks: np.ndarray
    low_res_logits: Tensor


def require_mask_prompts(sam: Sam, mask_refinements: int) -> None:
    """Check that a model takes the masks that are fed back to it.

    Raises:
        ValueError: if it takes none as prompts.
    """
    if mask_refinements and not sam.prompt_encoder.takes_masks:
        raise ValueError(
            f"task.mask_refinements must be 0 for {sam.name}, got {mask_refinements}: it takes no masks as prompts."
        )


def predict_chosen(
    segany: SegAny,
    prompts: Prompts,
    mask_choice: MaskChoice,
    timer: StageTimer | None = None,
    targets: np.ndarray | None = None,
    mask_input: Tensor | None = None,
    mask_refinements: int = 0,
) -> PromptedMasks:
    """Predict masks on the image that is set, and choose one for each prompt.

    Args:
        segany: the model, with its image.
        prompts: at most one batch, since all masks are held at the size of the image.
        mask_choice: the rule.
        timer: its stages ``mask_decoder`` and ``postprocessing`` are timed, and its prompts counted.
        targets: (N, H, W) bool, the annotated objects, for ``oracle``.
        mask_input: (N, 1, S/4, S/4) logits of an earlier mask.
        mask_refinements: times that the chosen mask is fed back with its prompt, for the decoder's one mask.

    Source: SAM, appendix D.4, for the refinement. It does not say which mask counts in the end: here the one that SAM
    is trained to give for several prompts (appendix A).
    """
    timer = StageTimer(segany.sam.device) if timer is None else timer
    points = prompts.points
    is_one_point = points is not None and points.shape[1] == 1 and prompts.boxes_xyxy is None and mask_input is None
    with timer.stage("mask_decoder"):
        logits, predicted_iou = segany.predict_low_res(prompts, wants_three(mask_choice, is_one_point), mask_input)
    timer.num_prompts += len(prompts)
    with timer.stage("postprocessing"):
        low_res = _chosen(segany, logits, predicted_iou, mask_choice, prompts, targets)
    for _ in range(mask_refinements):
        with timer.stage("mask_decoder"):
            low_res, _ = segany.predict_low_res(prompts, False, segany.sam.as_mask_input(low_res))
        timer.num_prompts += len(prompts)
    with timer.stage("postprocessing"):
        height, width = segany.frame.original_size
        masks_wh = np.empty((len(low_res), width, height), dtype=bool)
        for i, logit in enumerate(low_res):
            masks_wh[i] = _full_size(segany, logit)[0]
    return PromptedMasks(masks_wh.transpose(0, 2, 1), segany.sam.as_mask_input(low_res))


def _chosen(
    segany: SegAny,
    logits: Tensor,
    predicted_iou: Tensor,
    choice: MaskChoice,
    prompts: Prompts,
    targets: np.ndarray | None,
) -> Tensor:
    """Return the low-res logits that count, (N, 1, S/4, S/4)."""
    scores = predicted_iou.float().cpu().numpy()
    boxes = None if prompts.boxes_xyxy is None else prompts.boxes_xyxy.cpu().numpy()
    best = [
        chosen_mask(
            choice,
            scores[i],
            lambda i=i: _full_size(segany, logits[i]).transpose(0, 2, 1),
            None if targets is None else targets[i],
            None if boxes is None else boxes[i],
        )
        for i in range(len(logits))
    ]
    return logits[torch.arange(len(logits)), best][:, None]


def _full_size(segany: SegAny, low_res: Tensor) -> np.ndarray:
    """Return masks (M, W, H) bool of low-res logits (M, S/4, S/4)."""
    return (segany.frame.logits_to_original(low_res) > MASK_THRESHOLD).cpu().numpy()


def counted_objects(truth: GroundTruth, min_area: float) -> GroundTruth:
    """Return the objects that have a pixel, and an annotated area of at least ``min_area`` square pixels."""
    pixels = areas(truth.rles).tolist()
    kept = [i for i, count in enumerate(pixels) if count and truth.areas[i] >= min_area]
    return GroundTruth(
        truth.image_id,
        truth.size,
        [truth.rles[i] for i in kept],
        [truth.areas[i] for i in kept],
        [truth.frequencies[i] for i in kept],
    )
