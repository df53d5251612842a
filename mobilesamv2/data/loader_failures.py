"""Why a loader of images failed, where the system is to blame: a killed worker, or no memory that is shared."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import traceback

SHARED_MEMORY = re.compile(r"shared memory|/torch_\d+|Bus error|/dev/shm", re.IGNORECASE)
KILLED = re.compile(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\) (?:is killed by signal: (\w+)|exited unexpectedly)")

SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
"""Longest path of a Unix socket. Source: ``sun_path`` in unix(7), and in macOS's sys/un.h, less the zero at its end."""
SOCKET_NAME = "/pymp-abcdefgh/listener-abcdefgh"
"""What Python's ``multiprocessing`` appends to the folder of temporary files."""


def check_socket_folder(num_workers: int) -> None:
    """Refuse a folder of temporary files in which workers can't open the sockets that they hand on tensors through.

    A worker that can't open one loses the batch, and the loader would wait for it forever.

    Raises:
        ValueError: if there are workers, and the path is too long.
    """
    folder, longest = tempfile.gettempdir(), SOCKET_PATH_BYTES - len(SOCKET_NAME)
    if num_workers and os.name == "posix" and len(os.fsencode(folder)) > longest:
        raise ValueError(
            f"The path of the folder of temporary files must have at most {longest} bytes for the sockets of loader "
            f"workers, got {len(os.fsencode(folder))}: {folder}. Set TMPDIR to another one, or num_workers=0."
        )


def loader_failure(error: BaseException, workers: str = "num_workers") -> str | None:
    """Return the sentence for an error that torch's loader raises for a worker, or None for any other error.

    Args:
        error: that ended the program.
        workers: the option that sets the number of workers.
    """
    text = str(error)
    if isinstance(error, ConnectionResetError | EOFError) and _is_of_a_process(error):  # a worker's queue
        return (
            f"A worker of the loader was killed, most likely as memory ran out. Lower {workers} or the batch size; "
            f"{workers}=0 loads images in the program itself."
        )
    if not isinstance(error, RuntimeError | OSError) or not ("DataLoader worker" in text or "/torch_" in text):
        return "Memory is full: use a smaller batch, or fewer workers." if _is_memory_full(error) else None
    if SHARED_MEMORY.search(text):
        return (
            "Shared memory (/dev/shm), through which the workers of the loader hand on images, is full: raise it "
            f"(docker run --shm-size=8g), lower {workers} or the batch size, or set {workers}=0, which uses none."
        )
    if killed := KILLED.search(text):
        signal = f" by {killed[2]}" if killed[2] and killed[2] != "Killed" else ""
        return (
            f"A worker of the loader (process {killed[1]}) was killed{signal}, most likely as memory ran out. Lower "
            f"{workers} or the batch size; {workers}=0 loads images in the program itself."
        )
    return None


def _is_of_a_process(error: BaseException) -> bool:
    """Return whether an error comes from the connection to another process, not from a network."""
    return any("multiprocessing" in frame.filename for frame in traceback.extract_tb(error.__traceback__))


def _is_memory_full(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
