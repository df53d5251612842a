"""Processes that run a command of this program, and end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
"""Linux's option of prctl: the signal that a process gets when its parent dies."""


SAVING_S = 600.0
"""Seconds that a process has for saving before it is killed.

It saves after the step or image in progress, and one image by a grid of 64 x 64 takes 2 minutes on two CPU cores.
"""


def start(arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start ``mobilesamv2`` in a process of its own, its output in a log.

    Call it in the main thread: on Linux the process ends with the thread that started it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mobilesamv2", *arguments]
    with log.open("wb") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, preexec_fn=end_with_parent()
        )


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


def stop(processes: Iterable[subprocess.Popen[bytes]], saving_s: float = SAVING_S) -> None:
    """Tell processes to stop, and wait until they have saved what they have.

    Those that take longer than ``saving_s`` seconds are killed; a second Ctrl-C or SIGTERM kills all of them at once.
    """
    processes = [process for process in processes if process.poll() is None]
    if not processes:
        return
    deadline = time.monotonic() + saving_s
    try:
        print("\nstopping once the jobs have saved; Ctrl-C again ends them at once", file=sys.stderr, flush=True)
        for process in processes:
            process.terminate()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Have SIGTERM raise SystemExit, as Ctrl-C raises KeyboardInterrupt, so that ``finally`` stops what was started.

    Outside the main thread, which alone receives signals, it does nothing.
    """

    def raise_exit(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, raise_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
