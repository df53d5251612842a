"""Fixtures of the evaluations."""

from pathlib import Path

import numpy as np
import pytest
from support.small_lvis import write_small_lvis


@pytest.fixture
def dataset(tmp_path: Path, photo: np.ndarray) -> Path:
    """Two photos with three objects, one photo without any, in LVIS's layout."""
    return write_small_lvis(tmp_path / "data", photo)
