"""Every notebook runs from its first cell to its last, and the outputs that are kept are of a whole run."""

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from support import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))
pytest.importorskip("nbclient")
import execute
import set_repository

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


FILES = ("pyproject.toml", "CITATION.cff", "mkdocs.yml", "README.md", "docs/index.md")


def addresses(root: Path) -> set[str | None]:
    """What every reader of the project's address finds."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    cff, site = (yaml.safe_load((root / name).read_text()) for name in ("CITATION.cff", "mkdocs.yml"))
    found = {project.get("urls", {}).get("Repository"), cff.get("repository-code"), site.get("repo_url")}
    for name in ("README.md", "docs/index.md"):
        found |= {
            each if "<" not in each else None for each in re.findall("git clone (.*?) &&", (root / name).read_text())
        }
    for path in (root / "notebooks").glob("*.ipynb"):
        title, install = ("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"][:2])
        found |= set(re.findall('REPOSITORY = "(.*?)"', install)) - {""}
        badge = re.match(r"\[!\[Open in Colab\]\(.*?\)\]\((.*?)\)\n\n# ", title)
        opened = badge and re.fullmatch(r"(.*)/blob/main/notebooks/(.*)", badge[1])
        assert opened is None or opened[2] == path.name
        found.add(opened and opened[1].replace("https://colab.research.google.com/github/", "https://github.com/"))
    return found


def test_the_address_is_the_same_everywhere() -> None:
    assert len(addresses(ROOT)) == 1, "python notebooks/set_repository.py ADDRESS"


def test_one_command_writes_the_address(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    for address in ("https://github.com/someone/first.git", "https://github.com/owner/repo/"):
        set_repository.set_repository(address, tmp_path)
    assert addresses(tmp_path) == {"https://github.com/owner/repo"}
    for path in (tmp_path / "notebooks").glob("*.ipynb"):
        notebook = json.loads(path.read_text())
        target = f"https://colab.research.google.com/github/owner/repo/blob/main/notebooks/{path.name}"
        assert f"({target})" in notebook["cells"][0]["source"][0]
        assert notebook["metadata"]["sources_sha256"] == execute.sources_sha256(notebook)  # its outputs stay valid
    before, after = (tomllib.loads((root / "pyproject.toml").read_text()) for root in (ROOT, tmp_path))
    assert after["project"] | {"urls": None} == before["project"] | {"urls": None}
    for address in ("https://example.org/owner/repo", "owner/repo", "https://github.com/owner"):
        with pytest.raises(ValueError, match="The address must be https://github"):
            set_repository.set_repository(address, tmp_path)


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
