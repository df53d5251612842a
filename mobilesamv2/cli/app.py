"""``mobilesamv2 app``: the interactive demo."""

from __future__ import annotations

import argparse

from mobilesamv2.cli.options import (
    add_checkpoint,
    add_detector,
    add_device,
    add_download,
    add_value_range,
    add_weights,
    available_device,
    may_download,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = "Serve an interactive demo: points, boxes and everything, on photos of your own."
    model_help = "as of segment (default: mobile_sam if its file is in --weights, else mini_conv)"
    parser.add_argument("--model", help=model_help)
    add_checkpoint(parser)
    compare_help = "further models, as --model, which the page shows beside it"
    parser.add_argument("--compare", nargs="+", default=[], metavar="NAME", help=compare_help)
    add_weights(parser)
    add_download(parser)
    add_detector(parser, shipped=True)
    add_device(parser)
    add_value_range(parser)
    port_help = "port on this computer (default: the first free one from 7860)"
    parser.add_argument("--port", type=int, help=port_help)
    parser.add_argument("--share", action="store_true", help="also a public address, through Gradio's tunnel")


def run(args: argparse.Namespace) -> None:
    """Serve the page until it is stopped.

    Raises:
        ValueError: if Gradio is not installed.
    """
    try:
        from mobilesamv2.app.page import serve  # Gradio is an extra
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("The demo requires Gradio, which isn't installed: pip install 'mobilesamv2[app]'") from error
    from mobilesamv2.app.demo import open_demo

    named = [args.model] if args.model and not args.checkpoint else []
    download = {name: may_download(name, args.weights, args.download) for name in (*named, *args.compare)}
    demo = open_demo(
        args.model,
        args.weights,
        args.detector,
        compare=args.compare,
        detector_size=args.detector_size,
        confidence=args.confidence,
        device=available_device(args.device),
        value_range=args.value_range,
        checkpoint=args.checkpoint,
        download=download,
    )
    print(demo.about)
    serve(demo, args.port, args.share)
