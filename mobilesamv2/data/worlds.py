"""The two worlds of drawn scenes: one to train on, and one of shapes and textures that no training sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

Outline = list[np.ndarray]
"""Closed contours, each (P, 2) xy float64, about the origin and at most about 1 from it; a contour within is a hole."""

Family = Callable[[np.random.Generator], Outline]

Texture = Callable[[np.random.Generator, np.ndarray, np.ndarray, float], np.ndarray]
"""From x (h, w) and y (h, w), pixels from the object's centre, and its radius in pixels: the share of the second of two
colours, (h, w) within 0 to 1."""


@dataclass(frozen=True)
class World:
    """What scenes are made of.

    Args:
        families: shapes by name.
        textures: by name.
        number: goes into the seeds, so that no scene of one world is laid out as one of another.
    """

    families: Mapping[str, Family]
    textures: Mapping[str, Texture]
    number: int


def find_world(name: str) -> World:
    """A world by its name.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in WORLDS:
        raise ValueError(f"There is no world {name!r} of drawn scenes; there are {', '.join(WORLDS)}.")
    return WORLDS[name]


def _round(reach: np.ndarray, stretch: float = 1.0) -> np.ndarray:
    """(P, 2): as far from the origin as given, at even angles."""
    angles = np.linspace(0, 2 * math.pi, len(reach), endpoint=False)
    return np.stack([reach * np.cos(angles), stretch * reach * np.sin(angles)], 1)


# Shapes to train on.


def _ellipse(rng: np.random.Generator) -> Outline:
    return [_round(np.ones(40), rng.uniform(0.35, 1))]


def _polygon(rng: np.random.Generator) -> Outline:
    corners = _round(np.ones(int(rng.integers(3, 7))), rng.uniform(0.45, 1))
    return [corners * rng.uniform(0.75, 1.1, (len(corners), 1))]


def _box(rng: np.random.Generator) -> Outline:
    """A rectangle, sharp or rounded, up to a long bar."""
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    sharpness = 2 / rng.uniform(4, 30)
    x, y = (np.sign(v) * np.abs(v) ** sharpness for v in (np.cos(angles), np.sin(angles)))
    return [np.stack([x, y * rng.uniform(0.15, 0.9)], 1) * 0.9]


def _star(rng: np.random.Generator) -> Outline:
    reach = np.ones(2 * int(rng.integers(4, 8)))
    reach[1::2] = rng.uniform(0.4, 0.7)
    return [_round(reach, rng.uniform(0.6, 1))]


def _blob(rng: np.random.Generator) -> Outline:
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    reach = np.full(48, 0.8)
    for frequency in range(2, 6):
        reach += rng.normal(0, 0.3 / frequency) * np.cos(frequency * angles + rng.uniform(0, 2 * math.pi))
    return [_round(np.clip(reach, 0.25, 1.2), rng.uniform(0.5, 1))]


def _petals(rng: np.random.Generator) -> Outline:
    angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    depth = rng.uniform(0.12, 0.4)
    return [_round(1 - depth + depth * np.cos(rng.integers(3, 8) * angles), rng.uniform(0.7, 1))]


# Shapes to test on.


def _crescent(rng: np.random.Generator) -> Outline:
    turn = np.linspace(0.35 * math.pi, 1.65 * math.pi, 24)
    outer = np.stack([np.cos(turn), np.sin(turn)], 1)
    inner = outer[::-1] * (rng.uniform(0.3, 0.7), 1.0) + np.array([outer[0, 0] * 0.5, 0])
    inner[:, 0] = np.maximum(inner[:, 0], outer[::-1, 0])
    return [np.concatenate([outer, inner[1:-1]]) + np.array([0.3, 0])]


def _ring(rng: np.random.Generator) -> Outline:
    stretch = rng.uniform(0.55, 1)
    return [_round(np.ones(40), stretch), _round(np.full(40, rng.uniform(0.4, 0.7)), stretch)]


def _gear(rng: np.random.Generator) -> Outline:
    teeth = int(rng.integers(6, 13))
    reach = np.tile([1.0, 1.0, 0.75, 0.75], teeth)
    outline = [_round(reach)]
    return [*outline, _round(np.full(24, rng.uniform(0.2, 0.4)))] if rng.random() < 0.7 else outline


def _cross(rng: np.random.Generator) -> Outline:
    a, b = rng.uniform(0.18, 0.38, 2)
    quarter = [(1, -b), (1, b), (a, b), (a, 1), (-a, 1), (-a, b)]
    return [np.array([*quarter, *((-x, -y) for x, y in quarter)])]


def _arrow(rng: np.random.Generator) -> Outline:
    neck, shaft, wing = rng.uniform(-0.1, 0.4), rng.uniform(0.1, 0.28), rng.uniform(0.5, 0.85)
    return [np.array([(1, 0), (neck, wing), (neck, shaft), (-1, shaft), (-1, -shaft), (neck, -shaft), (neck, -wing)])]


def _leaf(rng: np.random.Generator) -> Outline:
    along = np.linspace(-1, 1, 24)
    wide = rng.uniform(0.3, 0.6) * np.cos(along * math.pi / 2) * (1 + rng.uniform(-0.5, 0.5) * along)
    bend = rng.uniform(-0.4, 0.4) * (along**2 - 0.5)
    upper, lower = np.stack([along, bend + wide], 1), np.stack([along, bend - wide], 1)
    return [np.concatenate([upper, lower[-2:0:-1]])]


def _heart(rng: np.random.Generator) -> Outline:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([16 * np.sin(t) * rng.uniform(0.7, 1.1), -y - 2], 1) / 16]


def _letter(rng: np.random.Generator) -> Outline:
    """L, T, U, H, E or Z, of straight strokes."""
    s, wide = rng.uniform(0.3, 0.5), rng.uniform(0.55, 0.8)
    w, k, m = 1.0, s * 0.8, s / 2
    corners = (
        ((-w, -1), (k - w, -1), (k - w, 1 - s), (w, 1 - s), (w, 1), (-w, 1)),
        ((-w, -1), (w, -1), (w, s - 1), (m, s - 1), (m, 1), (-m, 1), (-m, s - 1), (-w, s - 1)),
        ((-w, -1), (k - w, -1), (k - w, 1 - s), (w - k, 1 - s), (w - k, -1), (w, -1), (w, 1), (-w, 1)),
        (
            *((-w, -1), (k - w, -1), (k - w, -m), (w - k, -m), (w - k, -1), (w, -1)),
            *((w, 1), (w - k, 1), (w - k, m), (k - w, m), (k - w, 1), (-w, 1)),
        ),
        (
            *((-w, -1), (w, -1), (w, k - 1), (k - w, k - 1), (k - w, -k / 2), (w, -k / 2)),
            *((w, k / 2), (k - w, k / 2), (k - w, 1 - k), (w, 1 - k), (w, 1), (-w, 1)),
        ),
        (
            *((-w, -1), (w, -1), (w, s - 1), (k - 0.6, 1 - s), (w, 1 - s)),
            *((w, 1), (-w, 1), (-w, 1 - s), (0.6 - k, s - 1), (-w, s - 1)),
        ),
    )[rng.integers(6)]
    return [np.array(corners) * (wide, 0.9)]


# Textures to train on.


def _turned(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along a random direction and across it."""
    turn = rng.uniform(0, 2 * math.pi)
    cosine, sine = math.cos(turn), math.sin(turn)
    return cosine * x + sine * y, cosine * y - sine * x


def _period(rng: np.random.Generator, radius: float) -> float:
    """Pixels, from 3 to the radius, and not above 40."""
    return 3.0 * (min(max(radius, 4.0), 40.0) / 3.0) ** rng.random()


def _noise(rng: np.random.Generator, size: tuple[int, ...], cell: float) -> np.ndarray:
    """(h, w): random, smooth within cells of so many pixels."""
    height, width = (int(length / cell) + 2 for length in size)
    coarse = Image.fromarray(rng.random((height, width), np.float32))
    return np.clip(np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC)), 0, 1)


def _plain(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.zeros(x.shape, np.float32)


def _shaded(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.clip(_turned(rng, x, y)[0] / (2 * radius) + 0.5, 0, 1)


def _striped(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return _turned(rng, x, y)[0] / _period(rng, radius) % 1 < rng.uniform(0.25, 0.75)


def _chequered(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    along, across = _turned(rng, x, y)
    period = _period(rng, radius)
    return (along / period % 2 < 1) ^ (across / period % 2 < 1)


def _mottled(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    along, across = _turned(rng, x, y)
    pace = 2 * math.pi / _period(rng, radius)
    return 0.5 + 0.5 * np.sin(pace * along) * np.sin(pace / 1.7 * across)


def _cloudy(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    cell = 2 * _period(rng, radius)
    return 0.7 * _noise(rng, x.shape, cell) + 0.3 * _noise(rng, x.shape, max(2.0, cell / 4))


# Textures to test on.


def _dotted(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    along, across = _turned(rng, x, y)
    period = max(4.0, _period(rng, radius))
    return (along / period % 1 - 0.5) ** 2 + (across / period % 1 - 0.5) ** 2 < rng.uniform(0.05, 0.14)


def _rings(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    left, up = rng.uniform(-radius, radius, 2)
    return 0.5 + 0.5 * np.sin(2 * math.pi / _period(rng, radius) * np.hypot(x - left, y - up))


def _wooden(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    period = _period(rng, radius)
    return (_turned(rng, x, y)[0] / period + 2 * _noise(rng, x.shape, 3 * period)) % 1


def _bricks(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    along, across = _turned(rng, x, y)
    period = max(4.0, _period(rng, radius))
    odd = across / period % 2 < 1
    return (across / period % 1 < 0.2) | ((along / (2 * period) + 0.5 * odd) % 1 < 0.1)


def _domed(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Lit from a side, like a ball."""
    left, up = rng.uniform(-0.5, 0.5, 2) * radius
    return np.clip(1 - ((x - left) ** 2 + (y - up) ** 2) / (1.7 * radius**2), 0, 1)


def _marbled(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    period = 2 * _period(rng, radius)
    return np.abs(np.sin(math.pi / period * _turned(rng, x, y)[0] + 6 * _noise(rng, x.shape, 1.5 * period)))


def _grainy(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return _noise(rng, x.shape, rng.uniform(1.5, 4)) > rng.uniform(0.35, 0.7)


WORLDS: Mapping[str, World] = {
    "train": World(
        {"ellipse": _ellipse, "polygon": _polygon, "box": _box, "star": _star, "blob": _blob, "petals": _petals},
        {
            "plain": _plain,
            "shaded": _shaded,
            "striped": _striped,
            "chequered": _chequered,
            "mottled": _mottled,
            "cloudy": _cloudy,
        },
        1,
    ),
    "test": World(
        {
            "crescent": _crescent,
            "ring": _ring,
            "gear": _gear,
            "cross": _cross,
            "arrow": _arrow,
            "leaf": _leaf,
            "heart": _heart,
            "letter": _letter,
        },
        {
            "dotted": _dotted,
            "rings": _rings,
            "wooden": _wooden,
            "bricks": _bricks,
            "domed": _domed,
            "marbled": _marbled,
            "grainy": _grainy,
        },
        2,
    ),
}
"""Shape families and textures; the two have none in common."""
