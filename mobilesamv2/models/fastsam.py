"""Prompt-free segmentation of everything as in FastSAM: the masks of a YOLO with a segmentation head."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mobilesamv2.models.object_detector import ObjectDetector, unletterbox
from mobilesamv2.models.yolo_masks import encode_prototype_masks
from mobilesamv2.structures import RLE


class RawOutput(NamedTuple):
    """Output of the network for one image, before NMS.

    Attributes:
        size: (H, W) of the image, pixels.
        input_size: (h, w) of the network's input, pixels.
        predictions: from ``ObjectDetector.forward_raw``.
        prototypes: (C, h/4, w/4).
    """

    size: tuple[int, int]
    input_size: tuple[int, int]
    predictions: Tensor
    prototypes: Tensor


class ScoredMasks(NamedTuple):
    """D masks of one image, sorted by score.

    Attributes:
        rles: at the size of the image, each of at least one pixel.
        boxes_xyxy: (D, 4), pixels of the image, predicted by the network; each mask is cropped by its box.
        scores: (D,) confidence in [0, 1].
    """

    rles: list[RLE]
    boxes_xyxy: Tensor
    scores: Tensor


class FastSam(nn.Module):
    """Segmenter of all objects in one forward pass of one network.

    Classes are ignored: a mask's confidence is that of its most likely class, and NMS is class-agnostic.

    Args:
        detector: a model with a segmentation head, ``build_detector(checkpoint="FastSAM-x.pt")`` for example.
        confidence: masks with a lower confidence are dropped.
        nms_iou: of two boxes with a higher IoU, only the more confident one is kept.
        max_masks: at most this number of boxes per image, the most confident; then empty masks are dropped.

    Source: FastSAM, section 3.1. The defaults are those of its published validation except for the number of masks, 100
    there. FastSAM's own predictor widens boxes that nearly cover the image to the full image; here they stay unchanged,
    as in ultralytics, whose masks these are.

    Raises:
        ValueError: if the detector has no prototypes, or a setting is out of its range.
    """

    def __init__(
        self, detector: ObjectDetector, confidence: float = 0.001, nms_iou: float = 0.9, max_masks: int = 1000
    ) -> None:
        super().__init__()
        if not hasattr(detector.model.model[-1], "proto"):  # pyright: ignore
            raise ValueError(
                "detector must have a segmentation head with prototypes, got one that predicts boxes only. "
                "Use detector=fastsam_x, fastsam_s, or an architecture that ends in -seg."
            )
        if not (0 <= confidence <= 1 and 0 <= nms_iou <= 1):
            raise ValueError(f"confidence and nms_iou must be in [0, 1], got {confidence} and {nms_iou}.")
        if max_masks < 1:
            raise ValueError(f"max_masks must be at least 1, got {max_masks}.")
        self.detector = detector
        self.confidence = confidence
        self.nms_iou = nms_iou
        self.max_masks = max_masks

    def forward(self, image: np.ndarray) -> ScoredMasks:
        """Segment all objects of an image, RGB uint8 (H, W, 3); return their masks on the CPU.

        Raises:
            ValueError: if `image` is not a uint8 array of shape (H, W, 3).
        """
        return self.masks(self.predict(image))

    @torch.inference_mode()
    def predict(self, image: np.ndarray) -> RawOutput:
        """Run the network on an image, RGB uint8 (H, W, 3).

        Raises:
            ValueError: if `image` is not a uint8 array of shape (H, W, 3).
        """
        pixels = self.detector.letterbox([image])
        predictions, prototypes = self.detector.forward_raw(pixels, self.max_masks)
        assert prototypes is not None
        height, width = pixels.shape[2:]
        return RawOutput((image.shape[0], image.shape[1]), (height, width), predictions, prototypes[0])

    @torch.inference_mode()
    def masks(self, output: RawOutput) -> ScoredMasks:
        """Apply NMS to the network's output, and encode the masks of the kept boxes."""
        (detections,) = self.detector.nms(
            output.predictions, self.confidence, self.nms_iou, self.max_masks, class_agnostic=True
        )
        boxes_xyxy = unletterbox(detections[:, :4], output.input_size, output.size)
        encoded = encode_prototype_masks(output.prototypes, detections[:, 6:], boxes_xyxy, output.size)
        non_empty = [i for i, rle in enumerate(encoded) if rle is not None]
        rles = [rle for rle in encoded if rle is not None]
        return ScoredMasks(rles, boxes_xyxy[non_empty].cpu(), detections[non_empty, 4].cpu())
