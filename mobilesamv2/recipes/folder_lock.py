"""A lock in a run's folder, so that two programs never write into it at once."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK = "run.lock"

HEARTBEAT_S, STALE_S = 60.0, 300.0
"""Seconds between two signs of life, and after how many without one a lock of another machine is stale."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; of several processes of a run only the first one calls this.

    A lock is stale, and taken over, if its process on this machine is gone, or if it is of another machine and shows no
    sign of life, or is of the same job of Slurm before that was requeued. One that can't be read is of a process that
    died while it wrote. File locks of the system would not do: many network file systems lack them.

    Raises:
        ValueError: if another process holds it.
        OSError: if the folder can't be written to.
    """
    path, content = folder / LOCK, json.dumps(_owner()).encode()
    folder.mkdir(parents=True, exist_ok=True)
    _acquire(path, content, folder)
    _remove_stale_parts(folder)
    ended = threading.Event()
    threading.Thread(target=_show_life, args=(path, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if _read(path) == content:
            path.unlink(missing_ok=True)


def _acquire(path: Path, content: bytes, folder: Path) -> None:
    """Create a lock, or replace a stale one.

    Between the verdict on a stale lock and its removal another process may take it over, and the lock that is removed
    would be a living one. So only that process replaces a stale lock which holds a second one, named after its content,
    and only while it still has that content. The second lock becomes the first by being renamed.
    """
    while not _create(path, content):
        stale = _read(path)
        if stale is None:
            continue
        holder = _parse(stale)
        if holder is not None and not _is_stale(path, holder):
            raise ValueError(
                f"Process {holder['pid']} on {holder['host']} writes into {folder} since {holder['since']}. Name "
                f"another output_dir, or wait; if that process is gone, delete {path}."
            )
        claim = path.with_name(f"{LOCK}-{hashlib.sha256(path.name.encode() + stale).hexdigest()[:16]}.partial")
        _acquire(claim, content, folder)
        if _read(path) == stale:
            claim.replace(path)
            return
        claim.unlink(missing_ok=True)


def _remove_stale_parts(folder: Path) -> None:
    """Remove what ``atomic_write`` had not renamed when a process was killed; young ones may be in use."""
    for path in folder.rglob("*.partial"):
        try:
            if time.time() - path.stat().st_mtime > STALE_S:
                path.unlink()
        except FileNotFoundError:
            continue


def _owner() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restarts": _restarts(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _restarts() -> str:
    """Return how often Slurm has requeued this job."""
    return os.environ.get("SLURM_RESTART_COUNT", "0")


def _create(path: Path, content: bytes) -> bool:
    """Create a lock with its owner in it; return whether there was none."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return _read(path) == content  # not where it took so long that another process took the empty lock for stale


def _read(path: Path) -> bytes | None:
    """Return the content of a lock, once it is readable or its owner has had time to write it; None if it is gone."""
    content = None
    for _ in range(20):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        if _parse(content) is not None:
            break
        time.sleep(0.05)  # its owner is writing it
    return content


def _parse(content: bytes) -> dict[str, Any] | None:
    """Return the owner that a lock names; None for one that names none."""
    try:
        owner = json.loads(content)
        pid, texts = owner["pid"], (owner["host"], owner["since"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    is_owner = type(pid) is int and 0 < pid < 1 << 31 and all(isinstance(text, str) for text in texts)
    return owner if is_owner else None


def _is_stale(path: Path, holder: dict[str, Any]) -> bool:
    if holder["host"] == socket.gethostname():  # a job of Slurm can have several processes, so its id says nothing here
        return _start_time(holder["pid"]) != holder.get("started") or not _is_alive(holder["pid"])
    if holder.get("job") and holder["job"] == os.environ.get("SLURM_JOB_ID") and holder.get("restarts") != _restarts():
        return True  # Slurm ends all processes of a job before it starts it again
    try:
        return time.time() - path.stat().st_mtime > STALE_S
    except FileNotFoundError:
        return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _start_time(pid: int) -> str | None:
    """Return when a process started, in clock ticks, since pids are used again; None where Linux does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _show_life(path: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_S):
        try:
            os.utime(path)
        except OSError:  # the folder is gone, or out of reach for a while
            continue
