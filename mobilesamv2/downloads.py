"""Downloads over HTTP: resumed where they stopped, and checked."""

from __future__ import annotations

import errno
import http.client
import lzma
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from mobilesamv2.files import atomic_write, sha256_of

CHUNK_BYTES = 1 << 20
"""Bytes read from the network at a time."""

TIMEOUT_S = 30.0
"""Seconds without data after which a connection counts as lost."""

DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
"""Errors of the disk, which a retry does not fix."""

RETRY_STATUSES = (429, 500, 502, 503, 504)
"""HTTP statuses that a retry may fix."""

DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
"""What zipfile raises for damaged archives; RuntimeError for those that seem encrypted or of an unknown kind."""


# Own code, because torch.hub.download_url_to_file starts over after a lost connection, and files have up to 2.5 GB.
def download(url: str, path: str | Path, sha256: str | None = None, attempts: int = 3, pause_s: float = 2.0) -> str:
    """Download a file, unless it is there, and return its SHA-256.

    An interrupted download is kept as ``<name>.part`` and resumed by the next attempt or call.

    Args:
        url: HTTP or HTTPS.
        path: the file to write; its folder is created if missing.
        sha256: expected checksum; None accepts any.
        attempts: how many times a failing connection or a busy server is tried.
        pause_s: seconds before the second attempt; doubled for each further one.

    Raises:
        ValueError: if the server sends a web page, or the checksum is not ``sha256``; an existing file is left alone.
        ConnectionError: if the server can't be reached, refuses, or loses the connection in every attempt.
        OSError: if the disk is full or can't be written; the partial download is kept.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(attempts):
            try:
                _fetch(url, part)
                break
            except urllib.error.HTTPError as error:
                if error.code not in RETRY_STATUSES or attempt + 1 == attempts:
                    message = f"{url} returned HTTP status {error.code}, {error.reason}. {_manual_hint(path)}"
                    raise ConnectionError(message) from error
                time.sleep(pause_s * 2**attempt)
            except (OSError, http.client.HTTPException) as error:
                if getattr(error, "errno", None) in DISK_ERRNOS:
                    message = f"{part} can't be written: {error}. The same command resumes the download."
                    raise OSError(message) from error
                if attempt + 1 == attempts:
                    reason = getattr(error, "reason", error)
                    message = f"{url} can't be downloaded: {reason}. The same command resumes. {_manual_hint(path)}"
                    raise ConnectionError(message) from error
                time.sleep(pause_s * 2**attempt)
    found = sha256_of([path if path.is_file() else part])
    if sha256 is not None and found != sha256:
        if part.is_file():
            part.unlink()
            raise ValueError(f"The SHA-256 of {url} must be {sha256}, got {found}; the file was deleted. Try again.")
        raise ValueError(f"The SHA-256 of {path} must be {sha256}, got {found}. Move the file away and try again.")
    if part.is_file():
        part.replace(path)
    return found


def unpack(archive: Path, path: Path) -> None:
    """Write the file of the name of ``path`` that a zip archive holds, and delete the archive.

    Raises:
        ValueError: if the archive is damaged, or does not hold one such file.
        OSError: if the disk is full or can't be written; the archive is kept.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            found = [name for name in content.namelist() if PurePosixPath(name).name == path.name]
            if len(found) != 1:
                raise ValueError(f"{archive} must hold one {path.name}, got {', '.join(content.namelist()[:3])}.")
            with content.open(found[0]) as member, atomic_write(path) as partial, partial.open("wb") as file:
                shutil.copyfileobj(member, file, CHUNK_BYTES)
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is a position before the file's start
            raise
        reason = str(error) or "it ends too early"
        raise ValueError(f"{archive} is a damaged zip archive: {reason}. Delete it and try again.") from error
    archive.unlink()


def _manual_hint(path: Path) -> str:
    return f"If you download the file by other means, put it at {path}."


def _fetch(url: str, part: Path) -> None:
    """Download the rest of a file."""
    offset = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "mobilesamv2", **({"Range": f"bytes={offset}-"} if offset else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        # 416: the server has nothing beyond our offset; the checksum decides whether the file is complete
        if error.code == 416 and offset:
            return
        raise
    with response:
        if "text/html" in response.headers.get("Content-Type", ""):
            raise ValueError(f"{url} returned an HTML page instead of the file, as networks with a login page do.")
        if response.status != 206:  # the server ignores ranges and sends the file from its start
            offset = 0
        _append(response, part, offset)


def _append(response: Any, part: Path, offset: int) -> None:
    length = response.headers.get("Content-Length")
    total = offset + int(length) if length else None
    with (
        part.open("ab" if offset else "wb") as file,
        tqdm(
            total=total, initial=offset, desc=part.stem, unit="B", unit_scale=True, unit_divisor=1024, disable=None
        ) as bar,
    ):
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            bar.update(len(chunk))
    size = part.stat().st_size
    if total is not None and size < total:
        raise ConnectionError(f"the connection was lost after {size:,} of {total:,} bytes")
    if total is not None and size > total:
        part.unlink()
        raise ConnectionError(f"{size:,} bytes came for {total:,}: another process downloads the same file")
