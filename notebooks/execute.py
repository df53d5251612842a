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
            cell.outputs = _joined([output for output in cell.outputs if not _is_of_the_run(output)])
        for output in cell.get("outputs", ()):
            if "text" in output:
                output.text = settled(output.text)
            if "image/png" in output.get("data", {}):
                output.data.pop("image/jpeg", None)  # Pillow's pictures come as both
    notebook.metadata["sources_sha256"] = sources_sha256(notebook)
    return notebook


def settled(text: str) -> str:
    """Return what was printed as it stands at the end: without progress bars, and with paths within the repository."""
    lines = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").replace("\x1b[A", "").split("\n")]
    kept = "\n".join(line.rstrip() for line in lines if not re.search(r"\d+%\||it/s|s/it|\?it", line))
    return re.sub(r"\n{3,}", "\n\n", kept).strip("\n").replace(f"{FOLDER.parent}/", "") + "\n"


def _joined(outputs: list[Any]) -> list[Any]:
    """Return outputs with those that follow one another on the same stream as one."""
    joined: list[Any] = []
    for output in outputs:
        if joined and output.get("name") and output.get("name") == joined[-1].get("name"):
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _is_of_the_run(output: Any) -> bool:
    """Return whether an output is a warning or a progress bar, which nobody wants to read afterwards."""
    return output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def sources_sha256(notebook: Any) -> str:
    """Return the hash of the code of a notebook, whatever the address that it is installed from in Colab."""
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    without_address = re.sub('REPOSITORY = ".*?"', 'REPOSITORY = ""', "\0".join(sources))
    return hashlib.sha256(without_address.encode()).hexdigest()


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:] or sorted(FOLDER.glob("*.ipynb"))):
        nbformat.write(execute(path), path)
        print(f"written: {path}")
