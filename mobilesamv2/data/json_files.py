"""Reading JSON files that users provide, and the kinds of their values."""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

GZIP_MAGIC = b"\x1f\x8b"
"""First bytes of a gzip file, whatever its name."""

ZIP_MAGIC = b"PK\x03\x04"
"""First bytes of a zip archive."""

MAX_EXPANSION = 100
"""Bytes of content per byte of a gzip file: annotations have 3 to 20, a file that is made to fill the memory 1,000."""

ANY_EXPANSION_BYTES = 2**26
"""Bytes of content that a gzip file may always have."""

BLOCK_BYTES = 2**20
"""Bytes that are decompressed at a time."""

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
        ValueError: if it is not JSON, or is compressed as no annotations are.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    content: bytes | bytearray = path.read_bytes()
    if content.startswith(ZIP_MAGIC):
        raise ValueError(f"{path} is not valid JSON: it is a zip archive. Unpack it: unzip {path}")
    try:
        if content.startswith(GZIP_MAGIC):
            content = _decompressed(content, path)
        return json.loads(content, object_hook=object_hook)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not valid JSON: it is compressed by gzip, and broken ({error}).") from error
    except _TooLargeError:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise ValueError(f"{path} is not valid JSON: {error}") from error


class _TooLargeError(ValueError):
    """A gzip file that expands beyond all measure."""


def _decompressed(content: bytes, path: Path) -> bytearray:
    """Return the content of a gzip file, read in blocks, so that one that expands too much takes no memory."""
    limit = max(ANY_EXPANSION_BYTES, MAX_EXPANSION * len(content))
    expanded = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        while block := file.read(BLOCK_BYTES):
            expanded += block
            if len(expanded) > limit:
                raise _TooLargeError(
                    f"{path} must expand to at most {limit:,} bytes, {MAX_EXPANSION} times its size, got more. If it "
                    f"is sound all the same, unpack it: gunzip {path}"
                )
    return expanded


def json_files_of(path: Path) -> list[Path]:
    """Return the JSON files of a folder, ``.json`` and ``.json.gz``, by name; the path itself if it is no folder."""
    return sorted([*path.glob("*.json"), *path.glob("*.json.gz")]) if path.is_dir() else [path]
