"""``mobilesamv2 demo``: the papers in miniature."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the demo."""
    parser.description = (
        "Distil a student, fine-tune a detector and evaluate both on synthetic scenes, and check MobileSAMv2's claims. "
        "A demo that was stopped resumes in the same folder."
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/demo"), help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=2, help="of the scenes (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=48, help="test scenes (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="jobs at a time (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Run the demo.

    Raises:
        ValueError: if a number is out of its range, or a job failed.
    """
    from mobilesamv2.recipes.demo import run_demo

    if min(args.scenes, args.workers) < 1:
        raise ValueError(f"--scenes and --workers must be at least 1, got {args.scenes} and {args.workers}.")
    run_demo(args.output, args.seed, args.scenes, args.workers)
