"""The identity of a run, which its folder records: what its results depend on, compared when it resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def require_same_identity(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path, way_out: str) -> None:
    """Check that a run which resumes is the one that its folder records.

    Args:
        saved: what the folder records, flat.
        now: the same of the run that begins.
        folder: of the run.
        way_out: what to do instead, a sentence.

    Raises:
        ValueError: if they differ; the sentence names each setting with both values.
    """
    differs = [key for key in sorted(saved.keys() | now.keys()) if saved.get(key) != now.get(key)]
    if differs:
        changes = "; ".join(f"{key} was {_shown(saved.get(key))} and is {_shown(now.get(key))}" for key in differs)
        raise ValueError(f"{folder} holds another run ({changes}). {way_out}")


def read_identity(path: Path, way_out: str) -> dict[str, Any]:
    """Read the JSON object that a folder records of its run.

    Raises:
        ValueError: if the file can't be read.
    """
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError(f"it must be a JSON object, got {type(content).__name__}")
        return content
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} can't be read ({error}). {way_out}") from error


def _shown(value: Any) -> str:
    """Return a value as the command line would take it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)
