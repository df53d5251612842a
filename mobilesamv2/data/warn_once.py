"""Warnings that appear once in a run, however many images and workers cause them."""

from __future__ import annotations

import logging
import mmap


class WarnOnce:
    """Log the first of several warnings, across this process and those that it forks.

    Args:
        logger: of the module that warns.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self._warned = mmap.mmap(-1, 1)  # workers that are forked share its one byte

    def __call__(self, message: str) -> None:
        """Log a warning, unless there was one."""
        if not self._warned[0]:
            self._warned[0] = 1
            self.logger.warning(message)

    def reset(self) -> None:
        """Log the next warning again."""
        self._warned[0] = 0
