"""Rendering of synthetic scenes: nested, repeated, overlapping objects of all sizes in clutter, with exact masks."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from mobilesamv2.data.synthetic.layout import LAYOUTS, Layout, place_objects
from mobilesamv2.data.synthetic.rasterize import Layer, rasterize, visible_masks
from mobilesamv2.data.synthetic.shapes import TEST_FAMILIES, TRAIN_FAMILIES, Family
from mobilesamv2.data.synthetic.textures import TEST_TEXTURES, TRAIN_TEXTURES, Texture


@dataclass(frozen=True)
class Split:
    """Shape families and textures of a split.

    Args:
        families: shape families by name.
        textures: textures by name.
        number: part of the seeds, so that no scene of one split has the layout of one of the other.
        version: raised when its scenes change; figures of two versions can't be compared.
    """

    families: Mapping[str, Family]
    textures: Mapping[str, Texture]
    number: int
    version: int


SPLITS: Mapping[str, Split] = {
    "train": Split(TRAIN_FAMILIES, TRAIN_TEXTURES, 1, version=2),
    "test": Split(TEST_FAMILIES, TEST_TEXTURES, 2, version=1),
}
"""The two share no shape family and no texture, though single shapes of one can come close to some of the other."""


def find_material(split: str, layout: str) -> tuple[Split, Layout]:
    """Return a split and a layout by name.

    Raises:
        ValueError: if there is no such split or layout.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}.")
    return SPLITS[split], LAYOUTS[layout]


def render_scene(
    seed: int | tuple[int, ...], size: tuple[int, int] = (256, 256), split: str = "train", layout: str = "lvis"
) -> tuple[np.ndarray, np.ndarray]:
    """Render one scene.

    Objects are painted one over another, larger ones mostly first; they have parts, which may have parts of their own,
    all annotated beside them. An object's mask is the visible part of it and of its parts. Lines, specks, shadows and
    light are painted too and belong to no object; they are translucent and change no mask. The layout depends only on
    the random generator, hence masks are the same on every machine.

    Args:
        seed: the same seed renders the same scene.
        size: (H, W), pixels.
        split: "train" or "test", which share no shape family, no texture and no scene.
        layout: "lvis", with the sizes and the number of objects of LVIS's images, or "hard", with more objects, nearly
            all of them small.

    Returns:
        RGB uint8 (H, W, 3), and masks (G, H, W) bool, each of 12 pixels or more.

    Raises:
        ValueError: if there is no such split or layout.
    """
    material, object_layout = find_material(split, layout)
    seeds = seed if isinstance(seed, tuple) else (seed,)
    layout_rng, paint_rng = np.random.default_rng((*seeds, material.number)).spawn(2)
    layers = rasterize(place_objects(layout_rng, material.families, object_layout, size), size)
    return _paint_scene(paint_rng, material.textures, layers, size), visible_masks(layers, size)


def _paint_scene(
    rng: np.random.Generator, textures: Mapping[str, Texture], layers: list[Layer], size: tuple[int, int]
) -> np.ndarray:
    """Paint a scene, RGB uint8 (H, W, 3)."""
    image = np.zeros((*size, 3), np.float32)
    full_box = np.s_[: size[0], : size[1]]
    image[:] = _draw_colour(rng)
    _fill(rng, textures, image, full_box, None, min(size) / 4)
    if rng.random() < 0.5:  # a second background, beyond a slanted line
        y, x = np.mgrid[: size[0], : size[1]]
        beyond = y > size[0] * rng.uniform(0.2, 0.8) + rng.normal(0, 0.3) * (x - size[1] / 2)
        _fill(rng, textures, image, full_box, beyond, min(size) / 4)
    _clutter(rng, image, int(rng.integers(0, 25)), 0.75)
    shadow = rng.normal(0, 0.18, 2) if rng.random() < 0.5 else None
    seeds: dict[int, int] = {}
    for layer in layers:
        if shadow is not None and layer.parent is None:
            _drop_shadow(image, layer, shadow)
        seed = seeds.setdefault(layer.item.style_seed, int(rng.integers(2**62)))
        _fill(np.random.default_rng(seed), textures, image, layer.box, layer.cover, layer.item.radius)
    _clutter(rng, image, int(rng.integers(0, 10)), 0.5)
    image *= _illumination(rng, size)[..., None]
    return _camera_noise(rng, image)


def _draw_colour(rng: np.random.Generator) -> np.ndarray:
    """Draw a colour (3,) of any brightness, mostly muted."""
    colour = rng.uniform(15, 240) + rng.normal(0, (12, 35, 70)[rng.integers(3)], 3)
    return np.minimum(np.maximum(colour, 0), 255).astype(np.float32)


def _fill(
    rng: np.random.Generator,
    textures: Mapping[str, Texture],
    image: np.ndarray,
    box: tuple[slice, slice],
    cover: np.ndarray | None,
    radius: float,
) -> None:
    """Paint a box, or its covered pixels, with a texture in two colours, sometimes close to the background."""
    texture = list(textures.values())[rng.integers(len(textures))]
    region = image[box]
    height, width = region.shape[:2]
    x = np.broadcast_to(np.arange(width, dtype=np.float32) - width / 2, (height, width))
    y = np.broadcast_to(np.arange(height, dtype=np.float32)[:, None] - height / 2, (height, width))
    blend = texture(rng, x, y, radius)
    ground = region[:: 1 + height // 8, :: 1 + width // 8].reshape(-1, 3).mean(0)
    first = ground + (_draw_colour(rng) - ground) * rng.uniform(0.25, 1)
    if np.abs(first - ground).max() < 14:
        first = ground + (20 if ground.mean() < 128 else -20)
    second = first + (_draw_colour(rng) - first) * rng.uniform(0.15, 0.8)
    covered = np.s_[:] if cover is None else cover
    step = (second - first).astype(np.float32)
    region[covered] = first.astype(np.float32) + blend[covered][..., None].astype(np.float32) * step


def _drop_shadow(image: np.ndarray, layer: Layer, shadow: np.ndarray) -> None:
    """Darken the background beside an object."""
    shift = np.round(shadow * min(layer.item.radius, 40)).astype(int)
    (rows, columns), (height, width) = layer.box, image.shape[:2]
    top, left = max(0, rows.start + shift[1]), max(0, columns.start + shift[0])
    bottom, right = min(height, rows.stop + shift[1]), min(width, columns.stop + shift[0])
    if top < bottom and left < right:
        y, x = top - rows.start - shift[1], left - columns.start - shift[0]
        image[top:bottom, left:right] *= 1 - 0.45 * layer.cover[y : y + bottom - top, x : x + right - left, None]


def _clutter(rng: np.random.Generator, image: np.ndarray, number: int, strength: float) -> None:
    """Draw thin lines and specks that belong to no object."""
    height, width = image.shape[:2]
    if number == 0:
        return
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    for _ in range(number):
        opacity = int(255 * strength * rng.uniform(0.3, 1))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        if rng.random() < 0.5:
            draw.rectangle([x, y, x + rng.integers(0, 2), y + rng.integers(0, 2)], fill=opacity)
        else:
            bends = np.cumsum(rng.normal(0, 0.12 * min(height, width), (int(rng.integers(1, 5)), 2)), 0)
            draw.line(
                [(x, y), *((x + float(a), y + float(b)) for a, b in bends)], fill=opacity, width=int(rng.integers(1, 3))
            )
    drawn = np.nonzero(np.asarray(canvas))
    image[drawn] += np.asarray(canvas)[drawn][:, None] / np.float32(255) * (_draw_colour(rng) - image[drawn])


def _illumination(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Draw factors of brightness (H, W): brighter on one side, with soft shadows."""
    y, x = np.mgrid[-1:1:24j, -1:1:24j]
    light = 1 + rng.normal(0, 0.15) * x + rng.normal(0, 0.15) * y
    for _ in range(rng.integers(0, 4)):
        x0, y0, width, height = rng.uniform(-1, 1), rng.uniform(-1, 1), *rng.uniform(0.15, 0.7, 2)
        light *= 1 - rng.uniform(0.1, 0.5) * np.exp(-(((x - x0) / width) ** 2) - ((y - y0) / height) ** 2)
    coarse = Image.fromarray(light.astype(np.float32))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _camera_noise(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Return an image as a camera records it, RGB uint8 (H, W, 3): slightly blurred and noisy, often through JPEG."""
    neighbour_weight = np.float32(rng.uniform(0.08, 0.25))
    for axis in (0, 1):  # mix each pixel with its two neighbours
        first, last = np.take(image, [0], axis), np.take(image, [-1], axis)
        before, after = (np.delete(image, end, axis) for end in (-1, 0))
        image = (1 - 2 * neighbour_weight) * image
        image += neighbour_weight * np.concatenate([first, before], axis)
        image += neighbour_weight * np.concatenate([after, last], axis)
    image += rng.standard_normal((*image.shape[:2], 1), np.float32) * np.float32(rng.uniform(0, 7))
    noisy = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        return noisy
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=int(rng.integers(40, 95)))
    return np.array(Image.open(file))
