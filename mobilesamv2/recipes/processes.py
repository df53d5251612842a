"""Processes that run a command of this program, and end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
"""Linux's option of prctl: the signal that a process gets when its parent dies."""


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start ``mobilesamv2`` in a process of its own, its output in a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mobilesamv2", *arguments]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, preexec_fn=end_with_parent())


def end_with_parent() -> Callable[[], None] | None:
    """Return what a new process calls so that it is told to stop when this one is killed; None where Linux is not.

    It would hold the locks of its cell, so that a benchmark that is started again could not resume it.
    """
    if not sys.platform.startswith("linux"):
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before
            os._exit(1)

    return ask


def stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Tell processes to stop, and wait until they have saved what they have."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
