"""Options that several subcommands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from mobilesamv2.names import did_you_mean

WEIGHTS_HELP = "folder of published weight files (default: %(default)s)"


def one_of(kind: str, known: Sequence[str]) -> Callable[[str], str]:
    """Return the type of an option that takes one of some names; another one is answered with the nearest.

    Args:
        kind: what the names are of, "prompt sampler" for example.
        known: the names.
    """

    def check(name: str) -> str:
        if name not in known:
            near = did_you_mean(name, known)
            raise argparse.ArgumentTypeError(f"there is no {kind} '{name}'.{near} Available: {', '.join(known)}.")
        return name

    return check


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights``."""
    parser.add_argument("--weights", type=Path, default=Path("weights"), help=WEIGHTS_HELP)


def add_detector(
    parser: argparse.ArgumentParser, confidence: float | None = None, detector_size: int | None = None
) -> None:
    """Add ``--detector``, ``--confidence`` and ``--detector-size``.

    Args:
        parser: of the subcommand.
        confidence: default; None distinguishes an option that was not set.
        detector_size: likewise.
    """
    detector_help = "object detector of object_aware, an ultralytics .pt (default: ObjectAwareModel.pt in --weights)"
    parser.add_argument("--detector", type=Path, help=detector_help)
    parser.add_argument(
        "--confidence", type=float, default=confidence, help="lowest confidence of its boxes (default: 0.4)"
    )
    size_help = "longest side of its input, pixels (default: 1024)"
    parser.add_argument("--detector-size", type=int, default=detector_size, help=size_help)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", help="cpu, cuda or mps (default: cuda if available, else cpu)")


def add_value_range(parser: argparse.ArgumentParser) -> None:
    """Add ``--value-range``."""
    value_help = (
        "the values that become black and white in images of more than 8 bits (default: their common range if the "
        "image uses it, else its percentiles 0.1 and 99.9)"
    )
    parser.add_argument("--value-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help=value_help)


def available_device(name: str | None) -> str:
    """Return the device of ``--device``, or the default one.

    Raises:
        ValueError: if torch can't use it here.
    """
    import torch

    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} can't be used here: {str(error).splitlines()[0]}") from error
    return device
