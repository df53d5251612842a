"""The command line of a subcommand, which Hydra and Lightning read in different forms from ``sys.argv``.

Hydra takes its overrides from there, and the program's name in what it prints: ``mobilesamv2 train``, then overrides
alone. Lightning repeats it to start the other processes of a run: the file of the command, ``train``, overrides.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_whole: list[str] = []
"""The command line that starts this program again; empty where Hydra's form is that, as in train.py."""


@contextmanager
def as_hydra_program(name: str, overrides: Sequence[str]) -> Iterator[None]:
    """Have Hydra read a subcommand's arguments as those of a program of its own."""
    before = sys.argv
    _whole[:] = [before[0], name, *overrides]
    sys.argv = [f"mobilesamv2 {name}", *overrides]
    try:
        yield
    finally:
        sys.argv = before
        _whole.clear()


def show_whole_command() -> None:
    """Put the subcommand back, once Hydra has read its part and before Lightning starts processes."""
    if _whole:
        sys.argv = list(_whole)
