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
    parser.add_argument("--scenes", type=int, default=96, help="test scenes (default: %(default)s)")
    parser.add_argument(
        "--dense-scenes",
        type=int,
        default=6,
        help="the first of them, for the grid of 64 x 64 points, 7 s of CPU time each (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=2, help="jobs at a time (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Run the demo.

    Raises:
        ValueError: if a number is out of its range, or a job failed.
    """
    from mobilesamv2.recipes.demo import run_demo

    for name in ("scenes", "dense_scenes", "workers"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}.")
    dense_scenes = min(args.dense_scenes, args.scenes)
    run_demo(args.output, args.seed, args.scenes, dense_scenes, args.workers)
