"""Modules of reference packages that import more than they need."""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest


def import_alone(name: str) -> Any:
    """Imports a module without running the ``__init__`` of its packages; skips the test if there is no such package."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs {top}")
    folder = next(iter(spec.submodule_search_locations))
    package = f"lone_{top}"
    for part in ["", *rest[:-1]]:
        package, folder = (f"{package}.{part}", f"{folder}/{part}") if part else (package, folder)
        module = sys.modules.setdefault(package, ModuleType(package))
        module.__path__ = [folder]
    return importlib.import_module(f"{package}.{rest[-1]}")
