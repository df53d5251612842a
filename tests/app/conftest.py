"""What the tests of the page share."""

import pytest

from mobilesamv2.app.demo import DemoApp, open_demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoApp:
    """The demo with the model and the detector that ship."""
    return open_demo(None, tmp_path_factory.mktemp("weights"))
