"""The data set of drawn scenes: exact masks, seeded, as many as one likes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mobilesamv2.data.annotated_images import AnnotatedImages
from mobilesamv2.data.drawing import draw_scene
from mobilesamv2.data.worlds import find_world
from mobilesamv2.masks import encode
from mobilesamv2.structures import GroundTruth


class ShapesDataset(AnnotatedImages):
    """Drawn scenes, each drawn when it is asked for; a loader's workers draw ahead.

    Args:
        limit: number of scenes, named as in the other data sets.
        size: (H, W), pixels.
        seed: two data sets of different seeds share no scene.
        world: "train", or "test" for scenes to measure on, of shape families and textures that "train" doesn't have.

    Raises:
        ValueError: there is no scene, or no such world.
    """

    def __init__(self, limit: int, size: tuple[int, int] = (256, 256), seed: int = 0, world: str = "train") -> None:
        if limit < 1:
            raise ValueError(f"limit is a number of scenes, 1 or more; got {limit}.")
        find_world(world)
        self.limit = limit
        self.size = (size[0], size[1])
        self.seed = seed
        self.world = world

    @property
    def image_ids(self) -> list[int]:
        """Numbers of the scenes."""
        return list(range(self.limit))

    @property
    def provenance(self) -> dict[str, Any]:
        """What the scenes are drawn from."""
        scenes = f"drawn scenes, world {self.world}, size {self.size}, seed {self.seed}"
        return {"annotations": scenes, "annotations_sha256": None}

    def load_image(self, index: int) -> np.ndarray:
        """RGB uint8 (H, W, 3)."""
        return self[index][0]

    def ground_truth(self, index: int) -> GroundTruth:
        """The objects of a scene."""
        return self[index][1]

    def __getitem__(self, index: int) -> tuple[np.ndarray, GroundTruth]:
        """RGB uint8 (H, W, 3), and its objects under the image id ``index``."""
        if not 0 <= index < self.limit:
            raise IndexError(f"There are {self.limit} scenes, and number {index} was asked for.")
        image, masks = draw_scene((self.seed, index), self.size, self.world)
        return image, GroundTruth(
            image_id=index,
            size=self.size,
            rles=encode(torch.from_numpy(masks).transpose(1, 2)) if len(masks) else [],
            areas=[float(mask.sum()) for mask in masks],
            frequencies=[None] * len(masks),
        )
