"""Fixtures of all tests."""

import csv
import os
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, and so are those that it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from support import ROOT, SHARED, RecordParity

os.environ["MOBILESAMV2_WEIGHTS"] = str(ROOT / "tests" / "weights")  # not there: no weights of the user
os.environ["MOBILESAMV2_DOWNLOAD"] = "0"
sys.path.insert(0, str(ROOT))  # evaluate.py and train.py stand beside the package


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of robustness/test_mutations.py and of parity tests."""
    parser.addoption("--mutation-seed", type=int, default=0, help="seed of the mutated files (default: 0)")
    parser.addoption("--mutation-rounds", type=int, default=1, help="times as many mutated files (default: 1)")
    parity_help = "CSV file to which parity tests append the differences that they measure"
    parser.addoption("--record-parity", type=Path, help=parity_help)


@pytest.fixture
def record_parity(request: pytest.FixtureRequest) -> RecordParity:
    """Append what a parity test measures to the file of ``--record-parity``, if that is given.

    Takes the model's name, what is compared ("embedding" or "masks"), the largest difference as a share of the largest
    value, and the package of the reference, whose version is looked up; "" stands for one that no package installs.
    """
    path: Path | None = request.config.getoption("--record-parity")

    def record(model: str, quantity: str, difference: float, package: str) -> None:
        if path is not None:
            with path.open("a", newline="") as file:
                csv.writer(file).writerow([model, quantity, f"{difference:.1e}", package, _version_of(package)])

    return record


def _version_of(package: str) -> str:
    try:
        return version(package) if package else ""
    except PackageNotFoundError:
        return ""


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


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window; one for all tests of a process, since Playwright can't be started in it twice."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as starting:
        browser = starting.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
