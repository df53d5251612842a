"""Textures of the train split, and those of the test split, which training never uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

Texture = Callable[[np.random.Generator, np.ndarray, np.ndarray, float], np.ndarray]
"""From x (h, w) and y (h, w), pixels from the object's centre, and its radius in pixels: the weight of the second of
two colours, (h, w), 0 to 1."""


# Textures to train on.


def _rotate(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates along a random direction and across it."""
    turn = rng.uniform(0, 2 * math.pi)
    cosine, sine = math.cos(turn), math.sin(turn)
    return cosine * x + sine * y, cosine * y - sine * x


def _period(rng: np.random.Generator, radius: float) -> float:
    """Draw a period, pixels, from 3 to the radius and at most 40."""
    return 3.0 * (min(max(radius, 4.0), 40.0) / 3.0) ** rng.random()


def _noise(rng: np.random.Generator, size: tuple[int, ...], cell: float) -> np.ndarray:
    """Draw smooth noise (h, w) with cells of ``cell`` pixels."""
    height, width = (int(length / cell) + 2 for length in size)
    coarse = Image.fromarray(rng.random((height, width), np.float32))
    return np.clip(np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC)), 0, 1)


def _plain(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.zeros(x.shape, np.float32)


def _shaded(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.clip(_rotate(rng, x, y)[0] / (2 * radius) + 0.5, 0, 1)


def _striped(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return _rotate(rng, x, y)[0] / _period(rng, radius) % 1 < rng.uniform(0.25, 0.75)


def _chequered(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    along, across = _rotate(rng, x, y)
    period = _period(rng, radius)
    return (along / period % 2 < 1) ^ (across / period % 2 < 1)


def _mottled(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    along, across = _rotate(rng, x, y)
    pace = 2 * math.pi / _period(rng, radius)
    return 0.5 + 0.5 * np.sin(pace * along) * np.sin(pace / 1.7 * across)


def _cloudy(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    cell = 2 * _period(rng, radius)
    return 0.7 * _noise(rng, x.shape, cell) + 0.3 * _noise(rng, x.shape, max(2.0, cell / 4))


def _speckled(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return rng.random(x.shape, np.float32) ** rng.uniform(0.5, 4)


def _wavy(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    along, across = _rotate(rng, x, y)
    period = _period(rng, radius)
    bend = period * rng.uniform(0.3, 1.2) * np.sin(2 * math.pi * along / (rng.uniform(1, 3) * period))
    return (across + bend) / period % 1 < rng.uniform(0.3, 0.7)


def _patched(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Draw cells around random points, each of one shade."""
    number = int(rng.integers(3, 12))
    points = rng.uniform(-1, 1, (number, 2)) * (np.abs(x).max() + 1, np.abs(y).max() + 1)
    nearest = ((x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2).argmin(-1)
    return rng.random(number).astype(np.float32)[nearest]


def _woven(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Cross two families of stripes of different periods, hard or soft."""
    waves = [np.sin(2 * math.pi / _period(rng, radius) * _rotate(rng, x, y)[0]) for _ in range(2)]
    crossed = np.maximum(*waves) if rng.random() < 0.5 else waves[0] * waves[1]
    return crossed > rng.uniform(-0.3, 0.7) if rng.random() < 0.5 else 0.5 + 0.5 * crossed


def _rippled(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Add waves of several directions and periods, hard or soft."""
    number = int(rng.integers(3, 7))
    waves = [
        np.sin(2 * math.pi / _period(rng, radius) * _rotate(rng, x, y)[0] + rng.uniform(0, 7)) for _ in range(number)
    ]
    height = np.sum(waves, axis=0) / number
    return height > rng.uniform(-0.2, 0.2) if rng.random() < 0.5 else 0.5 + 0.5 * height


def _veined(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Draw lines where smooth noise crosses a level."""
    noise = _noise(rng, x.shape, 2 * _period(rng, radius))
    return np.clip(np.abs(noise - 0.5) * rng.uniform(4, 16), 0, 1)


def _terraced(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Draw the levels of smooth noise, like heights on a map."""
    levels = rng.integers(2, 6)
    return np.floor(_noise(rng, x.shape, 2 * _period(rng, radius)) * 0.999 * levels) / (levels - 1)


def _compositional(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Draw the output of a small random network of the position (Stanley, compositional pattern-producing networks)."""
    scale = 1 / _period(rng, radius)
    inputs = np.stack([scale * x, scale * y, _noise(rng, x.shape, 2 / scale)], -1)
    hidden = np.sin(inputs @ rng.normal(0, 1.5, (3, 6)).astype(np.float32) + rng.uniform(0, 7, 6).astype(np.float32))
    output = np.tanh(hidden @ rng.normal(0, 1, 6).astype(np.float32) * rng.uniform(0.5, 4))
    return 0.5 + 0.5 * output


def _layered(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Draw one texture where a third is bright, and another where it is dark."""
    first, second, third = (_SIMPLE[i](rng, x, y, radius) for i in rng.integers(len(_SIMPLE), size=3))
    return np.where(np.asarray(first) > 0.5, second, third)


def _displaced(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Draw a texture of which every point is moved a little."""
    cell = max(4.0, _period(rng, radius))
    shift = cell * rng.uniform(0.5, 2)
    moved_x, moved_y = (v + shift * (_noise(rng, x.shape, 2 * cell) - 0.5) for v in (x, y))
    return _SIMPLE[rng.integers(len(_SIMPLE))](rng, moved_x, moved_y, radius)


_SIMPLE: tuple[Texture, ...] = (_shaded, _striped, _chequered, _mottled, _cloudy, _wavy, _woven, _rippled, _veined)


# Textures to test on.


def _dotted(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    along, across = _rotate(rng, x, y)
    period = max(4.0, _period(rng, radius))
    return (along / period % 1 - 0.5) ** 2 + (across / period % 1 - 0.5) ** 2 < rng.uniform(0.05, 0.14)


def _rings(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    left, up = rng.uniform(-radius, radius, 2)
    return 0.5 + 0.5 * np.sin(2 * math.pi / _period(rng, radius) * np.hypot(x - left, y - up))


def _wooden(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    period = _period(rng, radius)
    return (_rotate(rng, x, y)[0] / period + 2 * _noise(rng, x.shape, 3 * period)) % 1


def _bricks(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    along, across = _rotate(rng, x, y)
    period = max(4.0, _period(rng, radius))
    odd = across / period % 2 < 1
    return (across / period % 1 < 0.2) | ((along / (2 * period) + 0.5 * odd) % 1 < 0.1)


def _domed(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Shade like a ball lit from one side."""
    left, up = rng.uniform(-0.5, 0.5, 2) * radius
    return np.clip(1 - ((x - left) ** 2 + (y - up) ** 2) / (1.7 * radius**2), 0, 1)


def _marbled(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    period = 2 * _period(rng, radius)
    return np.abs(np.sin(math.pi / period * _rotate(rng, x, y)[0] + 6 * _noise(rng, x.shape, 1.5 * period)))


def _grainy(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return _noise(rng, x.shape, rng.uniform(1.5, 4)) > rng.uniform(0.35, 0.7)


TRAIN_TEXTURES: Mapping[str, Texture] = {
    "plain": _plain,
    "shaded": _shaded,
    "striped": _striped,
    "chequered": _chequered,
    "mottled": _mottled,
    "cloudy": _cloudy,
    "speckled": _speckled,
    "wavy": _wavy,
    "patched": _patched,
    "woven": _woven,
    "rippled": _rippled,
    "veined": _veined,
    "terraced": _terraced,
    "compositional": _compositional,
    "layered": _layered,
    "displaced": _displaced,
}

TEST_TEXTURES: Mapping[str, Texture] = {
    "dotted": _dotted,
    "rings": _rings,
    "wooden": _wooden,
    "bricks": _bricks,
    "domed": _domed,
    "marbled": _marbled,
    "grainy": _grainy,
}
