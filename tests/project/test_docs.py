"""The site of the documentation, and how the project is cited."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from support import ROOT


@pytest.mark.slow
def test_the_site_has_every_public_module(tmp_path: Path) -> None:
    """It builds without a warning: no link is broken, and every docstring is understood."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    package = ROOT / "mobilesamv2"
    files = [path for path in package.rglob("*.py") if path.stem != "__main__" and path.parent != package / "conf"]
    modules = {path.parent if path.stem == "__init__" else path.with_suffix("") for path in files} - {package}
    names = {".".join(module.relative_to(ROOT).parts) for module in modules}
    pages = "".join(path.read_text() for path in (tmp_path / "api").glob("*.html"))
    assert {name for name in names if f'id="{name}"' not in pages} == set()
    experiments = (tmp_path / "experiments.html").read_text()
    for path in (ROOT / "conf" / "experiment").glob("*.yaml"):
        assert f'id="{path.stem}"' in experiments
    assert "ablation_max_prompts" in (tmp_path / "search" / "search_index.json").read_text()
    assert not list(tmp_path.rglob("*.py"))


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
