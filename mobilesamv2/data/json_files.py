"""Reading JSON files that users provide, and the kinds of their values."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

GZIP_MAGIC = b"\x1f\x8b"
"""First bytes of a gzip file, whatever its name."""

MAX_SHOWN = 60
"""Characters of a value in an error message."""


def is_finite_number(value: Any) -> bool:
    """Return whether a JSON value is a number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def whole_number(value: Any) -> int | None:
    """Return a JSON value as a 64-bit integer, ``3.0`` too, as pandas and MATLAB write it; None if it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63 else None


def shown(value: Any) -> str:
    """Return a JSON value for an error message: text in quotes, and called text, since ``"7"`` is not 7; shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:  # a number of thousands of digits
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    short = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    return f"the text {short}" if isinstance(value, str) else short


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Return the content of a JSON file, compressed by gzip or not.

    Args:
        path: of the file.
        object_hook: called with each object as soon as it is read; its result takes the object's place.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    content = path.read_bytes()
    try:
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
        return json.loads(content, object_hook=object_hook)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not valid JSON: it is compressed by gzip, and broken ({error}).") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def json_files_of(path: Path) -> list[Path]:
    """Return the JSON files of a folder, ``.json`` and ``.json.gz``, by name; the path itself if it is no folder."""
    return sorted([*path.glob("*.json"), *path.glob("*.json.gz")]) if path.is_dir() else [path]
