"""``mobilesamv2 export``: a model as ONNX graphs."""

from __future__ import annotations

import argparse
from pathlib import Path

from mobilesamv2.cli.options import add_checkpoint, add_download, add_weights, may_download
from mobilesamv2.export.io_doc import (
    DECODER_IO_DOC,
    EFFICIENT_SAM_IO_DOC,
    ENCODER_IO_DOC,
    SAM_2_IO_DOC,
    SAM_DECODER_IO_DOC,
    SAM_ENCODER_IO_DOC,
)
from mobilesamv2.recipes.processes import sigterm_raises


class ParagraphFormatter(argparse.HelpFormatter):
    """Help that keeps blank lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            super(ParagraphFormatter, self)._fill_text(part, width, indent) for part in text.split("\n\n")
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = (
        "Write encoder.onnx and decoder.onnx, which serves points, boxes and segmenting everything, once they have "
        "been compared with torch. Their metadata holds mean, std, sizes and the hash of the weights."
    )
    parser.epilog = (
        f"encoder.onnx: {ENCODER_IO_DOC}\n\ndecoder.onnx: {DECODER_IO_DOC}\n\n"
        f"{SAM_2_IO_DOC}\n\n{EFFICIENT_SAM_IO_DOC}\n\n"
        f"encoder.onnx of --signature sam: {SAM_ENCODER_IO_DOC}\n\n"
        f"decoder.onnx of --signature sam: {SAM_DECODER_IO_DOC}"
    )
    parser.formatter_class = ParagraphFormatter
    model_help = "as --model of segment; with --checkpoint or --random, any name that mobilesamv2 models lists"
    parser.add_argument("model", help=model_help)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write into")
    add_checkpoint(parser)
    parser.add_argument("--random", action="store_true", help="random weights, to test a program that loads the graphs")
    add_weights(parser)
    add_download(parser)
    signature_help = (
        "names of inputs and outputs: ours, for any number of prompts, or those of SAM's own ONNX decoder, for one "
        "prompt, which labelling programs read (default: %(default)s)"
    )
    parser.add_argument("--signature", choices=("mobilesamv2", "sam"), default="mobilesamv2", help=signature_help)
    single_help = "with --signature sam: the decoder returns the best mask only, as SAM's option of this name"
    parser.add_argument("--return-single-mask", action="store_true", help=single_help)
    parser.add_argument("--fp16", action="store_true", help="also encoder.fp16.onnx and decoder.fp16.onnx")
    parser.add_argument("--int8", action="store_true", help="also encoder.int8.onnx, and its accuracy")
    calibration_help = "with --int8: a folder of images to calibrate with; its first 64 are used"
    parser.add_argument("--calibration", type=Path, help=calibration_help)
    parser.add_argument("--opset", type=int, help="ONNX opset, 18 or later (default: the one that torch recommends)")
    parser.add_argument("--no-check", action="store_true", help="do not compare with torch")


@sigterm_raises()  # so that what is half written is removed
def run(args: argparse.Namespace) -> None:
    """Write the graphs and report how far they are from torch, and int8 from float32.

    Raises:
        ImportError: if a package of the extra ``export`` is not installed.
        ValueError: if options contradict each other.
    """
    from mobilesamv2.export.onnx import export_onnx
    from mobilesamv2.export.quantize import calibration_images, quantize_encoder
    from mobilesamv2.export.runtime import require_export_packages
    from mobilesamv2.model_zoo import find_named
    from mobilesamv2.pretrained import load_pretrained
    from mobilesamv2.registry import build_sam

    if args.calibration and not args.int8:
        raise ValueError("--calibration requires --int8.")
    if args.return_single_mask and args.signature != "sam":
        raise ValueError("--return-single-mask requires --signature sam.")
    calibration = calibration_images(args.calibration) if args.calibration else []
    if args.checkpoint and args.random:
        raise ValueError("--checkpoint and --random exclude each other: set one of them.")
    require_export_packages()  # before weights are downloaded
    if args.checkpoint or args.random:
        files = [find_named(file, args.weights) for file in args.checkpoint]
        sam = build_sam(args.model, files or None, allow_partial=False)
    else:
        sam = load_pretrained(args.model, args.weights, may_download(args.model, args.weights, args.download))
    for precision in ("fp32", "fp16") if args.fp16 else ("fp32",):
        written = export_onnx(
            sam,
            args.output,
            args.opset,
            signature=args.signature,
            precision=precision,
            return_single_mask=args.return_single_mask,
            compare=not args.no_check,
        )
        for path in written.paths:
            print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
        for name, difference in written.differences.items():
            print(f"{name}: differs from torch by {difference:.1e} of the largest value")
    if args.int8:
        int8 = quantize_encoder(args.output, calibration)
        print(f"written: {int8.path} ({int8.nbytes / 1e6:.1f} MB, in float32 {int8.nbytes_float / 1e6:.1f} MB)")
        print(f"image_embedding: cosine similarity with float32 {int8.cosine:.5f}, on {int8.measured_on}")
        if args.signature == "mobilesamv2":
            options = f"model={sam.name} model.checkpoint=FILE onnx_encoder={int8.path}"
            print(f"to measure its AR: python evaluate.py {options} ...")
