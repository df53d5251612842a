"""Renders the docstrings as pages of HTML: ``python docs/render.py outputs/docs`` (pip install -e '.[docs]')."""

import pkgutil
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pdoc


def render(folder: Path, package: str = "mobilesamv2") -> list[str]:
    """Write a page for each public module of a package, and an index that searches them; return the modules' names.

    Args:
        folder: where to; it is created if need be.
        package: the name of the package.
    """
    root = import_module(package)
    names = [package, *(found.name for found in pkgutil.walk_packages(root.__path__, f"{package}."))]
    modules = {name: import_module(name) for name in names}
    for module in modules.values():
        show_submodules(module)
        silence_named_tuples(module)
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(package, output_directory=folder)
    return names


def show_submodules(module: ModuleType) -> None:
    """Has the page of a package list its modules, which pdoc leaves out where there is an ``__all__``."""
    if hasattr(module, "__path__") and hasattr(module, "__all__"):
        module.__all__ += [found.name for found in pkgutil.iter_modules(module.__path__)]


def silence_named_tuples(module: ModuleType) -> None:
    """Leaves out what Python writes of a named tuple, whose docstring says more; and has its annotations understood."""
    for kind in vars(module).values():
        if not (isinstance(kind, type) and issubclass(kind, tuple) and kind.__module__ == module.__name__):
            continue
        named: Any = kind
        named.__new__.__doc__ = ""
        named.__new__.__annotations__ = get_type_hints(kind)
        for field in named._fields:
            getattr(named, field).__doc__ = ""


if __name__ == "__main__":
    print(f"{len(render(Path(sys.argv[1])))} modules; open {sys.argv[1]}/index.html")
