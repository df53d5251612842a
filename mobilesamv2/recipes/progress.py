"""The progress bar of commands that run jobs: it moves in a terminal, and is a line a minute in a log."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

SECONDS_PER_LINE = 60.0


class _Lines:
    """A stream on which each state of a bar is a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self._stream.write(text.strip() + "\n")

    def flush(self) -> None:
        self._stream.flush()


def job_bar(total: int, description: str, bar_format: str, initial: int = 0) -> tqdm[Any]:
    """Return a bar on stderr; none is shown where nothing is left to do.

    Args:
        total: of jobs or seconds.
        description: before the bar.
        bar_format: as tqdm takes it.
        initial: what of it was done before.
    """
    moves = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        bar_format=bar_format,
        disable=total == initial,
        mininterval=0.1 if moves else SECONDS_PER_LINE,
        maxinterval=10.0 if moves else SECONDS_PER_LINE,  # at which tqdm shows a bar whatever mininterval says
        file=sys.stderr if moves else _Lines(sys.stderr),
    )
