"""Which of a prompt's masks is scored: the published figures of one model differ by it more than models do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

MaskChoice = Literal["by_prompt", "single", "predicted_iou", "oracle", "box_overlap"]
"""``single``: the decoder's one mask. Of its three masks: ``predicted_iou``, the one of the highest predicted IoU;
``oracle``, of the highest IoU with the annotated object; ``box_overlap``, of the highest IoU with the prompted box,
taken as a mask. ``by_prompt``: ``predicted_iou`` for a point without anything else, ``single`` for all other prompts.

Source: ``by_prompt`` is how SAM is trained (appendix A), ``oracle`` its appendix D.1. ``predicted_iou`` for all prompts
is EfficientSAM's section 4.3 and the released code of EfficientViT-SAM and TinySAM; ``box_overlap`` is EfficientSAM's
rule for a detector's boxes, section 4.3.
"""


def check_mask_choice(choice: str, choices: tuple[str, ...] = get_args(MaskChoice)) -> None:
    """Check that a task knows a choice.

    Raises:
        ValueError: if it does not.
    """
    if choice not in choices:
        raise ValueError(f"task.mask_choice must be one of {', '.join(choices)}, got {choice}.")


def wants_three(choice: MaskChoice, is_one_point: bool) -> bool:
    """Return whether the decoder is asked for three masks, of which one is then chosen.

    Args:
        choice: the rule.
        is_one_point: whether the prompt is a point without anything else, which is ambiguous.
    """
    return is_one_point if choice == "by_prompt" else choice != "single"


def chosen_mask(
    choice: MaskChoice,
    predicted_iou: np.ndarray,
    masks: Callable[[], np.ndarray],
    target: np.ndarray | None = None,
    box_xyxy: np.ndarray | None = None,
) -> int:
    """Return the index of the mask that counts; among equals the first.

    Args:
        choice: the rule.
        predicted_iou: (M,).
        masks: returns (M, H, W) bool; called by the rules that look at pixels alone.
        target: (H, W) bool, the annotated object, for ``oracle``.
        box_xyxy: (4,) pixels of the image, for ``box_overlap``.

    Raises:
        ValueError: if ``oracle`` has no object, or ``box_overlap`` no box.
    """
    if len(predicted_iou) == 1:
        return 0
    if choice not in ("oracle", "box_overlap"):
        return int(np.argmax(predicted_iou))
    pixels = masks()
    if choice == "box_overlap":
        if box_xyxy is None:
            raise ValueError("task.mask_choice=box_overlap compares masks with a box: the prompts must be boxes.")
        target = _filled(box_xyxy, pixels.shape[1:])
    if target is None:
        raise ValueError("task.mask_choice=oracle compares masks with the annotated object, and there is none.")
    return int(np.argmax(mask_ious(pixels, target)))


def mask_ious(masks: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the IoU (N,) of masks (N, H, W) bool with others, (N, H, W) or one (H, W); two empty masks agree."""
    overlap, union = (masks & targets).sum((1, 2)), (masks | targets).sum((1, 2))
    return np.where(union > 0, overlap / np.maximum(union, 1), 1.0)


def _filled(box_xyxy: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return the pixels whose centre is in a box as a mask (H, W)."""
    y, x = (np.arange(length) + 0.5 for length in size)
    x0, y0, x1, y1 = box_xyxy
    return ((y0 <= y) & (y < y1))[:, None] & ((x0 <= x) & (x < x1))
