"""Names of weights in another program's format and in this project's, one table for both directions."""

from __future__ import annotations

import re
from collections.abc import Sequence


class KeyTable:
    """Pairs of their names and ours, of which the first that begins a key replaces that beginning.

    Args:
        rows: theirs and ours; ``{}`` is a number that both have. Keys that no row begins are the same in both.
    """

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        self._to_ours = [(_pattern(theirs), ours) for theirs, ours in rows]
        self._to_theirs = [(_pattern(ours), theirs) for theirs, ours in rows]

    def to_ours(self, key: str) -> str:
        """Return this project's name of a weight that has another program's."""
        return _rename(key, self._to_ours)

    def to_theirs(self, key: str) -> str:
        """Return the other program's name of a weight that has this project's."""
        return _rename(key, self._to_theirs)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile("^" + re.escape(name).replace(r"\{\}", r"(\d+)"))


def _rename(key: str, pairs: list[tuple[re.Pattern[str], str]]) -> str:
    """Replace the beginning of a key by that of the first pair that fits."""
    for pattern, name in pairs:
        found = pattern.match(key)
        if found:
            return name.format(*found.groups()) + key[found.end() :]
    return key
