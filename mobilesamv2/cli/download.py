"""``mobilesamv2 download``: weight files that others published."""

from __future__ import annotations

import argparse
from pathlib import Path

from mobilesamv2.cli.options import WEIGHTS_HELP
from mobilesamv2.model_zoo import MODEL_FILES, WEIGHT_FILES, download_published, files_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = "Download published weight files; their SHA-256 is checked where one is known."
    names_help = f"models or files; without names, all files are listed. Models: {', '.join(MODEL_FILES)}"
    parser.add_argument("names", nargs="*", help=names_help)
    parser.add_argument("-o", "--output", type=Path, default=Path("weights"), help=WEIGHTS_HELP)


def run(args: argparse.Namespace) -> None:
    """Download the named files, or list all of them."""
    if not args.names:
        for name, published in WEIGHT_FILES.items():
            print(f"{name:<34}{published.licence or 'licence unknown':<22}{published.homepage}")
        return
    for name in files_of(args.names):
        print(f"written: {download_published(name, args.output)}")
