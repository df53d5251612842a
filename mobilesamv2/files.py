"""Files: written completely or not at all, even if the program dies or the disk fills; read; hashed."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

_UMASK = os.umask(0)
os.umask(_UMASK)  # there is no other way to ask for it


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which is renamed to ``path`` once it is written and synchronised to disk.

    On failure the temporary file is removed, and an earlier file at ``path`` stays as it was. The file has the
    permissions that the umask gives, whatever library wrote it.

    Raises:
        OSError: if the folder can't be created or written to, or the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f"{uuid.uuid4().hex}.partial")
    try:
        with named_in_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.chmod(0o666 & ~_UMASK)
            partial.replace(path)
    finally:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Re-raise write errors with the file's path in the message, which the error of a full disk lacks.

    Raises:
        OSError: if the file can't be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors' error for a full disk
        raise OSError(f"{path} can't be written: {getattr(error, 'strerror', None) or error}") from error


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text through ``atomic_write``.

    Raises:
        OSError: if the file can't be written.
    """
    with atomic_write(path) as partial:
        partial.write_text(text)


def torch_save_atomic(content: Any, path: str | Path) -> None:
    """Call ``torch.save`` through ``atomic_write``.

    Raises:
        OSError: if the file can't be written.
    """
    import torch  # here, so that the command line's help does not wait for it

    with atomic_write(path) as partial:
        try:
            torch.save(content, partial)
        except RuntimeError as error:  # torch's error for a full disk, whose text is about file positions
            raise OSError(f"the disk is full or unreachable ({error})") from error


def sha256_of(files: Iterable[str | Path]) -> str:
    """Return the SHA-256 of the content of files, concatenated in order."""
    digest = hashlib.sha256()
    for path in files:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file by name.

    Raises:
        ValueError: if the file can't be read.
    """
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # NumPy and zipfile raise many types on a damaged file, with no base class in common
        raise ValueError(f"{path} can't be read ({error}); delete that file.") from error
