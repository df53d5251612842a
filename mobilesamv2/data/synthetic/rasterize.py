"""Rasterization of the objects of a synthetic scene, and the masks of their visible parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mobilesamv2.data.synthetic.layout import SceneObject

MIN_VISIBLE = 12
"""Visible pixels that an object needs to be annotated."""


@dataclass
class Layer:
    """Pixels that one object covers; its parts, their parts and so on are the layers after it, up to ``end``."""

    item: SceneObject
    box: tuple[slice, slice]
    cover: np.ndarray  # (h, w) bool, within the box
    parent: int | None
    end: int = 0


def rasterize(items: list[SceneObject], size: tuple[int, int]) -> list[Layer]:
    """Return the pixels that objects cover, in painting order; a part covers nothing outside its parent."""
    layers: list[Layer] = []

    def add_layer(item: SceneObject, parent: int | None) -> None:
        rows, columns = (slice(0, length) for length in size) if parent is None else layers[parent].box
        covered = _cover(item, rows, columns)
        if covered is None:
            return
        box, cover = covered
        if parent is not None:
            parent_layer = layers[parent]
            inside = np.s_[
                box[0].start - rows.start : box[0].stop - rows.start,
                box[1].start - columns.start : box[1].stop - columns.start,
            ]
            cover &= parent_layer.cover[inside]
        layer, number = Layer(item, box, cover, parent), len(layers)
        layers.append(layer)
        for part in item.parts:
            add_layer(part, number)
        layer.end = len(layers)

    for item in items:
        add_layer(item, None)
    return layers


def _cover(item: SceneObject, rows: slice, columns: slice) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """Return the pixels whose centre lies in an object: their box in rows and columns, (h, w) bool; None if none."""
    cosine, sine = item.radius * math.cos(item.angle), item.radius * math.sin(item.angle)
    points = np.concatenate(item.outline) @ np.array([[cosine, sine], [-sine, cosine]]) + item.centre
    points = np.round(points * 256) / 256  # the same on every machine, regardless of how sines are rounded
    left, top = np.maximum(np.floor(points.min(0)).astype(int), (columns.start, rows.start)).tolist()
    right, bottom = np.minimum(np.ceil(points.max(0)).astype(int), (columns.stop, rows.stop)).tolist()
    width, height = right - left, bottom - top
    if width < 1 or height < 1:
        return None
    after = np.arange(1, len(points) + 1)
    end = 0
    for contour in item.outline:  # a contour's last point connects to its first
        after[end + len(contour) - 1] = end
        end += len(contour)
    (x0, y0), (x1, y1) = points.T, points[after].T
    line = np.arange(top, bottom)[:, None] + 0.5
    row, edge = np.nonzero((y0 <= line) != (y1 <= line))
    at = x0[edge] + (row + top + 0.5 - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    column = np.clip(np.ceil(at - 0.5) - left, 0, width).astype(int)
    crossings = np.bincount(row * (width + 1) + column, minlength=height * (width + 1)).reshape(height, width + 1)
    return (slice(top, bottom), slice(left, right)), np.cumsum(crossings[:, :-1], 1) % 2 == 1


def visible_masks(layers: list[Layer], size: tuple[int, int]) -> np.ndarray:
    """Return masks (G, H, W): each object and each part, except where something painted later hides it."""
    top = np.full(size, -1)
    for i, layer in enumerate(layers):
        top[layer.box][layer.cover] = i
    visible = np.append(0, np.cumsum(np.bincount(top[top >= 0], minlength=len(layers))))
    areas = [int(visible[layer.end] - visible[i]) for i, layer in enumerate(layers)]
    chosen = [
        i
        for i, layer in enumerate(layers)
        # a part that hides all of its parent would be annotated twice
        if areas[i] >= MIN_VISIBLE and (layer.parent is None or areas[i] < areas[layer.parent])
    ]
    masks = np.zeros((len(chosen), *size), dtype=bool)
    for mask, i in zip(masks, chosen, strict=True):
        box = layers[i].box
        mask[box] = (top[box] >= i) & (top[box] < layers[i].end)
    return masks
