"""A SAM 2 that starts from a SAM: its coarsest level learns SAM's embedding, and SAM's decoder reads that."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import torch
from torch import nn

from mobilesamv2.models.mask_decoder import MLP
from mobilesamv2.models.pyramid import PyramidNeck
from mobilesamv2.models.sam import Sam
from mobilesamv2.models.sam2 import Sam2
from mobilesamv2.transforms import Resizing

logger = logging.getLogger(__name__)

IOU_SLOPE, IOU_CENTRE = 4.0, 0.5
"""sigmoid(4 (x - .5)) is within .12 of an IoU x: SAM predicts it as it is, SAM 2 through a sigmoid."""


def is_sam2_of_sam(student: Sam, teacher: Sam) -> bool:
    """Return whether a SAM 2 is to learn from a SAM."""
    return isinstance(student, Sam2) and teacher.resizing is Resizing.LONGEST_SIDE


def start_from_sam(student: Sam, teacher: Sam) -> None:
    """Give a SAM 2 the prompt encoder and mask decoder of a SAM, and finer levels that add nothing yet.

    Where the coarsest level of its embedding is SAM's, it then returns nearly SAM's masks. The two differ by tokens
    that SAM lacks, which the others attend to: of the object's presence, and of padding beside a box. The former starts
    as the mean of the mask tokens; a random one changes many masks. The head of the object's presence stays as it is.
    Only the coarsest level is left to train; training by masks goes on with the finer ones.

    Raises:
        ValueError: if the teacher's mask decoder has other tensors than a SAM's of the student's size.
    """
    ours, theirs = student.mask_decoder.state_dict(), teacher.mask_decoder.state_dict()
    own = {key: value for key, value in ours.items() if key.startswith(("obj_score_token.", "pred_obj_score_head."))}
    shapes = [{key: value.shape for key, value in state.items()} for state in (own | theirs, ours)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"A SAM 2 can start from a SAM of its own embedding and decoder alone, got {teacher.name} for "
            f"{student.name}."
        )
    student.prompt_encoder.load_state_dict(teacher.prompt_encoder.state_dict())
    own["obj_score_token.weight"] = theirs["mask_tokens.weight"].mean(0, keepdim=True)
    student.mask_decoder.load_state_dict(own | theirs)
    _predict_iou_by_sigmoid(student.mask_decoder.iou_prediction_head)
    thresholds = teacher.thresholds
    student.thresholds = replace(thresholds, pred_iou_thresh=_sigmoid_of_iou(thresholds.pred_iou_thresh))
    neck = student.image_encoder.get_submodule("neck")
    assert isinstance(neck, PyramidNeck)
    for narrow in neck.narrowing():
        narrow.requires_grad_(False)
        for parameter in narrow.parameters():
            nn.init.zeros_(parameter)
    neck.convs[2:].requires_grad_(False)  # of the maps of strides 8 and 4
    logger.info(
        "%s starts from the prompt encoder and mask decoder of %s, all but the object's presence. Its coarsest level "
        "learns %s's embedding, of images that are padded as that takes them; its finer levels are 0. "
        "task=finetune_decoder task.image_encoder=full trains all of it.",
        *(student.name, teacher.name, teacher.name),
    )


def _sigmoid_of_iou(iou: float) -> float:
    """Return what the student predicts where the teacher predicts an IoU: .82 for SAM's .88."""
    return 1 / (1 + math.exp(-IOU_SLOPE * (iou - IOU_CENTRE)))


@torch.no_grad()
def _predict_iou_by_sigmoid(head: MLP) -> None:
    """Have a head that predicts IoU as it is predict the logit of about the same IoU."""
    last = head.layers[-1]
    assert isinstance(last, nn.Linear)
    last.weight.mul_(IOU_SLOPE)
    last.bias.sub_(IOU_CENTRE).mul_(IOU_SLOPE)
