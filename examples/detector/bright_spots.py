"""Detector without a network."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


class BrightSpots:
    """Boxes of connected pixels that are brighter than their image's mean; larger boxes are more confident.

    Args:
        min_area: boxes of a smaller area are dropped, square pixels.
    """

    def __init__(self, min_area: int = 16) -> None:
        self.min_area = min_area

    def detect(
        self, image: np.ndarray, *, confidence: float, nms_iou: float, max_boxes: int, snap: int
    ) -> tuple[Tensor, Tensor]:
        """Return boxes (N, 4) xyxy, pixels of the image, and their confidence (N,), sorted by it, highest first.

        The confidence is the box's share of the image. Spots are few and apart, so only ``max_boxes`` is read.
        """
        grey = image.mean(2)
        numbers, _ = ndimage.label(grey > grey.mean())  # pyright: ignore
        corners = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(numbers)]
        boxes_xyxy = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
        areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1)
        order = areas.argsort(descending=True)[:max_boxes]
        order = order[areas[order] >= self.min_area]
        return boxes_xyxy[order], areas[order] / grey.size
