"""The Python of README, docs and docstrings runs as it is pasted, offline, beside an image of one's own."""

import doctest
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import ROOT

import mobilesamv2
from mobilesamv2.data.synthetic.render import render_scene
from mobilesamv2.prompts import Grid

PAGES = {
    path: blocks
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if (blocks := re.findall(r"^```python\n(.*?)^```$", path.read_text(), flags=re.MULTILINE | re.DOTALL))
}
EXPORT = ROOT / "docs" / "export.md"  # test_export.py runs it, with the graphs that it reads
PACKAGE = ROOT / "mobilesamv2"
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if re.search(r"^\s*>>> ", path.read_text(), re.MULTILINE)]


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """An image beside the program: ``image.jpg``, and one of ``mobilesamv2 synthesize scenes``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenes" / "images").mkdir(parents=True)
    image = render_scene(0, (160, 240))[0]
    Image.fromarray(image).save("image.jpg")
    Image.fromarray(image).save("scenes/images/1.png")
    return image


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != EXPORT], ids=lambda page: page.stem)
def test_a_pages_snippets_run_one_after_the_other(page: Path, image: np.ndarray) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(PAGES[page], start=1):
        exec(compile(block, f"{page.name}, snippet {number}", "exec"), names)
    assert (names["image"].shape, names["image"].dtype) == (image.shape, np.uint8)


def test_no_page_is_left_out() -> None:
    assert {page.stem for page in PAGES} >= {"README", "segment", "coming_from", "export"}


@pytest.mark.slow
@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_examples_of_docstrings(path: Path, image: np.ndarray) -> None:
    """They are written with the public names, an ``image``, NumPy and ``Grid`` at hand."""
    module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    names = {name: getattr(mobilesamv2, name) for name in mobilesamv2.__all__} | {
        "np": np,
        "image": image,
        "Grid": Grid,
    }
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_public_names_have_examples() -> None:
    assert {path.stem for path in MODULES} >= {
        "segany",
        "segevery",
        "structures",
        "pretrained",
        "registry",
        "visualize",
    }
