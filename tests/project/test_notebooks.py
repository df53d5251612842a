"""Every notebook runs from its first cell to its last, and the outputs that are kept are of a whole run."""

import json
import sys
from pathlib import Path

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))
pytest.importorskip("nbclient")
import execute

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_the_outputs_that_are_kept_are_of_one_run() -> None:
    assert len(NOTEBOOKS) == 3
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


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path) -> None:
    notebook = execute.execute(path)
    assert all(cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code")
