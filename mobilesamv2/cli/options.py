"""Options that several subcommands share."""

from __future__ import annotations

import argparse
import sys
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


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add ``--checkpoint``."""
    checkpoint_help = (
        "weight file of the model, instead of those of its name; given once for each file of a model in several; a "
        "file of this project, or one under its published name, needs no --model"
    )
    parser.add_argument("--checkpoint", action="append", type=Path, default=[], metavar="FILE", help=checkpoint_help)


def add_download(parser: argparse.ArgumentParser) -> None:
    """Add ``--download`` and ``--no-download``."""
    download_help = (
        "download published weights that are missing (default: as $MOBILESAMV2_DOWNLOAD, 1 or 0, says; else ask in a "
        "terminal, and never elsewhere, in CI or with HF_HUB_OFFLINE=1)"
    )
    parser.add_argument("--download", action=argparse.BooleanOptionalAction, default=None, help=download_help)


def may_download(model: str, weights: Path, download: bool | None) -> bool:
    """Return whether missing weights of a model are to be downloaded; where nothing says so, ask in a terminal.

    Args:
        model: as in ``load_pretrained``.
        weights: folder of published files.
        download: of ``--download``.

    Raises:
        ValueError: if ``MOBILESAMV2_DOWNLOAD`` is neither 0 nor 1.
        ConnectionError: if it is a repository of the Hub, and the Hub can't say what is in it.
    """
    from mobilesamv2.hub import HUB_FILE, cached_file, is_repository, published_on_hub
    from mobilesamv2.model_zoo import download_folder, download_setting, missing_downloads

    chosen = download_setting() if download is None else download
    if chosen is not None:
        return chosen
    on_hub = is_repository(model)
    missing = {} if on_hub else missing_downloads(model, weights)
    if not (missing or (on_hub and cached_file(model) is None)) or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    if on_hub:
        missing = {f"{HUB_FILE} of {model}": published_on_hub(model)}
    for name, published in missing.items():
        print(f"There is no {name} yet: {published}.", file=sys.stderr)
    folder = "the cache of the Hugging Face Hub" if on_hub else download_folder(weights)
    print(f"Download into {folder}? [Y/n] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()  # empty at the end of the input, which is no consent
    return bool(answer) and answer.strip().lower() in ("", "y", "yes")


def add_detector(parser: argparse.ArgumentParser, shipped: bool = False) -> None:
    """Add ``--detector``, ``--confidence`` and ``--detector-size``; None distinguishes those that were not set.

    Args:
        parser: of the subcommand.
        shipped: whether the detector that ships is used where there is no other, instead of a prompt sampler's own, and
            the help says so.
    """
    file, confidence = "", "; of --sampler prompt_head 0.05"
    if shipped:
        file, confidence = (f", {each} mini_detector.pt" for each in ("else the shipped", "or 0.1 with"))
    detector_help = (
        f"object detector: an ultralytics .pt (default: ObjectAwareModel.pt in --weights{file}), or a prompt head, a "
        "safetensors file, which reads the model's own image embedding; a bare name is also looked up in --weights and "
        "among the files that ship"
    )
    parser.add_argument("--detector", type=Path, help=detector_help)
    confidence_help = f"lowest confidence of its boxes (default: 0.4{confidence})"
    parser.add_argument("--confidence", type=float, help=confidence_help)
    size_help = (
        "longest side of an ultralytics detector's input, pixels (default: the one that it was trained with, as its "
        "file says, and 1024 for published files)"
    )
    parser.add_argument("--detector-size", type=int, help=size_help)


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


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """Add ``--max-pixels``."""
    pixels_help = "pixels of the largest image that is decoded (default: 178,956,970)"
    parser.add_argument("--max-pixels", type=int, help=pixels_help)


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
