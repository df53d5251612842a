"""Files that are there whole or not at all, whatever ends the program or fills the disk."""

from __future__ import annotations

import os
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A name to write under, beside a file, whose name it gets once all is written and synchronised.

    Where that fails nothing is left of it, and an earlier file of that name stays.

    Raises:
        OSError: the folder can't be made or written to, or the disk is full; the sentence names the file.
    """
    path = Path(path)
    partial = path.with_name(f"{uuid.uuid4().hex}.partial")
    try:
        with named_in_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """While a file is written: a full disk says only that it is full.

    Raises:
        OSError: the file can't be written; the sentence names it.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has no other word for a full disk
        raise OSError(f"{path} can't be written: {getattr(error, 'strerror', None) or error}") from error


def write_whole(path: Path, text: str) -> None:
    """Writes a text by ``whole_file``.

    Raises:
        OSError: the file can't be written; the sentence names it.
    """
    with whole_file(path) as partial:
        partial.write_text(text)


def save_whole(content: Any, path: str | Path) -> None:
    """``torch.save`` by ``whole_file``.

    Raises:
        OSError: the file can't be written; the sentence names it.
    """
    with whole_file(path) as partial:
        try:
            torch.save(content, partial)
        except RuntimeError as error:  # what torch's writer makes of a full disk; its words speak of positions
            raise OSError(f"the disk is full, or out of reach ({error})") from error


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by their names.

    Raises:
        ValueError: it can't be read; the sentence names it.
    """
    try:  # each of these is what NumPy and zipfile raise for damage of some kind; they have no error of their own
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, BadZipFile, zlib.error) as error:
        raise ValueError(f"What is in {path} can't be read ({error}); delete that file.") from error
