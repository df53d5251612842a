"""What the tests of the pages share."""

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
