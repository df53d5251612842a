"""A hook of mkdocs: the page of the leaderboard, made from benchmarks/results.csv at every build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from mobilesamv2.reports.leaderboard import leaderboard_page, read_results_file

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results.csv"


def on_files(files: Files, config: Any) -> Files:
    """Add the page to those of the site."""
    files.append(File.generated(config, "leaderboard.md", content=leaderboard_page(read_results_file(RESULTS))))
    return files
