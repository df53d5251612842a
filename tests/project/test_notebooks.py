"""Every notebook runs from its first cell to its last, and the outputs that are kept are of a whole run."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))
pytest.importorskip("nbclient")
import execute

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_the_outputs_that_are_kept_are_of_one_run() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(["segment", "distill", "evaluate", "own_objects"])
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text())
        wanted = f"{path.name} has changed since it was run: python notebooks/execute.py {path}"
        assert notebook["metadata"].get("sources_sha256") == execute.sources_sha256(notebook), wanted
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), path.name
        kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
        assert "error" not in kinds
        assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])
        text = path.read_text()
        assert not any(place in text for place in ("/root/", "/tmp/", "/home/", "site-packages"))


def test_every_notebook_gets_the_package_where_it_is_missing() -> None:
    """As in Colab, where a notebook lies alone; elsewhere the cell does nothing."""
    first = {"".join(json.loads(path.read_text())["cells"][1]["source"]) for path in NOTEBOOKS}
    assert len(first) == 1
    [source] = first
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"repository\[(.*?)\]", source)[0].split(",")) <= set(extras)
    assert 'find_spec("mobilesamv2") is None' in source


SMALLER = {
    "own_objects": {"EPOCHS": 1, "PICTURES": 12},
    "distill": {"SCENES": 96},
    "evaluate": {"SCENES": 4},
}
"""Settings with which a notebook takes half a minute."""


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path) -> None:
    source = path.read_text()
    settings = SMALLER.get(path.stem, {})
    assert all(f'"{name} = ' in source for name in settings)
    notebook = execute.execute(path, settings)
    assert all(cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code")
