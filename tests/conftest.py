"""What several tests share."""

import os
import subprocess
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, and so are those that it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
os.environ["MOBILESAMV2_WEIGHTS"] = str(ROOT / "tests" / "weights")  # not there: no weights of the user
sys.path.insert(0, str(ROOT))  # evaluate.py and schema.py stand beside the package
SHARED = Path(os.environ.get("MOBILESAMV2_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture
def shared_data() -> Path:
    """Real photos and annotations, which are not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("the measurement data are not here; set MOBILESAMV2_TEST_DATA to their folder")
    return SHARED


@pytest.fixture
def photo() -> np.ndarray:
    """(90, 130, 3) RGB uint8: smooth blobs of colour, the same in every run."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:90, :130]
    image = np.zeros((90, 130, 3))
    for _ in range(12):
        cy, cx, r = rng.uniform(0, 90), rng.uniform(0, 130), rng.uniform(5, 30)
        image[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = rng.uniform(0, 255, 3)
    return image.astype(np.uint8)


def run_reference(script: str, *args: str | Path) -> None:
    """Runs one of tests/reference in a process of its own."""
    command = [sys.executable, str(ROOT / "tests" / "reference" / script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "tests", check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())
