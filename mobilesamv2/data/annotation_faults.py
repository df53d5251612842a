"""Faults of the annotations of a file: collected, so that one error lists them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAMED = 5
"""Annotations of a kind of fault that an error names."""


class Faults:
    """Annotations that can't be used, by the kind of their fault; an annotation has one.

    Args:
        file: of the annotations.
        total: number of its annotations.
    """

    def __init__(self, file: Path, total: int) -> None:
        self._file = file
        self._total = total
        self._names: dict[str, list[str]] = {}
        self._got: dict[str, str] = {}
        self.numbers: list[int] = []
        """Numbers of the annotations in the file."""

    def add(self, kind: str, number: int, annotation_id: Any, got: str) -> None:
        """Add a fault.

        Args:
            kind: completes "annotations with ...".
            number: of the annotation in the file, from 0.
            annotation_id: its id; None if it has none.
            got: what stands in the place of what is right, as text.
        """
        self.numbers.append(number)
        self._names.setdefault(kind, []).append(f"number {number}" if annotation_id is None else str(annotation_id))
        self._got.setdefault(kind, got)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of annotations of each kind of fault."""
        return {kind: len(names) for kind, names in self._names.items()}

    def lines(self) -> list[str]:
        """Return a line for the whole, and one for each kind."""
        lines = [f"{len(self):,} of the {self._total:,} annotations of {self._file} can't be used:"]
        for kind, names in self._names.items():
            some = ", ".join(names[:NAMED]) + (" and so on" if len(names) > NAMED else "")
            lines.append(f"  {len(names):,} with {kind}, got {self._got[kind]} (annotation {some})")
        return lines
