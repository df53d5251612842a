"""Files: written completely or not at all, even if the program dies or the disk fills; read; hashed."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""Version of NumPy's format -> reader of its header."""

MAX_COMPRESSION = 1100
"""Bytes that one byte of deflate can expand to, rounded up."""

PARTIAL = re.compile(r"[0-9a-f]{32}\.partial|\.[a-z0-9_]{8}\.partial")
"""Names of the temporary files of ``atomic_write``, and of the temporary folders of an export."""

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


def remove_partial(folder: Path) -> None:
    """Remove the temporary files and folders that a program left in a folder when it was killed.

    Call it only where no other program writes.
    """
    for path in folder.glob("*.partial"):
        if PARTIAL.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


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


def check_archive(path: Path) -> None:
    """Check the checksums in a zip archive, which ``torch.load`` ignores: a changed byte would load as another number.

    It takes .6 s/GB on a slow core, two thirds of what ``torch.load`` takes. Files of torch's older format are no
    archives and have no checksum; nor have the records that torch wrote without, as 0.

    Raises:
        zipfile.BadZipFile: if a record is not what was written.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.CRC:
                with archive.open(record) as content:
                    while content.read(1 << 20):
                        pass


def read_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file by name.

    Args:
        path: of the file.
        names: of those that are read, where the file has them; None for all.

    Raises:
        ValueError: if the file can't be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = {each.filename.removesuffix(".npy"): each for each in archive.infolist()}
            return {name: _read_array(archive, records[name]) for name in records if names is None or name in names}
    except Exception as error:  # NumPy and zipfile raise many types on a damaged file, with no base class in common
        raise ValueError(f"{path} can't be read ({error}); delete that file.") from error


def _read_array(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> np.ndarray:
    """Return an array of an archive, after a check that its bytes are there: NumPy allocates what a header says."""
    if record.file_size > MAX_COMPRESSION * record.compress_size:
        raise ValueError(f"{record.filename} can't have {record.file_size:,} bytes in {record.compress_size:,}")
    stream = io.BytesIO(archive.read(record))
    version = np.lib.format.read_magic(stream)
    if version not in NPY_HEADERS:
        raise ValueError(f"{record.filename} has version {version} of NumPy's format")
    shape, _, dtype = NPY_HEADERS[version](stream)
    nbytes, expected = stream.getbuffer().nbytes - stream.tell(), math.prod(shape) * dtype.itemsize
    if nbytes != expected and not dtype.hasobject:
        raise ValueError(f"{record.filename} has {nbytes:,} bytes for an array of {expected:,}")
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)
