"""A hook of mkdocs: the page of the experiments, made from the heads of conf/experiment/*.yaml at every build."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

FOLDER = Path(__file__).parents[1] / "conf" / "experiment"

GROUPS = {
    "Distillation": ("distill_", "cache_", "search_"),
    "Fine-tuning and detectors": ("finetune_", "detect_", "prompt_head_", "pretrain_"),
    "Evaluation": ("evaluate_",),
    "Ablations": ("ablation_",),
}
"""Headings, and how the names below them begin."""

INTRODUCTION = """# Experiments

Each is a file of `conf/experiment/`, chosen by `experiment=NAME`; this page is made from the heads of those files. An
experiment changes only what differs from the defaults, and the command line overrides it in turn.
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the page to those of the site."""
    files.append(File.generated(config, "experiments.md", content=experiments_page()))
    return files


def experiments_page() -> str:
    """Return the page as Markdown.

    Raises:
        ValueError: if an experiment is in no group, or has no head.
    """
    paths = sorted(FOLDER.glob("*.yaml"))
    known = tuple(beginning for beginnings in GROUPS.values() for beginning in beginnings)
    stray = [path.name for path in paths if not path.name.startswith(known)]
    if stray:
        raise ValueError(f"GROUPS in {__file__} must have the beginning of every experiment's name, got {stray}.")
    parts = [INTRODUCTION]
    for group, beginnings in GROUPS.items():
        parts.append(f"## {group}\n")
        parts += [_section(path) for path in paths if path.name.startswith(beginnings)]
    return "\n".join(parts)


def _section(path: Path) -> str:
    """Return the head of a file: its sentences as paragraphs, its commands as code."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if line != "# @package _global_":
            lines.append(line.removeprefix("#").removeprefix(" "))
    if not lines:
        raise ValueError(f"{path} must begin with what it does, its command, hardware and result.")
    blocks: list[str] = []
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        is_code = block.startswith("  ")
        sentences = re.sub(r"\n(?=(Hardware|Should give|Ranges):)", "\n\n", block)
        blocks.append(f"```bash\n{re.sub('(?m)^  ', '', block)}\n```" if is_code else _as_text(sentences))
    return f"### {path.stem}\n\n" + "\n\n".join(blocks) + "\n"


def _as_text(text: str) -> str:
    """Return sentences with their names as code, so that an underscore or a star is no markup."""
    named = re.sub(r"[\w./@+]*[_=][\w./=]*\w", r"`\g<0>`", text)
    return re.sub(r"(?m)^(Hardware|Should give|Ranges):", r"**\1:**", named)
