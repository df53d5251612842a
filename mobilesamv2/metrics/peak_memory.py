"""Peak memory of evaluating an image."""

from __future__ import annotations

from pathlib import Path

import torch

MIB = 2**20

MEASURED = {
    "cuda": "memory that torch allocated, weights included",
    "cpu": "resident memory of the process beyond that before the first image",
}
"""What is measured by the kind of the device; nothing on others, and on a CPU by Linux alone."""


class PeakMemory:
    """Measures the peak since the last reading, from when it is made: model and data set are loaded by then.

    Args:
        device: that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        self._reset()
        if device.type == "cpu":
            self._before = _resident("VmRSS") or 0

    def read_mib(self) -> float | None:
        """Return the peak, MiB, and begin anew; None where it can't be measured."""
        peak = self._peak()
        self._reset()
        return None if peak is None else max(0, peak - self._before) / MIB

    def _peak(self) -> int | None:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _resident("VmHWM") if self._device.type == "cpu" and self._resets else None

    def _reset(self) -> None:
        self._resets = True
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._device.type == "cpu":
            try:
                Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS
            except OSError:  # not Linux, or not allowed; the peak would be that of reading the annotations
                self._resets = False


def _resident(field: str) -> int | None:
    """Return the resident memory of this process, bytes, or its peak; None where Linux does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition(f"{field}:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        return None
