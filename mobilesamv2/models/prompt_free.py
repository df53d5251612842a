"""Segments everything without a prompt, FastSAM's way: the masks of a YOLO with a segmentation head."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mobilesamv2.models.object_detector import ObjectDetector, unletterbox
from mobilesamv2.models.prototype_masks import encode_prototype_masks
from mobilesamv2.structures import RLE


class NetworkOutput(NamedTuple):
    """What the network says of one image.

    Attributes:
        size: (H, W) of the image, pixels.
        input_size: (h, w) of the network's input, pixels.
        predictions: of ``ObjectDetector.predict``.
        prototypes: (C, h/4, w/4).
    """

    size: tuple[int, int]
    input_size: tuple[int, int]
    predictions: Tensor
    prototypes: Tensor


class FoundMasks(NamedTuple):
    """The D masks of one image, the most confident first.

    Attributes:
        rles: at the size of the image, each covering a pixel at least.
        boxes_xyxy: (D, 4), pixels of the image: what the network says, and each mask is cut by.
        scores: (D,) confidence in [0, 1].
    """

    rles: list[RLE]
    boxes_xyxy: Tensor
    scores: Tensor


class PromptFree(nn.Module):
    """Finds a mask of each object by one pass of one network.

    Classes play no part: a mask's confidence is that of its most likely class, and NMS is between all boxes.

    Args:
        detector: a model with a segmentation head, ``build_detector(checkpoint="FastSAM-x.pt")`` for example.
        confidence: masks of less are dropped.
        nms_iou: of two boxes that overlap by more, the more confident stays.
        max_masks: at most so many boxes an image, the most confident; those without a pixel of mask are then dropped.

    Source: FastSAM, section 3.1. The defaults are those of its published validation but for the number of masks, 100
    there. FastSAM's own predictor widens boxes that nearly cover the image to all of it; here they stay, as in
    ultralytics, whose masks these are.

    Raises:
        ValueError: the detector has no prototypes, or a setting is out of its range.
    """

    def __init__(
        self, detector: ObjectDetector, confidence: float = 0.001, nms_iou: float = 0.9, max_masks: int = 1000
    ) -> None:
        super().__init__()
        if not hasattr(detector.model.model[-1], "proto"):  # pyright: ignore
            raise ValueError(
                "The detector gives boxes and no masks. Masks without prompts want a head with prototypes: "
                "detector=fastsam_x, fastsam_s, or an architecture that ends in -seg."
            )
        if not (0 <= confidence <= 1 and 0 <= nms_iou <= 1):
            raise ValueError(f"confidence and nms_iou are from 0 to 1; got {confidence} and {nms_iou}.")
        if max_masks < 1:
            raise ValueError(f"max_masks is 1 or more; got {max_masks}.")
        self.detector = detector
        self.confidence = confidence
        self.nms_iou = nms_iou
        self.max_masks = max_masks

    def forward(self, image: np.ndarray) -> FoundMasks:
        """Every mask of an image, RGB uint8 (H, W, 3), on the CPU.

        Raises:
            ValueError: it is not such an array.
        """
        return self.masks(self.predict(image))

    @torch.inference_mode()
    def predict(self, image: np.ndarray) -> NetworkOutput:
        """The pass of the network on an image, RGB uint8 (H, W, 3).

        Raises:
            ValueError: it is not such an array.
        """
        pixels = self.detector.letterbox([image])
        predictions, prototypes = self.detector.predict(pixels, self.max_masks)
        assert prototypes is not None
        height, width = pixels.shape[2:]
        return NetworkOutput((image.shape[0], image.shape[1]), (height, width), predictions, prototypes[0])

    @torch.inference_mode()
    def masks(self, output: NetworkOutput) -> FoundMasks:
        """What comes after the network: NMS, and the masks of the boxes that stay."""
        (found,) = self.detector.suppress(
            output.predictions, self.confidence, self.nms_iou, self.max_masks, class_agnostic=True
        )
        boxes_xyxy = unletterbox(found[:, :4], output.input_size, output.size)
        encoded = encode_prototype_masks(output.prototypes, found[:, 6:], boxes_xyxy, output.size)
        filled = [i for i, rle in enumerate(encoded) if rle is not None]
        rles = [rle for rle in encoded if rle is not None]
        return FoundMasks(rles, boxes_xyxy[filled].cpu(), found[filled, 4].cpu())
