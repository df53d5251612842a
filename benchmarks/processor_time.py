"""Processor time, which other programs raise far less than the clock's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def cpu_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Return the least processor time of several calls, over all threads."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return min(times)
