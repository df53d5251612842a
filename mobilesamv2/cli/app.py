"""``mobilesamv2 app``: the interactive demo."""

from __future__ import annotations

import argparse
from pathlib import Path

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
from mobilesamv2.recipes.processes import sigterm_raises


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
    static_help = "serve nothing; write a page that runs in the browser into this folder, for any server of plain files"
    parser.add_argument("--static", type=Path, metavar="DIR", help=static_help)
    runtime_help = "with --static: the npm package onnxruntime-web, npm pack's file or its folder (default: download)"
    parser.add_argument("--onnxruntime", type=Path, metavar="PATH", help=runtime_help)


def run(args: argparse.Namespace) -> None:
    """Serve the page until it is stopped, or write the one that needs no server.

    Raises:
        ValueError: if Gradio is not installed, or options contradict each other.
    """
    if args.static:
        write_static(args)
        return
    if args.onnxruntime:
        raise ValueError("--onnxruntime requires --static.")
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


@sigterm_raises()  # so that what is half written is removed
def write_static(args: argparse.Namespace) -> None:
    """Write the page that needs no server.

    Raises:
        ImportError: if a package of the extra ``export`` is not installed.
        ValueError: if an option of the server is set.
    """
    from mobilesamv2.app.demo import default_model
    from mobilesamv2.app.static import write_static_page
    from mobilesamv2.export.runtime import require_export_packages
    from mobilesamv2.pretrained import load_model

    of_server = ("compare", "detector", "detector_size", "confidence", "device", "value_range", "port", "share")
    if chosen := [name for name in of_server if getattr(args, name) not in (None, False, [])]:
        raise ValueError(f"--{chosen[0].replace('_', '-')} is of the page with a server, and excludes --static.")
    require_export_packages()  # before weights are downloaded
    model = args.model or (None if args.checkpoint else default_model(args.weights))
    download = not args.checkpoint and may_download(str(model), args.weights, args.download)
    write_static_page(load_model(model, args.checkpoint, args.weights, download), args.static, args.onnxruntime)
    size = sum(path.stat().st_size for path in args.static.rglob("*") if path.is_file())
    print(f"written: {args.static / 'index.html'} ({size / 1e6:.0f} MB with all its files)")
    print(f"to look at it: python -m http.server -d {args.static}, then http://localhost:8000")
