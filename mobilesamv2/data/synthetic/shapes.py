"""Shape families of the train split, and those of the test split, which training never uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

Outline = list[np.ndarray]
"""Closed contours, each (P, 2) xy float64, around the origin, about 1 from it at most; an inner contour is a hole."""

Family = Callable[[np.random.Generator], Outline]


def _round(reach: np.ndarray, stretch: float = 1.0) -> np.ndarray:
    """Return points (P, 2) at these distances from the origin, at even angles."""
    angles = np.linspace(0, 2 * math.pi, len(reach), endpoint=False)
    return np.stack([reach * np.cos(angles), stretch * reach * np.sin(angles)], 1)


def _unit(contour: np.ndarray) -> np.ndarray:
    """Return a contour moved and scaled to lie around the origin, at most 1 from it."""
    contour = contour - (contour.min(0) + contour.max(0)) / 2
    return contour / np.linalg.norm(contour, axis=1).max()


# Shapes to train on.


def _ellipse(rng: np.random.Generator) -> Outline:
    return [_round(np.ones(40), rng.uniform(0.35, 1))]


def _polygon(rng: np.random.Generator) -> Outline:
    corners = _round(np.ones(int(rng.integers(3, 7))), rng.uniform(0.45, 1))
    return [corners * rng.uniform(0.75, 1.1, (len(corners), 1))]


def _box(rng: np.random.Generator) -> Outline:
    """Draw a rectangle, sharp or rounded, up to a long bar."""
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


def _worm(rng: np.random.Generator) -> Outline:
    """Draw a thick, bent stroke, up to an S."""
    along = np.linspace(-1, 1, 24)
    heading = np.cumsum(rng.normal(0, 0.12) + rng.uniform(0, 0.3) * np.sin(rng.uniform(1, 4) * along))
    spine = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), 0)
    spine = (spine - spine.mean(0)) / np.linalg.norm(spine - spine.mean(0), axis=1).max()
    wide = rng.uniform(0.12, 0.3) * np.sqrt(1 - 0.98 * along**2)
    across = np.stack([-np.sin(heading), np.cos(heading)], 1) * wide[:, None]
    return [np.concatenate([spine + across, (spine - across)[::-1]])]


def _rock(rng: np.random.Generator) -> Outline:
    """Draw corners at uneven angles and distances."""
    corners = int(rng.integers(7, 14))
    angles = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * 2 * math.pi / corners
    reach = rng.uniform(0.55, 1.05, corners)
    return [np.stack([reach * np.cos(angles), rng.uniform(0.5, 1) * reach * np.sin(angles)], 1)]


def _frame(rng: np.random.Generator) -> Outline:
    """Draw a rectangle with a rectangular hole."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (0.75, rng.uniform(0.4, 0.75))
    return [corners, corners * rng.uniform(0.35, 0.7)]


def _superformula(rng: np.random.Generator) -> Outline:
    """Draw Gielis's superformula: rounded polygons, stars, lenses and drops (https://doi.org/10.3732/ajb.90.3.333)."""
    angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    symmetry = rng.integers(1, 9) / 4
    exponents = np.exp(rng.uniform(math.log(0.5), math.log(12), 3))
    terms = np.abs(np.cos(symmetry * angles)) ** exponents[1] + np.abs(np.sin(symmetry * angles)) ** exponents[2]
    reach = np.maximum(terms, 1e-3) ** (-1 / exponents[0])
    return [_round(np.maximum(reach / reach.max(), 0.2), rng.uniform(0.5, 1))]


def _spline(rng: np.random.Generator) -> Outline:
    """Draw a smooth closed curve through points at uneven angles and distances, with deep bays."""
    number = int(rng.integers(4, 10))
    angles = (np.arange(number) + rng.uniform(-0.3, 0.3, number)) * 2 * math.pi / number
    knots = rng.uniform(0.3, 1, (number, 1)) * np.stack([np.cos(angles), rng.uniform(0.5, 1) * np.sin(angles)], 1)
    before, after, beyond = (np.roll(knots, shift, 0) for shift in (1, -1, -2))
    t = np.linspace(0, 1, 8, endpoint=False)[:, None, None]
    curve = knots + t / 2 * (after - before)  # Catmull-Rom
    curve = curve + t**2 / 2 * (2 * before - 5 * knots + 4 * after - beyond)
    curve = curve + t**3 / 2 * (3 * knots - before - 3 * after + beyond)
    return [_unit(curve.transpose(1, 0, 2).reshape(-1, 2))]


def _lathe(rng: np.random.Generator) -> Outline:
    """Draw the profile of something turned on a lathe: bottles, vases, spindles."""
    knots = int(rng.integers(3, 8))
    profile = rng.uniform(0.08, 0.65, knots)
    profile[[0, -1]] *= rng.integers(0, 2, 2)
    place = np.sort(np.append(rng.uniform(-1, 1, knots - 2), (-1.0, 1.0)))
    along = np.linspace(-1, 1, 25) if rng.random() < 0.6 else place
    wide = np.interp(along, place, profile)
    if rng.random() < 0.5:
        padded = np.pad(wide, 1, mode="edge")
        wide = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    lean = rng.normal(0, 0.15) * along**2
    return [np.concatenate([np.stack([along, lean + wide], 1), np.stack([along, lean - wide], 1)[::-1]])]


def _stepped(rng: np.random.Generator) -> Outline:
    """Draw columns of different heights side by side: stairs, towers, plugs."""
    columns = int(rng.integers(2, 6))
    edges = np.append(0.0, np.cumsum(rng.uniform(0.3, 1, columns)))
    x = np.repeat(2 * edges / edges[-1] - 1, 2)[1:-1]
    spread = rng.uniform(0.4, 1)
    top = np.repeat(rng.uniform(0.1, 1, columns), 2)
    bottom = np.repeat(rng.uniform(0.1, 1, columns), 2) if rng.random() < 0.5 else np.full(2 * columns, 0.5)
    upper, lower = np.stack([x, spread * top], 1), np.stack([x, -spread * bottom], 1)
    return [np.concatenate([upper, lower[::-1]]) * 0.85]


def _bow(rng: np.random.Generator) -> Outline:
    """Draw a part of a band around the origin, of even or uneven width."""
    turn = np.linspace(0, rng.uniform(0.4, 1.6) * math.pi, 28)
    width = rng.uniform(0.15, 0.55) * (1 + rng.uniform(-0.5, 0.5) * np.linspace(-1, 1, 28))
    outer = np.stack([np.cos(turn), np.sin(turn)], 1)
    band = np.concatenate([outer, (outer * (1 - width)[:, None])[::-1]])
    return [_unit(band * (1, rng.uniform(0.6, 1)))]


def _bitten(rng: np.random.Generator) -> Outline:
    """Draw an ellipse or a polygon without one to three round bites at its rim."""
    angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    corners = rng.integers(3, 9)
    reach = np.ones(64)
    if rng.random() < 0.5:
        reach = math.cos(math.pi / corners) / np.cos(angles % (2 * math.pi / corners) - math.pi / corners)
    for _ in range(rng.integers(1, 4)):
        distance, bite, at = rng.uniform(0.75, 1.2), rng.uniform(0.2, 0.6), rng.uniform(0, 2 * math.pi)
        along, across = distance * np.cos(angles - at), distance * np.sin(angles - at)
        hit = (along > 0) & (np.abs(across) < bite)
        entry = along - np.sqrt(np.maximum(bite**2 - across**2, 0))
        reach = np.where(hit, np.minimum(reach, np.maximum(entry, 0.12)), reach)
    return [_round(reach, rng.uniform(0.6, 1))]


def _pierced(rng: np.random.Generator) -> Outline:
    """Draw a smooth or angular shape with one to three holes, some of which cut the rim."""
    solid = (_ellipse, _blob, _rock, _box)[rng.integers(4)](rng)[0]
    holes = int(rng.integers(1, 4))
    turn = rng.uniform(0, 2 * math.pi) + np.arange(holes) * 2 * math.pi / holes
    away, most = (rng.uniform(0, 0.25), 0.5) if holes == 1 else (0.42, 0.24)
    spread = np.abs(solid).max(0)
    return [
        solid,
        *(
            ((_ellipse, _polygon, _blob)[rng.integers(3)](rng)[0] * rng.uniform(0.4, 0.9) * most + away * spot) * spread
            for spot in np.stack([np.cos(turn), np.sin(turn)], 1)
        ),
    ]


def _bent(family: Family) -> Family:
    """Return a family of which half of the shapes are slanted, tapered and bent."""

    def draw(rng: np.random.Generator) -> Outline:
        outline = family(rng)
        if rng.random() < 0.5:
            return outline
        slant, taper, bend = rng.normal(0, (0.2, 0.2, 0.2))
        x, y = np.concatenate(outline).T
        x = x + slant * y
        points = np.stack([x, y * (1 + taper * np.clip(x, -1, 1)) + bend * (x**2 - 0.3)], 1)
        points /= max(1.0, np.linalg.norm(points, axis=1).max() / 1.1)
        return np.split(points, np.cumsum([len(contour) for contour in outline])[:-1])

    return draw


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
    """Draw L, T, U, H, E or Z, of straight strokes."""
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


TRAIN_FAMILIES: Mapping[str, Family] = {
    name: _bent(family)
    for name, family in {
        "ellipse": _ellipse,
        "polygon": _polygon,
        "box": _box,
        "star": _star,
        "blob": _blob,
        "petals": _petals,
        "worm": _worm,
        "rock": _rock,
        "frame": _frame,
        "superformula": _superformula,
        "spline": _spline,
        "lathe": _lathe,
        "stepped": _stepped,
        "bow": _bow,
        "bitten": _bitten,
        "pierced": _pierced,
    }.items()
}

TEST_FAMILIES: Mapping[str, Family] = {
    "crescent": _crescent,
    "ring": _ring,
    "gear": _gear,
    "cross": _cross,
    "arrow": _arrow,
    "leaf": _leaf,
    "heart": _heart,
    "letter": _letter,
}
