"""Peak memory: what an allocation adds to it, and that a reading begins anew."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mobilesamv2.metrics.peak_memory import PeakMemory


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_a_reading_has_what_was_allocated_and_freed_since_the_last() -> None:
    memory = PeakMemory(torch.device("cpu"))
    held = np.ones(100 * 2**20, np.uint8)
    del held
    with_array, without = memory.read_mib(), memory.read_mib()
    assert with_array is not None
    assert 95 < with_array < 130
    assert without is not None
    assert without < 30


def test_nothing_is_measured_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert PeakMemory(torch.device("cpu")).read_mib() is None
    assert PeakMemory(torch.device("mps")).read_mib() is None
