"""Layout of synthetic scenes: position and size of objects, and their hierarchy of parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mobilesamv2.data.synthetic.shapes import Family, Outline

REFERENCE_SIDE = 256
"""Side, pixels, of the scenes that the sizes of ``lvis`` refer to; in larger scenes objects grow in proportion."""

# Quantiles of the sides, pixels, of placed objects. Parts and occlusion make the visible sides smaller, hence these are
# larger than the percentiles 5, 25, 50, 75 and 95 of LVIS: 6, 14, 26, 53 and 160.
_LVIS_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 1.0)
_LVIS_SIDES = (5.0, 11.0, 24.0, 38.0, 90.0, 290.0, 400.0)
_SIDE_PER_RADIUS = 1.3
"""Side of a square with the area of a shape, in radii, averaged over the families of shapes."""


@dataclass
class SceneObject:
    """Shape with its position in the scene, and its parts."""

    outline: Outline
    centre: np.ndarray  # (2,) xy, pixels
    radius: float  # pixels
    angle: float
    style_seed: int  # objects of one style look alike
    parts: list[SceneObject] = field(default_factory=list)

    def count(self) -> int:
        """Count the object and its parts."""
        return 1 + sum(part.count() for part in self.parts)


@dataclass(frozen=True)
class Layout:
    """Number and size of the objects of a scene.

    Args:
        fewest: smallest number of objects and parts.
        most: largest number; the number is log-uniform between the two.
        smallest_part: smallest radius of a part, pixels.
        undivided: share of the objects without parts.
        clusters: share of the draws that place several small, similar objects.
        lvis_sizes: draw sides from the distribution of LVIS; otherwise radii from ``smallest_part`` to .36 of the side.
    """

    fewest: int
    most: int
    smallest_part: float
    undivided: float
    clusters: float
    lvis_sizes: bool

    def bounds(self, size: tuple[int, int]) -> tuple[float, float]:
        """Return the smallest and the largest radius, pixels."""
        return max(self.smallest_part, 0.01 * min(size)), max(1.5 * self.smallest_part, 0.36 * min(size))

    def radius(self, rng: np.random.Generator, size: tuple[int, int]) -> float:
        """Draw the radius of an object, pixels."""
        if not self.lvis_sizes:
            low, high = self.bounds(size)
            return low * (high / low) ** (rng.random() ** 0.9)
        side = math.exp(np.interp(rng.random(), _LVIS_QUANTILES, np.log(_LVIS_SIDES)))
        return side * min(size) / REFERENCE_SIDE / _SIDE_PER_RADIUS

    def cluster_radius(self, rng: np.random.Generator, size: tuple[int, int]) -> float:
        """Draw the radius of the small objects of a cluster, pixels."""
        low, high = self.bounds(size)
        return low * (0.25 * high / low) ** rng.random()


LAYOUTS: Mapping[str, Layout] = {
    "lvis": Layout(fewest=3, most=24, smallest_part=4.5, undivided=0.84, clusters=0.03, lvis_sizes=True),
    "hard": Layout(fewest=24, most=60, smallest_part=2.4, undivided=0.45, clusters=0.12, lvis_sizes=False),
}
"""``lvis`` has the sizes and the number of objects of LVIS's images; ``hard`` has more objects, nearly all small."""


def place_objects(
    rng: np.random.Generator, families: Mapping[str, Family], layout: Layout, size: tuple[int, int]
) -> list[SceneObject]:
    """Place the objects of a scene, in painting order."""
    return _Placer(rng, list(families.values()), layout).all(size)


@dataclass
class _Placer:
    rng: np.random.Generator
    families: list[Family]
    layout: Layout

    def all(self, size: tuple[int, int]) -> list[SceneObject]:
        rng, layout = self.rng, self.layout
        objects: list[SceneObject] = []
        count, target = 0, math.exp(rng.uniform(math.log(layout.fewest), math.log(layout.most)))
        while count < target:
            radius = layout.radius(rng, size)
            room = int(target - count)
            if room >= 3 and rng.random() < layout.clusters:
                added = self.cluster(size, layout.cluster_radius(rng, size), room)
            else:
                added = [self.object(rng.uniform(0, 1, 2) * size[::-1], radius, room)]
            objects += added
            count += sum(item.count() for item in added)
        return sorted(objects, key=lambda item: -item.radius * math.exp(rng.normal(0, 0.4)))

    def style(self) -> int:
        return int(self.rng.integers(2**62))

    def angle(self) -> float:
        return self.rng.uniform(0, 2 * math.pi)

    def outline(self) -> Outline:
        return self.families[self.rng.integers(len(self.families))](self.rng)

    def object(self, centre: np.ndarray, radius: float, room: int, depth: int = 0) -> SceneObject:
        """Place an object or a part, itself with parts where there is room for them."""
        rng, smallest = self.rng, self.layout.smallest_part
        item = SceneObject(self.outline(), centre, radius, self.angle(), self.style())
        if depth == 3 or radius < 3 * smallest or room < 2 or rng.random() < self.layout.undivided:
            return item
        if room > 4 and radius > 8 * smallest and rng.random() < 0.3:
            item.parts = self.row(item, room - 1)
            return item
        for _ in range(rng.integers(1, 4)):
            if item.count() >= room:
                break
            angle, distance = self.angle(), rng.uniform(0, 0.55) * radius
            spot = centre + distance * np.array([math.cos(angle), math.sin(angle)])
            part = max(smallest, rng.uniform(0.2, 0.55) * radius)
            item.parts.append(self.object(spot, part, room - item.count(), depth + 1))
        return item

    def row(self, parent: SceneObject, room: int) -> list[SceneObject]:
        """Place similar parts in rows, like windows."""
        rng = self.rng
        columns, rows = int(rng.integers(2, 5)), int(rng.integers(1, 4))
        pitch = rng.uniform(0.9, 1.2) * parent.radius / columns
        outline, angle, style = self.outline(), self.angle(), self.style()
        radius = max(self.layout.smallest_part, rng.uniform(0.3, 0.45) * pitch)
        cosine, sine = math.cos(parent.angle), math.sin(parent.angle)
        parts = []
        for i in range(min(room, columns * rows)):
            x, y = pitch * (i % columns - (columns - 1) / 2), pitch * (i // columns - (rows - 1) / 2)
            centre = parent.centre + np.array([x * cosine - y * sine, x * sine + y * cosine])
            parts.append(SceneObject(outline, centre, radius, angle, style))
        return parts

    def cluster(self, size: tuple[int, int], radius: float, room: int) -> list[SceneObject]:
        """Place small, similar objects in a row or in a heap, like fruits."""
        rng = self.rng
        outline, style, inner_style = self.outline(), self.style(), self.style()
        centre, angle, tilt = rng.uniform(0.1, 0.9, 2) * size[::-1], self.angle(), self.angle()
        number = min(room, int(rng.integers(3, 13)))
        in_row = rng.random() < 0.5
        with_part = radius > 3 * self.layout.smallest_part and 2 * number <= room and rng.random() < 0.5
        step = rng.uniform(1.9, 3) * radius * np.array([math.cos(tilt), math.sin(tilt)])
        objects = []
        for i in range(number):
            shift = (i - number / 2) * step if in_row else rng.normal(0, 0.9 * radius * math.sqrt(number), 2)
            own_angle = angle + rng.normal(0, 0.05) if in_row else self.angle()
            item = SceneObject(outline, centre + shift, radius * rng.uniform(0.85, 1.15), own_angle, style)
            if with_part:
                item.parts = [SceneObject(outline, item.centre, 0.45 * item.radius, own_angle, inner_style)]
            objects.append(item)
        return objects
