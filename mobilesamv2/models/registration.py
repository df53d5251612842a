"""Image encoders of one's own: they register themselves by name, and every program finds them.

A weight file names its encoder, and never the module that defines it: a name that nothing registers is an error, and no
weight file makes a program import anything.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar

ENTRY_POINTS = "mobilesamv2.encoders"
"""Group of entry points whose modules register image encoders; for packages that are installed."""

MODULES_VARIABLE = "MOBILESAMV2_ENCODERS"
"""Environment variable with the names of modules that register image encoders, separated by commas."""

HOW_TO_REGISTER = (
    "An encoder of one's own registers itself by @register_encoder, in a module of mobilesamv2/models, of an entry "
    f"point of the group {ENTRY_POINTS}, or that {MODULES_VARIABLE}=MODULE names."
)

Family = Literal["sam", "sam2"]

Build = TypeVar("Build", bound=Callable[..., Any])

_registered: dict[Family, dict[str, Callable[..., Any]]] = {"sam": {}, "sam2": {}}


def register_encoder(name: str, family: Family = "sam") -> Callable[[Build], Build]:
    """Decorate a function that builds an image encoder: its name is known wherever an encoder is named.

    The function is called with ``image_size`` and ``out_channels`` by name, and returns an ``ImageEncoder`` with random
    weights. Saved weights carry the name, which is therefore not to change.

    Args:
        name: of the encoder, of letters, digits, ``_``, ``-`` and ``.``.
        family: of the models that take it: ``sam``, with its variants, or ``sam2``.

    Raises:
        ValueError: if the name is of another form, or another function has it; or the family is unknown.
    """
    if not name or not all(sign.isalnum() or sign in "_-." for sign in name):
        raise ValueError(f"The name of an encoder must be of letters, digits, _, - and ., got {name!r}.")
    if family not in _registered:
        raise ValueError(f"family must be one of {', '.join(_registered)}, got {family!r}.")
    known = _registered[family]

    def register(build: Build) -> Build:
        if name in known and _origin(known[name]) != _origin(build):
            raise ValueError(f"Two encoders register as '{name}': {_origin(known[name])} and {_origin(build)}.")
        known[name] = build
        return build

    return register


def registered_encoders(family: Family) -> dict[str, Callable[..., Any]]:
    """Return the image encoders of a family that register themselves, by name.

    Raises:
        ValueError: if a module that may register some can't be imported.
    """
    for module in (*_modules_of_this_package(), *_modules_of_others()):
        _import(module)
    return dict(_registered[family])


@cache
def _modules_of_this_package() -> tuple[str, ...]:
    package = __name__.rpartition(".")[0]
    return tuple(f"{package}.{module.name}" for module in pkgutil.iter_modules([str(Path(__file__).parent)]))


def _modules_of_others() -> Iterator[str]:
    yield from (point.module for point in entry_points(group=ENTRY_POINTS))
    yield from filter(None, (name.strip() for name in os.environ.get(MODULES_VARIABLE, "").split(",")))


def _import(module: str) -> None:
    try:
        import_module(module)
    except Exception as error:  # a module of a user's own may fail in any way
        raise ValueError(
            f"The module {module}, which may register image encoders, can't be imported: "
            f"{type(error).__name__}: {error}."
        ) from error


def _origin(build: Callable[..., Any]) -> str:
    """Return where a function is defined; the same for one whose module is imported again."""
    return f"{build.__module__}.{getattr(build, '__qualname__', id(build))}"
