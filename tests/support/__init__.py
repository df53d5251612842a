"""What several tests share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("MOBILESAMV2_TEST_DATA", ROOT.parent / "shared" / "data"))

RecordParity = Callable[[str, str, float, str], None]
"""The fixture ``record_parity``."""


def run_reference(script: str, *args: str | Path) -> None:
    """Runs one of tests/support/reference in a process of its own."""
    command = [sys.executable, str(ROOT / "tests" / "support" / "reference" / script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "tests", check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())
