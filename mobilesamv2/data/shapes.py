"""Drawn scenes: textured, overlapping, nested shapes with exact masks, seeded, as many as one likes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from mobilesamv2.data.annotated_images import AnnotatedImages
from mobilesamv2.masks import encode
from mobilesamv2.structures import GroundTruth

MIN_VISIBLE = 12
"""Pixels of an object that must remain in sight, or it is not annotated."""

_SMALLEST, _LARGEST = 4.0, 0.28
"""Radius of objects: pixels, and as a share of the image's side."""


@dataclass
class _Paint:
    """One layer: what it covers, and the object that it is a part of."""

    cover: np.ndarray  # (H, W) bool
    parent: int | None


def draw_scene(seed: int | tuple[int, ...], size: tuple[int, int] = (256, 256)) -> tuple[np.ndarray, np.ndarray]:
    """Draws one scene.

    Objects are painted one over another, the largest first; half of those with room carry parts, which belong to them
    and are annotated beside them. An object's mask is what remains in sight of it and of its parts.

    Args:
        seed: the same seed draws the same scene.
        size: (H, W), pixels.

    Returns:
        RGB uint8 (H, W, 3), and masks (G, H, W) bool, each of 12 pixels or more.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    image = _texture(rng, size)
    layers: list[_Paint] = []
    radii = np.exp(rng.uniform(math.log(_SMALLEST), math.log(_LARGEST * min(size)), rng.integers(6, 25)))
    for radius in sorted(radii, reverse=True):
        centre = rng.uniform(0, width), rng.uniform(0, height)
        whole = len(layers)
        layers.append(_Paint(_shape(rng, centre, radius, size), None))
        _paint(rng, image, layers[-1].cover)
        if radius > 14 and rng.random() < 0.5:
            for _ in range(rng.integers(1, 4)):
                angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.6) * radius
                spot = centre[0] + distance * math.cos(angle), centre[1] + distance * math.sin(angle)
                part = _shape(rng, spot, rng.uniform(0.15, 0.35) * radius, size) & layers[whole].cover
                layers.append(_Paint(part, whole))
                _paint(rng, image, part)
    noise = rng.normal(0, rng.uniform(0, 8), (height, width, 1))
    return np.clip(image + noise, 0, 255).astype(np.uint8), _visible(layers, size)


def _visible(layers: list[_Paint], size: tuple[int, int]) -> np.ndarray:
    """(G, H, W): each object and each part, as far as nothing painted later hides it."""
    top = np.full(size, -1)
    for i, layer in enumerate(layers):
        top[layer.cover] = i
    owner = np.array([i if layer.parent is None else layer.parent for i, layer in enumerate(layers)])
    masks = []
    for i, layer in enumerate(layers):
        mask = top == i if layer.parent is not None else (top >= 0) & (owner[top] == i)
        if mask.sum() >= MIN_VISIBLE:
            masks.append(mask)
    return np.stack(masks) if masks else np.zeros((0, *size), dtype=bool)


def _shape(rng: np.random.Generator, centre: tuple[float, float], radius: float, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: an ellipse, a polygon, a star or a blob."""
    family = rng.integers(4)
    corners = (64, int(rng.integers(3, 7)), 2 * int(rng.integers(4, 8)), 64)[family]
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    reach = np.ones(corners)
    if family == 2:
        reach[1::2] = rng.uniform(0.4, 0.7)
    elif family == 3:
        for frequency in range(2, 6):
            reach += rng.normal(0, 0.35 / frequency) * np.cos(frequency * angles + rng.uniform(0, 2 * math.pi))
        reach = np.clip(reach, 0.3, 1.6)
    stretch, turn = rng.uniform(0.4, 1), rng.uniform(0, 2 * math.pi)
    x, y = radius * reach * np.cos(angles), radius * reach * stretch * np.sin(angles)
    outline = np.stack([x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)], 1) + centre
    canvas = Image.new("1", (size[1], size[0]))
    ImageDraw.Draw(canvas).polygon([(float(a), float(b)) for a, b in outline], fill=1)
    return np.asarray(canvas)


def _paint(rng: np.random.Generator, image: np.ndarray, cover: np.ndarray) -> None:
    """Fills what a layer covers with a texture of its own."""
    rows, columns = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
    if len(rows) == 0:
        return
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside = cover[box]
    image[box][inside] = _texture(rng, inside.shape)[inside]


def _texture(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """(H, W, 3) float: plain, shaded, striped, chequered or mottled, in two colours."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    turn, period = rng.uniform(0, 2 * math.pi), rng.uniform(3, 16)
    along = x * math.cos(turn) + y * math.sin(turn)
    across = y * math.cos(turn) - x * math.sin(turn)
    kind = rng.integers(5)
    if kind == 0:
        blend = np.zeros(size)
    elif kind == 1:
        blend = (along - along.min()) / max(1.0, float(np.ptp(along)))
    elif kind == 2:
        blend = (np.sin(2 * math.pi * along / period) > 0).astype(float)
    elif kind == 3:
        blend = ((np.floor(along / period) + np.floor(across / period)) % 2).astype(float)
    else:
        blend = 0.5 + 0.5 * np.sin(2 * math.pi * along / period) * np.sin(2 * math.pi * across / (1.7 * period))
    first, second = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    second = first + (second - first) * rng.uniform(0.2, 0.7)
    return first + blend[..., None] * (second - first)


class ShapesDataset(AnnotatedImages):
    """Drawn scenes, each drawn when it is asked for; a loader's workers draw ahead.

    Args:
        limit: number of scenes, named as in the other data sets.
        size: (H, W), pixels.
        seed: two data sets of different seeds share no scene.
    """

    def __init__(self, limit: int, size: tuple[int, int] = (256, 256), seed: int = 0) -> None:
        if limit < 1:
            raise ValueError(f"limit is a number of scenes, 1 or more; got {limit}.")
        self.limit = limit
        self.size = (size[0], size[1])
        self.seed = seed

    @property
    def image_ids(self) -> list[int]:
        """Numbers of the scenes."""
        return list(range(self.limit))

    @property
    def provenance(self) -> dict[str, Any]:
        """What the scenes are drawn from."""
        return {"annotations": f"drawn scenes, size {self.size}, seed {self.seed}", "annotations_sha256": None}

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
        image, masks = draw_scene((self.seed, index), self.size)
        return image, GroundTruth(
            image_id=index,
            size=self.size,
            rles=encode(torch.from_numpy(masks).transpose(1, 2)) if len(masks) else [],
            areas=[float(mask.sum()) for mask in masks],
            frequencies=[None] * len(masks),
        )
