"""What the tests of the pages share."""

import shutil
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from mobilesamv2.app.demo import DemoApp, open_demo

# anyio imports its parts on first use, and pytest, whose plugin it is, compiles them then; deep in the call stack of a
# server that fails in Python 3.11 ("AST constructor recursion depth mismatch").
for name in dir(anyio):
    getattr(anyio, name)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoApp:
    """The demo with the model and the detector that ship."""
    return open_demo(None, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as starting:
        browser = starting.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
