"""The pages of the docstrings, and how the project is cited."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT


@pytest.mark.slow
def test_every_module_becomes_a_page_without_a_warning(tmp_path: Path) -> None:
    """In a process of its own, since rendering touches the modules."""
    command = [sys.executable, "-W", "error::UserWarning", str(ROOT / "docs" / "render.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    package = ROOT / "mobilesamv2"
    files = [path for path in package.rglob("*.py") if path.stem != "__main__"]  # a command, which pdoc leaves out
    modules = {path.parent if path.stem == "__init__" else path.with_suffix("") for path in files}
    pages = {tmp_path / f"{module.relative_to(ROOT)}.html" for module in modules}
    assert pages <= set(tmp_path.rglob("*.html"))
    front_door = (tmp_path / "mobilesamv2.html").read_text()
    assert 'href="mobilesamv2/prompts.html"' in front_door
    assert "Alias for field number" not in (tmp_path / "mobilesamv2" / "segany.html").read_text()


def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    readme = (ROOT / "README.md").read_text()
    assert f"version = {{{project['version']}}}" in readme
    for reference in citation["references"]:
        number = reference["url"].rpartition("/")[2]
        assert f"arXiv:{number}" in readme
        assert reference["identifiers"][0]["value"] == f"arXiv:{number}"
