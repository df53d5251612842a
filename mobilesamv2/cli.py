"""``mobilesamv2 models``: what there is to build, and how large it is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from mobilesamv2.registry import MODELS, build_sam


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="mobilesamv2", description="Small segment-anything models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    models = commands.add_parser("models", help="list the models that build_sam takes, with their sizes")
    models.add_argument("names", nargs="*", help="only these; timm/<backbone> works too (default: all)")
    models.set_defaults(run=lambda args: print(models_table(args.names or list(MODELS))))
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def models_table(names: Sequence[str]) -> str:
    """A line for each model: its encoder, input side and millions of parameters."""
    lines = [f"{'model':<20}{'encoder':<20}{'input (px)':>12}{'encoder (M)':>14}{'whole (M)':>12}"]
    for name in names:
        with torch.device("meta"):  # shapes without memory
            sam = build_sam(name)
        encoder, whole = (sum(p.numel() for p in module.parameters()) / 1e6 for module in (sam.image_encoder, sam))
        lines.append(f"{name:<20}{sam.encoder_name:<20}{sam.image_size:>12}{encoder:>14.2f}{whole:>12.2f}")
    return "\n".join(lines)
