"""Run notebooks and keep their outputs: ``python notebooks/execute.py [NAME.ipynb ...]``, by default all."""

import hashlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def execute(path: Path, settings: Mapping[str, int] | None = None) -> Any:
    """Return the notebook after a run in its folder, with the hash of the sources that its outputs are of.

    Args:
        path: of the notebook.
        settings: values of names in capitals that it assigns at the beginning of a line, ``EPOCHS`` for example.
    """
    notebook = nbformat.read(path, as_version=4)
    for name, value in (settings or {}).items():
        for cell in notebook.cells:
            cell.source = re.sub(rf"(?m)^{name} = \d+", f"{name} = {value}", cell.source)
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":  # warnings are of the machine that it ran on
            cell.outputs = [output for output in cell.outputs if not _is_of_the_run(output)]
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data.pop("image/jpeg", None)  # Pillow's pictures come as both
    notebook.metadata["sources_sha256"] = sources_sha256(notebook)
    return notebook


def _is_of_the_run(output: Any) -> bool:
    """Return whether an output is a warning or a progress bar, which nobody wants to read afterwards."""
    return output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def sources_sha256(notebook: Any) -> str:
    """Return the hash of the code of a notebook."""
    sources = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256("\0".join("".join(source) for source in sources).encode()).hexdigest()


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:] or sorted(FOLDER.glob("*.ipynb"))):
        nbformat.write(execute(path), path)
        print(f"written: {path}")
