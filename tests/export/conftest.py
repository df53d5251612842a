"""Exports that several tests read."""

from contextlib import redirect_stdout
from io import StringIO

import pytest
from support.exports import WEIGHTS, Export

from mobilesamv2 import build_sam
from mobilesamv2.cli.main import main as cli


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The small model with trained weights in all precisions, by the command line."""
    folder = tmp_path_factory.mktemp("exported")
    with redirect_stdout(StringIO()) as printed:
        cli(["export", "mini_conv", "-o", str(folder), "--fp16", "--int8"])
    return Export(build_sam("mini_conv", WEIGHTS), folder, printed.getvalue())
