"""Draws one scene: nested, repeated, overlapping shapes of all sizes in clutter, with exact masks."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from mobilesamv2.data.worlds import Family, Outline, Texture, find_world

MIN_VISIBLE = 12
"""Pixels of an object that must remain in sight, or it is not annotated."""

_SMALLEST, _LARGEST = 2.4, 0.36
"""Radius of objects: pixels, and as a share of the image's shorter side."""

_FEWEST, _MOST = 24, 60
"""Objects and parts that are drawn; of them some are hidden, or too small to be annotated."""


@dataclass
class _Thing:
    """A shape in its place, with its parts."""

    outline: Outline
    centre: np.ndarray  # (2,) xy, pixels
    radius: float  # pixels
    turn: float
    look: int  # things of one look are painted alike
    parts: list[_Thing] = field(default_factory=list)

    def count(self) -> int:
        return 1 + sum(part.count() for part in self.parts)


@dataclass
class _Layer:
    """What one thing covers; its parts, theirs and so on are the layers after it, up to ``end``."""

    thing: _Thing
    box: tuple[slice, slice]
    cover: np.ndarray  # (h, w) bool, within the box
    parent: int | None
    end: int = 0


def draw_scene(
    seed: int | tuple[int, ...], size: tuple[int, int] = (256, 256), world: str = "train"
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one scene.

    Objects are painted one over another, larger ones mostly first; they carry parts, and these parts of their own,
    which are annotated beside them. An object's mask is what remains in sight of it and of its parts. Lines, specks,
    shadows and light are painted too and belong to no object; where they lie on one it shines through and its mask
    goes on. Where things are depends on nothing but the random generator, hence masks are the same everywhere.

    Args:
        seed: the same seed draws the same scene.
        size: (H, W), pixels.
        world: "train" or "test", which have no family of shapes and no texture in common, and no scene either.

    Returns:
        RGB uint8 (H, W, 3), and masks (G, H, W) bool, each of 12 pixels or more.

    Raises:
        ValueError: there is no such world.
    """
    material = find_world(world)
    seeds = seed if isinstance(seed, tuple) else (seed,)
    where, how = np.random.default_rng((*seeds, material.number)).spawn(2)
    layers = _layers(_things(where, material.families, size), size)
    return _picture(how, material.textures, layers, size), _visible(layers, size)


def _things(rng: np.random.Generator, families: Mapping[str, Family], size: tuple[int, int]) -> list[_Thing]:
    """The objects of a scene, in the order of painting."""
    things: list[_Thing] = []
    count, target = 0, math.exp(rng.uniform(math.log(_FEWEST), math.log(_MOST)))
    low, high = max(_SMALLEST, 0.01 * min(size)), max(1.5 * _SMALLEST, _LARGEST * min(size))
    while count < target:
        radius = low * (high / low) ** (rng.random() ** 0.9)
        room = int(target - count)
        if room >= 3 and rng.random() < 0.12:
            added = _cluster(rng, families, size, low * (0.25 * high / low) ** rng.random(), room)
        else:
            added = [_thing(rng, families, rng.uniform(0, 1, 2) * size[::-1], radius, room)]
        things += added
        count += sum(thing.count() for thing in added)
    return sorted(things, key=lambda thing: -thing.radius * math.exp(rng.normal(0, 0.4)))


def _new_look(rng: np.random.Generator) -> int:
    return int(rng.integers(2**62))


def _outline(rng: np.random.Generator, families: Mapping[str, Family]) -> Outline:
    return list(families.values())[rng.integers(len(families))](rng)


def _thing(
    rng: np.random.Generator,
    families: Mapping[str, Family],
    centre: np.ndarray,
    radius: float,
    room: int,
    depth: int = 0,
) -> _Thing:
    """An object or a part, with parts where there is room for them."""
    thing = _Thing(_outline(rng, families), centre, radius, rng.uniform(0, 2 * math.pi), _new_look(rng))
    if depth == 3 or radius < 3 * _SMALLEST or room < 2 or rng.random() < 0.45:
        return thing
    if room > 4 and radius > 8 * _SMALLEST and rng.random() < 0.3:
        thing.parts = _row(rng, families, thing, room - 1)
        return thing
    for _ in range(rng.integers(1, 4)):
        if thing.count() >= room:
            break
        angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.55) * radius
        spot = centre + distance * np.array([math.cos(angle), math.sin(angle)])
        part = max(_SMALLEST, rng.uniform(0.2, 0.55) * radius)
        thing.parts.append(_thing(rng, families, spot, part, room - thing.count(), depth + 1))
    return thing


def _row(rng: np.random.Generator, families: Mapping[str, Family], whole: _Thing, room: int) -> list[_Thing]:
    """Parts that are alike, in rows, as windows are."""
    columns, rows = int(rng.integers(2, 5)), int(rng.integers(1, 4))
    pitch = rng.uniform(0.9, 1.2) * whole.radius / columns
    outline, turn, look = _outline(rng, families), rng.uniform(0, 2 * math.pi), _new_look(rng)
    radius = max(_SMALLEST, rng.uniform(0.3, 0.45) * pitch)
    cosine, sine = math.cos(whole.turn), math.sin(whole.turn)
    parts = []
    for i in range(min(room, columns * rows)):
        x, y = pitch * (i % columns - (columns - 1) / 2), pitch * (i // columns - (rows - 1) / 2)
        centre = whole.centre + np.array([x * cosine - y * sine, x * sine + y * cosine])
        parts.append(_Thing(outline, centre, radius, turn, look))
    return parts


def _cluster(
    rng: np.random.Generator, families: Mapping[str, Family], size: tuple[int, int], radius: float, room: int
) -> list[_Thing]:
    """Small objects that are alike, in a row or in a heap, as fruits are."""
    outline, look, inner = _outline(rng, families), _new_look(rng), _new_look(rng)
    centre, turn, tilt = rng.uniform(0.1, 0.9, 2) * size[::-1], rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi)
    number = min(room, int(rng.integers(3, 13)))
    in_row, with_part = rng.random() < 0.5, radius > 3 * _SMALLEST and 2 * number <= room and rng.random() < 0.5
    step = rng.uniform(1.9, 3) * radius * np.array([math.cos(tilt), math.sin(tilt)])
    things = []
    for i in range(number):
        shift = (i - number / 2) * step if in_row else rng.normal(0, 0.9 * radius * math.sqrt(number), 2)
        own_turn = turn + rng.normal(0, 0.05) if in_row else rng.uniform(0, 2 * math.pi)
        thing = _Thing(outline, centre + shift, radius * rng.uniform(0.85, 1.15), own_turn, look)
        if with_part:
            thing.parts = [_Thing(outline, thing.centre, 0.45 * thing.radius, own_turn, inner)]
        things.append(thing)
    return things


def _layers(things: list[_Thing], size: tuple[int, int]) -> list[_Layer]:
    """What things cover, in the order of painting; a part covers nothing beyond what it is a part of."""
    layers: list[_Layer] = []

    def lay(thing: _Thing, parent: int | None) -> None:
        rows, columns = (slice(0, length) for length in size) if parent is None else layers[parent].box
        place = _rasterise(thing, rows, columns)
        if place is None:
            return
        box, cover = place
        if parent is not None:
            whole = layers[parent]
            inside = np.s_[
                box[0].start - rows.start : box[0].stop - rows.start,
                box[1].start - columns.start : box[1].stop - columns.start,
            ]
            cover &= whole.cover[inside]
        layer, number = _Layer(thing, box, cover, parent), len(layers)
        layers.append(layer)
        for part in thing.parts:
            lay(part, number)
        layer.end = len(layers)

    for thing in things:
        lay(thing, None)
    return layers


def _rasterise(thing: _Thing, rows: slice, columns: slice) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """The pixels whose centre a thing holds: their box within rows and columns, and (h, w) bool; None without any."""
    cosine, sine = thing.radius * math.cos(thing.turn), thing.radius * math.sin(thing.turn)
    points = np.concatenate(thing.outline) @ np.array([[cosine, sine], [-sine, cosine]]) + thing.centre
    points = np.round(points * 256) / 256  # the same on every machine, however it rounds sines
    left, top = np.maximum(np.floor(points.min(0)).astype(int), (columns.start, rows.start)).tolist()
    right, bottom = np.minimum(np.ceil(points.max(0)).astype(int), (columns.stop, rows.stop)).tolist()
    width, height = right - left, bottom - top
    if width < 1 or height < 1:
        return None
    after = np.arange(1, len(points) + 1)
    end = 0
    for contour in thing.outline:  # a contour's last point is joined to its first
        after[end + len(contour) - 1] = end
        end += len(contour)
    (x0, y0), (x1, y1) = points.T, points[after].T
    line = np.arange(top, bottom)[:, None] + 0.5
    row, edge = np.nonzero((y0 <= line) != (y1 <= line))
    at = x0[edge] + (row + top + 0.5 - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    column = np.clip(np.ceil(at - 0.5) - left, 0, width).astype(int)
    crossings = np.bincount(row * (width + 1) + column, minlength=height * (width + 1)).reshape(height, width + 1)
    return (slice(top, bottom), slice(left, right)), np.cumsum(crossings[:, :-1], 1) % 2 == 1


def _visible(layers: list[_Layer], size: tuple[int, int]) -> np.ndarray:
    """(G, H, W): each object and each part, as far as nothing painted later hides it."""
    top = np.full(size, -1)
    for i, layer in enumerate(layers):
        top[layer.box][layer.cover] = i
    seen = np.append(0, np.cumsum(np.bincount(top[top >= 0], minlength=len(layers))))
    areas = [int(seen[layer.end] - seen[i]) for i, layer in enumerate(layers)]
    chosen = [
        i
        for i, layer in enumerate(layers)
        # a part that hides all of its whole would be annotated twice
        if areas[i] >= MIN_VISIBLE and (layer.parent is None or areas[i] < areas[layer.parent])
    ]
    masks = np.zeros((len(chosen), *size), dtype=bool)
    for mask, i in zip(masks, chosen, strict=True):
        box = layers[i].box
        mask[box] = (top[box] >= i) & (top[box] < layers[i].end)
    return masks


def _picture(
    rng: np.random.Generator, textures: Mapping[str, Texture], layers: list[_Layer], size: tuple[int, int]
) -> np.ndarray:
    """RGB uint8 (H, W, 3)."""
    image = np.zeros((*size, 3), np.float32)
    everything = np.s_[: size[0], : size[1]]
    image[:] = _colour(rng)
    _fill(rng, textures, image, everything, None, min(size) / 4)
    if rng.random() < 0.5:  # another ground, beyond a slanted line
        y, x = np.mgrid[: size[0], : size[1]]
        beyond = y > size[0] * rng.uniform(0.2, 0.8) + rng.normal(0, 0.3) * (x - size[1] / 2)
        _fill(rng, textures, image, everything, beyond, min(size) / 4)
    _scratch(rng, image, int(rng.integers(0, 25)), 0.75)
    shadow = rng.normal(0, 0.18, 2) if rng.random() < 0.5 else None
    looks: dict[int, int] = {}
    for layer in layers:
        if shadow is not None and layer.parent is None:
            _cast(image, layer, shadow)
        seed = looks.setdefault(layer.thing.look, int(rng.integers(2**62)))
        _fill(np.random.default_rng(seed), textures, image, layer.box, layer.cover, layer.thing.radius)
    _scratch(rng, image, int(rng.integers(0, 10)), 0.5)
    image *= _light(rng, size)[..., None]
    return _photograph(rng, image)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """(3,): any brightness, mostly muted."""
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
    """Paints a box, or what is covered of it, with a texture in two colours, sometimes close to what was there."""
    texture = list(textures.values())[rng.integers(len(textures))]
    region = image[box]
    height, width = region.shape[:2]
    x = np.broadcast_to(np.arange(width, dtype=np.float32) - width / 2, (height, width))
    y = np.broadcast_to(np.arange(height, dtype=np.float32)[:, None] - height / 2, (height, width))
    blend = texture(rng, x, y, radius)
    ground = region[:: 1 + height // 8, :: 1 + width // 8].reshape(-1, 3).mean(0)
    first = ground + (_colour(rng) - ground) * rng.uniform(0.25, 1)
    if np.abs(first - ground).max() < 14:
        first = ground + (20 if ground.mean() < 128 else -20)
    second = first + (_colour(rng) - first) * rng.uniform(0.15, 0.8)
    covered = np.s_[:] if cover is None else cover
    step = (second - first).astype(np.float32)
    region[covered] = first.astype(np.float32) + blend[covered][..., None].astype(np.float32) * step


def _cast(image: np.ndarray, layer: _Layer, shadow: np.ndarray) -> None:
    """Darkens the ground beside a thing."""
    shift = np.round(shadow * min(layer.thing.radius, 40)).astype(int)
    (rows, columns), (height, width) = layer.box, image.shape[:2]
    top, left = max(0, rows.start + shift[1]), max(0, columns.start + shift[0])
    bottom, right = min(height, rows.stop + shift[1]), min(width, columns.stop + shift[0])
    if top < bottom and left < right:
        y, x = top - rows.start - shift[1], left - columns.start - shift[0]
        image[top:bottom, left:right] *= 1 - 0.45 * layer.cover[y : y + bottom - top, x : x + right - left, None]


def _scratch(rng: np.random.Generator, image: np.ndarray, number: int, strength: float) -> None:
    """Draws thin lines and specks that belong to nothing."""
    height, width = image.shape[:2]
    if number == 0:
        return
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    for _ in range(number):
        strong = int(255 * strength * rng.uniform(0.3, 1))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        if rng.random() < 0.5:
            draw.rectangle([x, y, x + rng.integers(0, 2), y + rng.integers(0, 2)], fill=strong)
        else:
            bends = np.cumsum(rng.normal(0, 0.12 * min(height, width), (int(rng.integers(1, 5)), 2)), 0)
            draw.line(
                [(x, y), *((x + float(a), y + float(b)) for a, b in bends)], fill=strong, width=int(rng.integers(1, 3))
            )
    where = np.nonzero(np.asarray(canvas))
    image[where] += np.asarray(canvas)[where][:, None] / np.float32(255) * (_colour(rng) - image[where])


def _light(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(H, W): brighter on one side, with soft shadows."""
    y, x = np.mgrid[-1:1:24j, -1:1:24j]
    light = 1 + rng.normal(0, 0.15) * x + rng.normal(0, 0.15) * y
    for _ in range(rng.integers(0, 4)):
        left, up, wide, high = rng.uniform(-1, 1), rng.uniform(-1, 1), *rng.uniform(0.15, 0.7, 2)
        light *= 1 - rng.uniform(0.1, 0.5) * np.exp(-(((x - left) / wide) ** 2) - ((y - up) / high) ** 2)
    coarse = Image.fromarray(light.astype(np.float32))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """RGB uint8 (H, W, 3): as a camera sees it, a little blurred and noisy, and often through JPEG."""
    aside = np.float32(rng.uniform(0.08, 0.25))
    for axis in (0, 1):  # each pixel with its neighbours on two sides
        first, last = np.take(image, [0], axis), np.take(image, [-1], axis)
        before, after = (np.delete(image, end, axis) for end in (-1, 0))
        image = (1 - 2 * aside) * image
        image += aside * np.concatenate([first, before], axis)
        image += aside * np.concatenate([after, last], axis)
    image += rng.standard_normal((*image.shape[:2], 1), np.float32) * np.float32(rng.uniform(0, 7))
    photo = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        return photo
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=int(rng.integers(40, 95)))
    return np.array(Image.open(file))
