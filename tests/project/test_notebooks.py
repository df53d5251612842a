"""Every notebook runs from its first cell to its last, and the outputs that are kept are of a whole run."""

import base64
import io
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from support import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))
pytest.importorskip("nbclient")
import execute
import set_repository

from mobilesamv2.data.synthetic.render import render_scene

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


def kept_panels(name: str, code: str, side: int) -> list[np.ndarray]:
    """The square panels of the one picture that is kept of the cell with some code."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    [cell] = [cell for cell in cells if code in "".join(cell["source"])]
    [png] = [output["data"]["image/png"] for output in cell["outputs"] if "data" in output]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))
    return [picture[-side - 8 : -8, x : x + side] for x in range(8, picture.shape[1], side + 8)]


@pytest.mark.parametrize(("name", "count", "side"), [("segment", "six", 480), ("distill", "eight", 400)])
def test_an_object_has_one_colour_in_the_pictures_that_are_kept(name: str, count: str, side: int) -> None:
    _, drawn, *found = kept_panels(name, f"{count} objects", side)
    _, objects = render_scene((2, 6), (side, side), "test")
    for mask in objects[np.argsort(-objects.sum((1, 2)))[: {"six": 6, "eight": 8}[count]]]:
        for panel in found:
            assert (np.median(np.abs(drawn[mask].astype(int) - panel[mask]), axis=0) == 0).all()


@pytest.mark.parametrize("code", ["target = largest[0]", "points.append"])
def test_the_points_are_drawn_in_the_pictures_that_are_kept(code: str) -> None:
    for panel in kept_panels("segment", code, 480):
        assert (panel == (0, 255, 0)).all(2).sum() > 50


def test_the_times_that_are_kept_are_the_processors() -> None:
    """Those of the clock are of a machine with other work, and would contradict what a notebook says of its time."""
    kept = {}
    for path in NOTEBOOKS:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert not any(".timer.ms" in line or '["ms"]' in line for cell in cells for line in cell["source"]), path.name
        printed = "".join("".join(output.get("text", "")) for cell in cells for output in cell["outputs"])
        kept[path.stem] = re.findall(r"ms of processor time.*", printed)
    times = [sum(map(int, re.findall(r" (\d+)\b", line))) for line in kept["segment"]]
    assert len(times) == 3
    assert sum(times) < 60_000  # "runs anywhere in seconds"
    assert len(kept["evaluate"]) == 1


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
