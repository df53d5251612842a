"""Names that a user chooses from: the nearest ones to a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SURE = 0.9
"""A name this near is the one that was meant, and is suggested alone; less near ones come in threes at most."""


def did_you_mean(name: str, known: Iterable[str], form: str = "'{}'") -> str:
    """Return a sentence with the nearest of the known names, after a blank; nothing where none is near.

    Letters' case, hyphens and underscores make no difference.

    Args:
        name: what the user wrote.
        known: the names to choose from.
        form: how a name is written, ``experiment={}`` for example.

    Example:
        >>> did_you_mean("distil_tinyvit", ["distill_repvit", "distill_tinyvit"], "experiment={}")
        ' Did you mean experiment=distill_tinyvit?'
    """
    by_key = {_key(each): each for each in known}
    keys = difflib.get_close_matches(_key(name), by_key, n=1, cutoff=SURE)
    keys = keys or difflib.get_close_matches(_key(name), by_key)
    near = [form.format(by_key[key]) for key in keys]
    if not near:
        return ""
    return f" Did you mean {' or '.join(filter(None, [', '.join(near[:-1]), near[-1]]))}?"


def _key(name: str) -> str:
    return name.lower().replace("-", "_")
