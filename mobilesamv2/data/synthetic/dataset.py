"""Data set of synthetic scenes: exact masks, seeded, in any number."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from typing_extensions import override

from mobilesamv2.data.base import ImageDataset
from mobilesamv2.data.synthetic.render import SPLITS, find_material, render_scene
from mobilesamv2.masks import encode
from mobilesamv2.ranges import Count, NonNegativeInt
from mobilesamv2.structures import GroundTruth


class SyntheticDataset(ImageDataset):
    """Synthetic scenes, each rendered when it is read; a loader's workers render ahead.

    Args:
        limit: number of scenes; the name is that of the other data sets.
        size: (H, W), pixels.
        seed: two data sets with different seeds share no scene.
        split: "train", or "test" for scenes to evaluate on, with shape families and textures that "train" lacks.
        layout: "lvis", with the sizes and the number of objects of LVIS's images, or "hard": more and smaller objects.

    Raises:
        ValueError: if there is no scene, or no such split or layout.
    """

    def __init__(
        self,
        limit: Count,
        size: tuple[Count, Count] = (256, 256),
        seed: NonNegativeInt = 0,
        split: str = "train",
        layout: str = "lvis",
    ) -> None:
        if limit < 1:
            raise ValueError(f"limit, a number of scenes, must be at least 1, got {limit}.")
        find_material(split, layout)
        self.limit = limit
        self.size = (size[0], size[1])
        self.seed = seed
        self.split = split
        self.layout = layout

    @property
    @override
    def image_ids(self) -> list[int]:
        return list(range(self.limit))

    @property
    @override
    def provenance(self) -> dict[str, Any]:
        """Return the settings the scenes are rendered from, under ``annotations``."""
        version = SPLITS[self.split].version
        scenes = f"synthetic scenes, split {self.split} (version {version}), layout {self.layout}, size {self.size}"
        scenes += f", seed {self.seed}"
        return {"annotations": scenes, "annotations_sha256": None}

    @override
    def content_hash(self, index: int) -> str:
        """Return what a scene is rendered from, its settings and its number, without rendering it."""
        return f"{index} of {self.provenance['annotations']}"

    @override
    def load_image(self, index: int) -> np.ndarray:
        return self[index][0]

    @override
    def ground_truth(self, index: int) -> GroundTruth:
        return self[index][1]

    @override
    def __getitem__(self, index: int) -> tuple[np.ndarray, GroundTruth]:
        """Render a scene, RGB uint8 (H, W, 3), and its objects with the image id ``index``.

        Raises:
            IndexError: if there is no such scene.
        """
        if not 0 <= index < self.limit:
            raise IndexError(f"Scene {index} is out of range: there are {self.limit} scenes.")
        image, masks = render_scene((self.seed, index), self.size, self.split, self.layout)
        return image, GroundTruth(
            image_id=index,
            size=self.size,
            rles=encode(torch.from_numpy(masks).transpose(1, 2)) if len(masks) else [],
            areas=[float(mask.sum()) for mask in masks],
            frequencies=[None] * len(masks),
        )
