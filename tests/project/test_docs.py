"""The site of the documentation, and how the project is cited."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It builds without a warning: no link is broken, and every docstring is understood."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return folder


@pytest.mark.slow
def test_the_site_has_every_public_module(site: Path) -> None:
    package = ROOT / "mobilesamv2"
    files = [path for path in package.rglob("*.py") if path.stem != "__main__" and path.parent != package / "conf"]
    modules = {path.parent if path.stem == "__init__" else path.with_suffix("") for path in files} - {package}
    names = {".".join(module.relative_to(ROOT).parts) for module in modules}
    pages = "".join(path.read_text() for path in (site / "api").glob("*.html"))
    assert {name for name in names if f'id="{name}"' not in pages} == set()
    experiments = (site / "experiments.html").read_text()
    for path in (ROOT / "conf" / "experiment").glob("*.yaml"):
        assert f'id="{path.stem}"' in experiments
    assert "ablation_max_prompts" in (site / "search" / "search_index.json").read_text()
    assert not list(site.rglob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index.html", "api/metrics.html"])
def test_the_site_is_searched_from_the_disk(site: Path, browser: Any, page: str) -> None:
    opened = browser.new_page()
    asked: list[str] = []
    failed: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("requestfailed", lambda request: failed.append(request.url))
    opened.on("pageerror", lambda error: failed.append(str(error)))
    opened.goto((site / page).as_uri())
    opened.get_by_role("textbox", name="Search").click()
    opened.keyboard.type("max_prompts")
    found = opened.locator(".md-search-result__link")
    found.first.wait_for()
    assert any("experiments.html" in link.get_attribute("href") for link in found.all())
    assert not failed
    assert all(url.startswith(("file:", "data:")) for url in asked)
    opened.close()


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
