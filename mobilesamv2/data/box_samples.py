"""Training samples of a prompt head: an image as the encoder's input, with the boxes of all of its objects."""

from __future__ import annotations

import torch
from torch.utils.data import default_collate
from typing_extensions import override

from mobilesamv2.data.detection_samples import first_of_duplicates
from mobilesamv2.data.samples import EncoderSamples, Sample
from mobilesamv2.masks import areas, tight_boxes
from mobilesamv2.structures import GroundTruth
from mobilesamv2.transforms import ModelFrame

SHORTEST_SIDE = 1.0
"""Pixels of the model's input; boxes with a shorter side are left out."""


class BoxSamples(EncoderSamples):
    """Images as input of the image encoder, and the boxes of their objects; arguments as for ``EncoderSamples``."""

    reads_objects = True

    @override
    def __getitem__(self, index: int) -> Sample:
        """Return the encoder's sample with the boxes of the image's objects.

        Returns:
            Beside the encoder's keys: ``boxes_xyxy`` (G, 4), pixels of the model's input, each enclosing a mask, and
            ``areas`` (G,), the annotations', square pixels of the image.
        """
        sample, truth = self._annotated_sample(index)
        boxes, annotated_areas = object_boxes(truth, self._frame(truth.size))
        return sample | {"boxes_xyxy": boxes, "areas": annotated_areas}

    @override
    def collate(self, samples: list[Sample]) -> Sample:
        """Collate samples to a batch; ``boxes_xyxy`` and ``areas`` are lists of B tensors."""
        lists = {key: [sample[key] for sample in samples] for key in ("boxes_xyxy", "areas")}
        rest = [{key: value for key, value in sample.items() if key not in lists} for sample in samples]
        return default_collate(rest) | lists


def object_boxes(truth: GroundTruth, frame: ModelFrame) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the boxes (G, 4) of an image's objects in the model's frame, and the objects' areas (G,).

    Objects without a pixel, those whose box equals an earlier one's, and boxes shorter than ``SHORTEST_SIDE`` are left
    out.
    """
    filled = [i for i, area in enumerate(areas(truth.rles).tolist()) if area]
    corners = tight_boxes([truth.rles[i] for i in filled])
    first = first_of_duplicates(corners)
    boxes = frame.boxes_to_model(corners[first])
    annotated = torch.tensor(truth.areas, dtype=torch.float64)[filled][first]
    is_kept = (boxes[:, 2:] - boxes[:, :2] >= SHORTEST_SIDE).all(1)
    return boxes[is_kept], annotated[is_kept]
