"""A lock in a run's folder, so that two programs never write into it at once."""

from __future__ import annotations

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

    A lock is stale, and taken over, if its process is gone, if it is of the same job of Slurm, which was requeued, or
    if it is of another machine and shows no sign of life. File locks of the system would not do: many network file
    systems lack them.

    Raises:
        ValueError: if another process holds it.
        OSError: if the folder can't be written to.
    """
    path, owner = folder / LOCK, _owner()
    folder.mkdir(parents=True, exist_ok=True)
    while not _create(path, owner):
        holder = _read(path)
        if holder is not None and not _is_stale(path, holder):
            raise ValueError(
                f"Process {holder['pid']} on {holder['host']} writes into {folder} since {holder['since']}. Name "
                f"another output_dir, or wait; if that process is gone, delete {path}."
            )
        path.unlink(missing_ok=True)
    _remove_stale_parts(folder)
    ended = threading.Event()
    threading.Thread(target=_show_life, args=(path, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if _read(path) == owner:
            path.unlink(missing_ok=True)


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
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _create(path: Path, owner: dict[str, Any]) -> bool:
    """Create the lock with its owner in it; return whether there was none."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        json.dump(owner, file)
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """Return the owner of a lock; None if it is gone, or was not written in time by a process that died."""
    for _ in range(20):
        try:
            return dict(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # its owner is writing it
            time.sleep(0.05)
    return None


def _is_stale(path: Path, holder: dict[str, Any]) -> bool:
    if holder.get("job") and holder["job"] == os.environ.get("SLURM_JOB_ID"):
        return True
    if holder.get("host") != socket.gethostname():
        try:
            return time.time() - path.stat().st_mtime > STALE_S
        except FileNotFoundError:
            return True
    return _start_time(int(holder["pid"])) != holder.get("started") or not _is_alive(int(holder["pid"]))


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
