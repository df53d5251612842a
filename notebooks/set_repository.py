"""Write the project's address wherever it is read.

python notebooks/set_repository.py https://github.com/OWNER/NAME

Into pyproject.toml, CITATION.cff, mkdocs.yml, the commands of README.md and docs/index.md that clone, and the
notebooks: a badge that opens each in Colab, and the cell that installs there. A second address replaces the first.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
"""Colab's own; the address that it leads to follows."""

NAME = r"[A-Za-z0-9_.-]+"


def set_repository(address: str, root: Path = ROOT) -> None:
    """Write the address.

    Args:
        address: ``https://github.com/OWNER/NAME``, since Colab opens notebooks of GitHub by their address.
        root: the clone.

    Raises:
        ValueError: if it is another address.
    """
    address = address.removesuffix("/").removesuffix(".git")
    if not re.fullmatch(rf"https://github\.com/{NAME}/{NAME}", address):
        raise ValueError(f"The address must be https://github.com/OWNER/NAME, got {address}.")
    lines = {  # of each file: what the address follows, and the line before which it stands where there is none yet
        "pyproject.toml": ('[project.urls]\nRepository = "', '"\n\n', "[project.optional-dependencies]"),
        "CITATION.cff": ("repository-code: ", "\n", "authors:"),
        "mkdocs.yml": ("repo_url: ", "\n", "site_dir:"),
    }
    for name, (before, after, next_line) in lines.items():
        text = (root / name).read_text(encoding="utf-8")
        text = re.sub(rf"{re.escape(before)}.*{after}", "", text)
        (root / name).write_text(text.replace(f"\n{next_line}", f"\n{before}{address}{after}{next_line}", 1), "utf-8")
    for name in ("README.md", "docs/index.md"):
        text = (root / name).read_text(encoding="utf-8")
        clone = f"git clone {address} && cd {address.rpartition('/')[2]}"
        (root / name).write_text(re.sub(r"git clone .*? && cd \S+", clone, text), "utf-8")
    colab = address.replace("github.com", "colab.research.google.com/github", 1)
    for path in (root / "notebooks").glob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        _write_badge(notebook["cells"][0], f"{colab}/blob/main/notebooks/{path.name}")
        install = notebook["cells"][1]
        install["source"] = [re.sub('REPOSITORY = ".*?"', f'REPOSITORY = "{address}"', s) for s in install["source"]]
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _write_badge(title: dict[str, Any], target: str) -> None:
    """Write the badge above a notebook's title, in the place of an earlier one."""
    source = title["source"]
    if source[0].startswith(BADGE):
        del source[:2]
    source[:0] = [f"{BADGE}({target})\n", "\n"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    try:
        set_repository(parser.parse_args().address)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
