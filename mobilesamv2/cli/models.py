"""``mobilesamv2 models``: the models of the registry, with their sizes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = (
        "List the models that build_sam accepts: encoder, input side, millions of parameters of the encoder and in "
        "total, billions of MACs of the encoder, and published weights."
    )
    parser.add_argument("names", nargs="*", help="only these models; timm/<backbone> works too (default: all)")


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from mobilesamv2.registry import list_models

    print(models_table(args.names or list_models()))


def models_table(names: Sequence[str]) -> str:
    """Return one line per model: encoder, input side, millions of parameters, billions of MACs, published weights."""
    import torch

    from mobilesamv2.model_zoo import MODEL_FILES, shipped_models
    from mobilesamv2.models.cost import encoder_cost
    from mobilesamv2.registry import build_sam

    head = f"{'model':<31}{'encoder':<22}{'input (px)':>12}{'encoder (M)':>14}{'total (M)':>12}{'G MACs':>10}   weights"
    lines = [head]
    shipped = shipped_models()
    for name in names:
        with torch.device("meta"):  # shapes without memory
            sam = build_sam(name)
        encoder, total = (sum(p.numel() for p in module.parameters()) / 1e6 for module in (sam.image_encoder, sam))
        macs = encoder_cost(sam.image_encoder, sam.encoder_side).macs / 1e9
        weights = "in this package" if name in shipped else ", ".join(MODEL_FILES.get(name, ("-",)))
        line = f"{name:<31}{sam.encoder_name:<22}{sam.image_size:>12}{encoder:>14.2f}{total:>12.2f}{macs:>10.1f}"
        lines.append(f"{line}   {weights}")
    return "\n".join(lines)
