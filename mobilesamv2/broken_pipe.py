"""A reader of the program's output that is gone, as in ``mobilesamv2 models | head -1``, is no error."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

STATUS = 128 + signal.SIGPIPE
"""Exit status of a program that a broken pipe ends, as the shell has it: 141."""


@contextmanager
def quiet_broken_pipe() -> Iterator[None]:
    """End the program without a word where nobody reads its output any more.

    SIGPIPE itself stays ignored, since it would also come from the pipes of loaders and loggers.

    Raises:
        SystemExit: with ``STATUS``, if a stream of output is broken.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, as at the exit of the interpreter it would be an error
    except BrokenPipeError:
        if not [stream for stream in (sys.stdout, sys.stderr) if _silence_if_broken(stream)]:
            raise
        raise SystemExit(STATUS) from None


def _silence_if_broken(stream: TextIO) -> bool:
    """Return whether nobody reads a stream; what is left in it goes nowhere then."""
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    is_broken = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if is_broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return is_broken
