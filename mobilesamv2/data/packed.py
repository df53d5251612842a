"""Texts and segmentations of a whole data set in a few flat buffers.

A loader's workers are forked, and share the memory of what they only read. They write to every Python object that they
touch, by counting its references, so that lists of annotations would be copied into each worker, page by page.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from mobilesamv2.masks import rle_from_polygons
from mobilesamv2.structures import RLE


class PackedTexts:
    """Texts by index, in one buffer.

    Args:
        texts: any number of texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._starts = starts_of([len(text) for text in encoded])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self._starts[index : index + 2].tolist()
        return self._bytes[start:end].tobytes().decode("utf-8", "surrogatepass")


Segmentation = list[np.ndarray] | str
"""Polygons, each float64 x, y, x, y, ... in pixels of the image, or the counts of a compressed RLE."""


class PackedMasks:
    """Segmentations by index: polygons as they are in the file, and compressed RLEs, in two buffers.

    Polygons are not rasterized until they are read: their masks are those of pycocotools, from the same numbers.

    Args:
        segmentations: of the objects.
    """

    def __init__(self, segmentations: Sequence[Segmentation]) -> None:
        polygons: list[list[np.ndarray]] = [[] if isinstance(s, str) else s for s in segmentations]
        pieces = [piece for some in polygons for piece in some]
        self._coordinates = np.concatenate(pieces) if pieces else np.zeros(0)
        self._piece_starts = starts_of([len(piece) for piece in pieces])
        self._first_piece = starts_of([len(some) for some in polygons])  # of each object
        self._counts = PackedTexts([s if isinstance(s, str) else "" for s in segmentations])

    def __len__(self) -> int:
        return len(self._counts)

    def extents(self) -> np.ndarray:
        """Return the largest absolute coordinate of each object's polygons, (N,); NaN if one is NaN, 0 for an RLE."""
        extents = np.zeros(len(self))
        filled = np.flatnonzero(np.diff(self._first_piece))
        if len(filled):
            starts = self._piece_starts[self._first_piece[filled]]
            # the maximum of absolute values, without a copy of all of them
            extents[filled] = np.maximum(
                np.maximum.reduceat(self._coordinates, starts), -np.minimum.reduceat(self._coordinates, starts)
            )
        return extents

    def outlines(self) -> np.ndarray:
        """Return the length of the outline of each object's polygons, (N,) pixels, each edge by its longer axis."""
        outlines = np.zeros(len(self))
        filled = np.flatnonzero(np.diff(self._first_piece))
        if len(filled):
            points = self._coordinates.reshape(-1, 2)
            last = self._piece_starts[1:] // 2 - 1
            before = np.concatenate([points[:1], points[:-1]])
            before[self._piece_starts[:-1] // 2] = points[last]  # a polygon is closed
            edges = np.abs(points - before).max(1)
            with np.errstate(over="ignore"):  # coordinates beyond all bounds are a fault of their own
                outlines[filled] = np.add.reduceat(edges, self._piece_starts[self._first_piece[filled]] // 2)
        return outlines

    def are_rles(self) -> np.ndarray:
        """Return which objects are RLEs, (N,) bool; the others are polygons."""
        return np.diff(self._first_piece) == 0

    def counts(self, index: int) -> str:
        """Return the counts of an object's RLE; empty for polygons."""
        return self._counts[index]

    def rle(self, index: int, size: tuple[int, int]) -> RLE:
        """Return an object's mask in an image of (H, W) pixels."""
        first, last = self._first_piece[index : index + 2].tolist()
        if first == last:
            return {"size": list(size), "counts": self._counts[index]}
        starts = self._piece_starts[first : last + 1].tolist()
        pieces = [self._coordinates[a:b] for a, b in pairwise(starts)]
        return rle_from_polygons(pieces, size)


def starts_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return where each of some parts of these lengths begins in a buffer, and where the last one ends, (N + 1,)."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])
