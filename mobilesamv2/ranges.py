"""Ranges of numbers, declared once, with the type of a setting: ``confidence: Share``.

The check of a configuration reads them from the signature of what a group builds, and dataclasses check their fields.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have; NaN and infinity are in no range.

    Attributes:
        least: the smallest.
        most: the largest.
        above: all are larger than this.
        below: all are smaller than this.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            _is_finite(value)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"between {self.least} and {self.most}"
        bounds = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        words = [f"{word} {bound}" for word, bound in bounds if bound is not None]
        return " and ".join(words) or "a number"


Share = Annotated[float, Range(0, 1)]
"""A probability, a threshold of IoU or confidence, a part of a whole."""

Weight = Annotated[float, Range(0)]
"""The weight of a loss; 0 leaves it out."""

Area = Annotated[float, Range(0)]
"""Square pixels."""

Positive = Annotated[float, Range(above=0)]
"""A number above 0."""

Count = Annotated[int, Range(1)]
"""A number of things of which there is at least one."""

NonNegativeInt = Annotated[int, Range(0)]
"""A number of things of which there may be none, or the seed of NumPy's generator."""


def annotated_types(target: Any) -> dict[str, Any]:
    """Return the types of the parameters of a class or a function, with their ranges, by name."""
    if inspect.isclass(target) and not is_dataclass(target) and target.__init__ is not object.__init__:
        target = target.__init__
    try:
        return get_type_hints(target, include_extras=True)
    except NameError:  # others import some types for their type checker alone
        return {}


def require_range(name: str, value: Any, hint: Any) -> None:
    """Check that a value, and each of its elements, is in the range of its type.

    Args:
        name: of the setting, for the message.
        value: a plain value of the type ``hint``.
        hint: a type, with its ranges inside ``Annotated``; a number of another type than Any is finite in any case.

    Raises:
        ValueError: if it is not.
    """
    wanted = _broken_range(value, hint)
    if wanted is None:
        return
    each = " each" if isinstance(value, list | tuple) else ""
    finite = " and finite" if value == math.inf and wanted.most is None and wanted.below is None else ""
    raise ValueError(f"{name} must{each} be {wanted}{finite}, got {value}.")


def check_ranges(settings: Any, prefix: str = "") -> None:
    """Check the fields of a dataclass.

    Args:
        settings: the dataclass.
        prefix: of the fields' names in the message.

    Raises:
        ValueError: if one is not in the range of its type.
    """
    for name, hint in annotated_types(type(settings)).items():
        require_range(f"{prefix}{name}", getattr(settings, name), hint)


def _broken_range(value: Any, hint: Any) -> Range | None:
    """Return the range that a value, or one of its elements, is not in; None where all are in theirs."""
    if isinstance(value, list | tuple):
        broken = (_broken_range(each, kind) for each, kind in zip(value, _element_types(hint, len(value)), strict=True))
        return next(filter(None, broken), None)
    if hint is Any or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    ranges = _ranges(hint, value) or [Range()]
    return None if any(value in each for each in ranges) else ranges[0]


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _ranges(hint: Any, value: float) -> list[Range]:
    """Return the ranges of a number's type, or of those types of a union of which it is one."""
    own = [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Range)]
    if own:
        return own if get_args(hint)[0] is not int or isinstance(value, int) else []
    return [found for part in _parts(hint) for found in _ranges(part, value)]


def _parts(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one inside ``Annotated``; none of any other type."""
    origin, args = get_origin(hint), get_args(hint)
    return args if origin in (Union, UnionType) else args[:1] if origin is Annotated else ()


def _element_types(hint: Any, count: int) -> list[Any]:
    """Return the types of the elements of a list."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple and Ellipsis not in args:
        return list(args) if len(args) == count else [Any] * count
    if origin in (list, tuple, Sequence):
        return [args[0]] * count
    return next((_element_types(part, count) for part in _parts(hint) if get_args(part)), [Any] * count)
