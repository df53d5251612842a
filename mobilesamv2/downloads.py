"""Downloads that go on where they stopped and are checked when they are whole."""

from __future__ import annotations

import errno
import hashlib
import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mobilesamv2.released import FILES, RELEASED

BLOCK = 1 << 20
"""Bytes that are read at a time."""

TIMEOUT_S = 30.0
"""A connection that says nothing for so long is taken to be lost."""

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
"""Errors that no other attempt would mend."""

BUSY = (429, 500, 502, 503, 504)
"""Answers of a server that another attempt may mend."""


def released_files(names: list[str]) -> list[str]:
    """The names of released files for names of files or of models.

    Raises:
        ValueError: nothing of such a name is released.
    """
    files = []
    for name in names:
        if name not in RELEASED and name not in FILES:
            raise ValueError(f"Nothing is published as '{name}'. There are {', '.join([*FILES, *RELEASED])}.")
        files += FILES.get(name, (name,))
    return files


def download_released(name: str, folder: str | Path) -> Path:
    """Downloads a released weight file, unless a good one is there, and returns its path.

    Raises:
        ValueError: no program can download it, or what came is not it.
        ConnectionError: the network failed.
    """
    released, path = RELEASED[name], Path(folder) / name
    if released.url is None:
        raise ValueError(f"{name} can't be downloaded by a program: see {released.where}; put it at {path}.")
    download(released.url, path, released.sha256)
    return path


def download(url: str, path: str | Path, sha256: str | None = None, attempts: int = 3, pause_s: float = 2.0) -> str:
    """Downloads a file, unless it is there, and returns its SHA-256.

    What has come lies beside it as ``NAME.part`` until it is whole; the next call goes on from there.

    Args:
        url: http or https.
        path: where to.
        sha256: what its bytes must give; None takes any.
        attempts: how often a lost connection or a busy server is tried.
        pause_s: seconds before the second attempt, and twice as long before each further one.

    Raises:
        ValueError: the bytes give another hash, or are a page; a file that was there is left alone.
        ConnectionError: the server can't be reached, refuses, or was lost each time.
        OSError: the disk is full, or can't be written to; what came is kept.
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
                if error.code not in BUSY or attempt + 1 == attempts:
                    raise ConnectionError(f"{url} answers {error.code}, {error.reason}; {_by_hand(path)}") from error
                time.sleep(pause_s * 2**attempt)
            except (OSError, http.client.HTTPException) as error:
                if getattr(error, "errno", None) in OF_THE_DISK:
                    message = f"{part} can't be written: {error}. The same command goes on from what came."
                    raise OSError(message) from error
                if attempt + 1 == attempts:
                    reason = getattr(error, "reason", error)
                    message = f"{url} can't be had: {reason}. The same command goes on from what came; {_by_hand(path)}"
                    raise ConnectionError(message) from error
                time.sleep(pause_s * 2**attempt)
    found = _sha256(path if path.is_file() else part)
    if sha256 is not None and found != sha256:
        if part.is_file():
            part.unlink()
            raise ValueError(f"{url} gave a file of SHA-256 {found}, not {sha256}: nothing was kept. Try again.")
        raise ValueError(f"{path} has the SHA-256 {found}, not {sha256}: move it away and try again.")
    if part.is_file():
        part.replace(path)
    return found


def _by_hand(path: Path) -> str:
    return f"a file that another machine downloaded goes to {path}."


def _fetch(url: str, part: Path) -> None:
    """Brings the rest of a file."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "mobilesamv2", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        # 416: nothing is behind what we have; whether that is the file, its hash says
        if error.code == 416 and have:
            return
        raise
    with answer:
        if "text/html" in answer.headers.get("Content-Type", ""):
            raise ValueError(f"{url} gave a page of HTML instead of the file, as networks with a login do.")
        if answer.status != 206:  # the server sends the file from its start
            have = 0
        _write(answer, part, have)


def _write(answer: Any, part: Path, have: int) -> None:
    coming = answer.headers.get("Content-Length")
    total = have + int(coming) if coming else None
    with (
        part.open("ab" if have else "wb") as file,
        tqdm(
            total=total, initial=have, desc=part.stem, unit="B", unit_scale=True, unit_divisor=1024, disable=None
        ) as bar,
    ):
        while block := answer.read(BLOCK):
            file.write(block)
            bar.update(len(block))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"the connection was lost after {part.stat().st_size:,} of {total:,} bytes")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
