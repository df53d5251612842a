"""The command line ``mobilesamv2``: models, export, drawn scenes, conversion, and reports of evaluations."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from mobilesamv2.checkpoints import weights_sha256
from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.lvis import write_lvis
from mobilesamv2.data.sa1b import SA1BDataset, write_sa1b_tar
from mobilesamv2.data.shapes import ShapesDataset
from mobilesamv2.data.yolo_layout import write_data_yaml, write_yolo
from mobilesamv2.downloads import download_released, released_files
from mobilesamv2.export import DECODER_CONVENTION, ENCODER_CONVENTION, check_export, export_onnx
from mobilesamv2.interactive import open_playground
from mobilesamv2.models.cost import encoder_cost
from mobilesamv2.models.object_detector import build_detector
from mobilesamv2.models.sam import Sam
from mobilesamv2.pretrained import default_grid, load_pretrained, shipped_models
from mobilesamv2.prompts import Grid, GridProposals, Hierarchical, ObjectAware, PromptSampler
from mobilesamv2.quantize import photos_of, quantize_encoder
from mobilesamv2.registry import MODELS, build_sam
from mobilesamv2.released import FILES, RELEASED
from mobilesamv2.reports.claims import as_lines, write_claims
from mobilesamv2.reports.compare import compare_results
from mobilesamv2.reports.figures import write_figures
from mobilesamv2.reports.picture import result_picture
from mobilesamv2.reports.sweep import as_latex, as_markdown, cells, failed_jobs, gather, sweep_rows, write_csv
from mobilesamv2.reports.table import read_result, result_table
from mobilesamv2.segevery import SegEvery
from mobilesamv2.segment_photos import find_photos, segment_photos
from mobilesamv2.whole_files import whole_file, write_whole

REPORTS = ("sweep", "table", "picture", "compare", "claims")


class Paragraphs(argparse.HelpFormatter):
    """Keeps blank lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(super(Paragraphs, self)._fill_text(part, width, indent) for part in text.split("\n\n"))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["report"] and len(given) > 1 and Path(given[1]).is_dir() and given[1] not in REPORTS:
        given.insert(1, "sweep")
    args = build_parser().parse_args(given)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError, torch.OutOfMemoryError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="mobilesamv2", description="Small segment-anything models.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('mobilesamv2')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    models = commands.add_parser("models", help="list the models that build_sam takes, with their sizes")
    models.add_argument("names", nargs="*", help="only these; timm/<backbone> works too (default: all)")
    models.set_defaults(run=lambda args: print(models_table(args.names or list(MODELS))))

    export = commands.add_parser(
        "export",
        help="write a model as ONNX: encoder.onnx and decoder.onnx",
        description="Writes encoder.onnx and decoder.onnx, which serves points, boxes and segmenting everything, and "
        "compares them with torch. mean, std, sizes and the hash of the weights are in their metadata.",
        epilog=f"encoder.onnx: {ENCODER_CONVENTION}\n\ndecoder.onnx: {DECODER_CONVENTION}",
        formatter_class=Paragraphs,
    )
    export.add_argument("model", help="what segment takes, or with --checkpoint or --random any name that models lists")
    export.add_argument("-o", "--output", type=Path, required=True, help="the folder to write into")
    export.add_argument("--checkpoint", nargs="+", help="weight files that hold the model")
    export.add_argument("--random", action="store_true", help="random weights, to try what loads the graphs")
    weights_help = "folder of released weight files (default: %(default)s)"
    export.add_argument("--weights", type=Path, default=Path("weights"), help=weights_help)
    export.add_argument("--int8", action="store_true", help="encoder.int8.onnx too, and what it costs")
    export.add_argument("--calibration", type=Path, help="with --int8: a folder of photos; the first 64 are taken")
    export.add_argument("--opset", type=int, help="of ONNX (default: what the installed torch recommends)")
    export.add_argument("--no-check", action="store_true", help="don't compare with torch")
    export.set_defaults(run=export_model)

    draw = commands.add_parser("draw", help="write scenes of drawn shapes with exact masks, to train and evaluate on")
    draw.add_argument("output", type=Path, help="a .tar for SA-1B's layout, else a folder for LVIS's")
    draw.add_argument("--scenes", type=int, default=100, help="how many (default: %(default)s)")
    draw.add_argument("--size", type=int, default=256, help="side, pixels (default: %(default)s)")
    draw.add_argument("--seed", type=int, default=0, help="another seed, other scenes (default: %(default)s)")
    draw.add_argument(
        "--world",
        default="train",
        help="train, or test for shapes and textures that train doesn't have (default: %(default)s)",
    )
    draw.add_argument("--workers", type=int, default=2, help="processes that draw (default: %(default)s)")
    draw.set_defaults(run=draw_scenes)

    segment = commands.add_parser("segment", help="segment everything in photos: pictures and masks in COCO's layout")
    segment.add_argument("photos", nargs="+", metavar="PHOTO", help="a file, a folder, or a pattern in quotes")
    segment.add_argument("-o", "--output", type=Path, required=True, help="folder to write into")
    segment.add_argument(
        "--model",
        default="mobile_sam",
        help="a model with weights, a safetensors file, a folder, or owner/repository of the Hugging Face Hub; "
        "mini_conv and mini_conv_points come with this program but know drawn scenes alone (default: %(default)s)",
    )
    segment.add_argument("--weights", type=Path, default=Path("weights"), help=weights_help)
    segment.add_argument("--sampler", choices=list(SAMPLERS), default="grid", help="prompts (default: %(default)s)")
    segment.add_argument("--points-per-side", type=int, help="of a grid (default: the sampler's own, 32 or 64)")
    threshold_help = "masks of a grid are kept {} it (default: the sampler's own; lower for mini_conv and the like)"
    segment.add_argument("--predicted-iou", type=float, help=threshold_help.format("above"))
    segment.add_argument("--stability", type=float, help=threshold_help.format("from"))
    detector_help = "of object_aware: an ultralytics .pt (default: ObjectAwareModel.pt in --weights)"
    segment.add_argument("--detector", type=Path, help=detector_help)
    segment.add_argument("--confidence", type=float, help="of its boxes (default: 0.4)")
    size_help = "longest side of its input, pixels (default: 1024)"
    segment.add_argument("--detector-size", type=int, help=size_help)
    device_help = "cpu, cuda, mps (default: a GPU where there is one)"
    segment.add_argument("--device", help=device_help)
    segment.set_defaults(run=segment_folder)

    app = commands.add_parser("app", help="a page to play with: points, boxes and everything on photos of one's own")
    app.add_argument(
        "--model", help="as of segment (default: mobile_sam if its file lies in --weights, else mini_conv_points)"
    )
    app.add_argument("--weights", type=Path, default=Path("weights"), help=weights_help)
    app.add_argument("--detector", type=Path, help="an ultralytics .pt (default: ObjectAwareModel.pt in --weights)")
    app.add_argument("--confidence", type=float, default=0.4, help="of its boxes (default: %(default)s)")
    app.add_argument("--detector-size", type=int, default=1024, help=size_help)
    app.add_argument("--device", help=device_help)
    app.add_argument("--port", type=int, help="of the page on this computer (default: the first free one from 7860)")
    app.add_argument("--share", action="store_true", help="also a public address, by a tunnel of Gradio's")
    app.set_defaults(run=run_app)

    downloading = commands.add_parser(
        "download", help="download weights that others released, checked by SHA-256 where one is known"
    )
    downloading.add_argument("names", nargs="*", help=f"models or files; none lists them: {', '.join(FILES)}")
    downloading.add_argument("-o", "--output", type=Path, default=Path("weights"), help=weights_help)
    downloading.set_defaults(run=download_weights)

    yolo = commands.add_parser(
        "yolo-data", help="write a data set in ultralytics' layout, of one class, for yolo train"
    )
    yolo.add_argument("output", type=Path, help="the folder to write: images, labels and data.yaml")
    source = yolo.add_mutually_exclusive_group(required=True)
    source.add_argument("--tars", nargs="+", help="tars of SA-1B, or folders of them")
    source.add_argument("--annotations", type=Path, help="a JSON file in COCO's layout")
    yolo.add_argument("--images", type=Path, help="with --annotations: the folder of its images")
    yolo.add_argument("--limit", type=float, help="at most so many images, or below 1 that share of them")
    yolo.add_argument("--val", type=int, default=0, help="so many at the end for validation (default: %(default)s)")
    yolo.add_argument("--boxes", action="store_true", help="boxes instead of outlines, for yolo detect")
    yolo.set_defaults(run=convert_to_yolo)

    report = commands.add_parser("report", help="tables and pictures of evaluations; report DIR is report sweep DIR")
    reports = report.add_subparsers(required=True, metavar="REPORT")
    sweep = reports.add_parser("sweep", help="all evaluations below a folder: CSV, Markdown, LaTeX and figures")
    sweep.add_argument("folder", type=Path, help="the sweep's output_dir, or any folder of evaluations")
    sweep.add_argument("-o", "--output", type=Path, help="folder to write into (default: report in the sweep's)")
    sweep.add_argument("--baseline", help="name of the run that all others are compared with, in pairs of images")
    sweep.set_defaults(run=report_sweep)
    runs_help = "folder of an evaluation, or NAME=FOLDER"
    table = reports.add_parser("table", help="a row for each evaluation, as Markdown")
    table.add_argument("runs", nargs="+", help=runs_help)
    table.set_defaults(run=lambda args: print(result_table({n: read_result(p) for n, p in _named(args.runs).items()})))
    picture = reports.add_parser("picture", help="images beside the masks of evaluations with save_masks=true")
    picture.add_argument("runs", nargs="+", help=runs_help)
    picture.add_argument("-o", "--output", type=Path, required=True, help="the picture to write, .png or .jpg")
    picture.add_argument("--images", type=int, default=4, help="how many, from the first (default: %(default)s)")
    picture.set_defaults(run=write_picture)
    compare = reports.add_parser("compare", help="second minus first, with paired bootstrap intervals")
    compare.add_argument("first", help="folder of an evaluation, or its results.json")
    compare.add_argument("second", help="another on the same images")
    compare.set_defaults(run=lambda args: print(compare_results(args.first, args.second)))
    claims = reports.add_parser("claims", help="MobileSAMv2's claims and tables in miniature, as HTML and Markdown")
    claims.add_argument("folder", type=Path, help="the evaluations, with save_masks=true; the report goes here too")
    claims.add_argument("--teacher", required=True, help="name of its model")
    claims.add_argument("--student", required=True, help="name of its model")
    claims.set_defaults(run=report_claims)
    return parser


def models_table(names: Sequence[str]) -> str:
    """A line for each model: its encoder, input side, millions of parameters, billions of MACs, and known weights."""
    head = f"{'model':<20}{'encoder':<20}{'input (px)':>12}{'encoder (M)':>14}{'whole (M)':>12}{'G MACs':>10}   weights"
    lines = [head]
    shipped = shipped_models()
    for name in names:
        with torch.device("meta"):  # shapes without memory
            sam = build_sam(name)
        encoder, whole = (sum(p.numel() for p in module.parameters()) / 1e6 for module in (sam.image_encoder, sam))
        macs = encoder_cost(sam.image_encoder, sam.image_size).macs / 1e9
        weights = "in this package" if name in shipped else ", ".join(FILES.get(name, ("-",)))
        line = f"{name:<20}{sam.encoder_name:<20}{sam.image_size:>12}{encoder:>14.2f}{whole:>12.2f}{macs:>10.1f}"
        lines.append(f"{line}   {weights}")
    return "\n".join(lines)


def segment_folder(args: argparse.Namespace) -> None:
    """Segments everything in photos; a photo that can't be read is an error once the others are done."""
    photos = find_photos(args.photos)
    device = _device(args)
    sam = load_pretrained(args.model, args.weights)
    sampler = build_sampler(args, sam, device)
    made_by = {"model": sam.name, "weights_sha256": weights_sha256(sam)} | sampler.settings
    if isinstance(sampler, ObjectAware):
        detector: Any = sampler.detector
        made_by |= {"detector_sha256": weights_sha256(detector), "detector_size": detector.image_size}
    done = segment_photos(photos, SegEvery(sam.for_inference().to(device), sampler), args.output, made_by)
    if done.kept:
        print(f"{done.kept} photos were segmented so before, and are kept; --output elsewhere does them anew.")
    print(f"{sum(done.masks)} masks on {len(done.masks)} photos; written: {done.written} and the pictures beside it")
    if done.masks and not any(done.masks):
        lower = "--confidence" if args.sampler == "object_aware" else "--predicted-iou and --stability"
        print(f"No mask passed the thresholds; {lower} set lower ones.", file=sys.stderr)
    if done.broken:
        raise ValueError(f"{len(done.broken)} of {len(photos)} photos were left out. " + " ".join(done.broken))


SAMPLERS = {"grid": Grid, "grid_proposals": GridProposals, "hierarchical": Hierarchical, "object_aware": ObjectAware}
"""Prompt samplers by the names of conf/prompt_sampler."""


def _device(args: argparse.Namespace) -> str:
    """Where models run."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} can't be used here: {str(error).splitlines()[0]}") from error
    return device


def build_sampler(args: argparse.Namespace, sam: Sam, device: str) -> PromptSampler:
    """The prompt sampler of ``segment``'s options."""
    names = ("points_per_side", "predicted_iou", "stability")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.sampler == "object_aware":
        if given:
            options = ", ".join("--" + name.replace("_", "-") for name in given)
            raise ValueError(f"{options}: of grids; object_aware asks with a detector's boxes, and keeps every mask.")
        checkpoint = args.detector or args.weights / "ObjectAwareModel.pt"
        detector = build_detector(checkpoint=checkpoint, image_size=args.detector_size or 1024)
        return ObjectAware(detector.to(device), confidence=0.4 if args.confidence is None else args.confidence)
    if args.detector or args.detector_size is not None or args.confidence is not None:
        options = "--detector, --detector-size and --confidence go"
        raise ValueError(f"{options} with --sampler object_aware; {args.sampler} asks without a detector.")
    if args.sampler != "grid_proposals":  # which filters nothing
        default = default_grid(sam)
        given = {"predicted_iou": default.predicted_iou, "stability": default.stability} | given
    if args.sampler == "hierarchical":
        given["confident_iou"] = given["predicted_iou"]
    return SAMPLERS[args.sampler](**given)


def run_app(args: argparse.Namespace) -> None:
    """Serves the page to play with until it is stopped."""
    try:
        from mobilesamv2.app import build_page, serve  # Gradio is an extra
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError(
            "The page is built with Gradio, which isn't installed: pip install 'mobilesamv2[app]'"
        ) from error
    playground = open_playground(args.model, args.weights, args.detector, args.detector_size, _device(args))
    print(*filter(None, (playground.about, playground.no_detector)), sep="\n")
    serve(build_page(playground, args.confidence), args.port, args.share)


def download_weights(args: argparse.Namespace) -> None:
    """Downloads released files, or lists them."""
    if not args.names:
        for name, released in RELEASED.items():
            print(f"{name:<30}{released.where}")
        return
    for name in released_files(args.names):
        print(f"written: {download_released(name, args.output)}")


def export_model(args: argparse.Namespace) -> None:
    """Writes a model as ONNX, and says how far it is from torch and what eight bits cost."""
    if args.calibration and not args.int8:
        raise ValueError("--calibration FOLDER goes with --int8.")
    photos = photos_of(args.calibration) if args.calibration else []
    if args.checkpoint and args.random:
        raise ValueError("--checkpoint and --random exclude each other.")
    if args.checkpoint or args.random:
        sam = build_sam(args.model, args.checkpoint, allow_partial=False)
    else:
        sam = load_pretrained(args.model, args.weights)
    for path in export_onnx(sam, args.output, args.opset):
        print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if not args.no_check:
        for name, difference in check_export(sam, args.output).items():
            print(f"{name}: differs from torch by {difference:.1e} of the largest value")
    if args.int8:
        int8 = quantize_encoder(args.output, photos)
        print(f"written: {int8.path} ({int8.nbytes / 1e6:.1f} MB, in float32 {int8.nbytes_float / 1e6:.1f} MB)")
        print(f"image_embedding: cosine similarity with float32 {int8.cosine:.5f}, on {int8.measured_on}")
        given = f"model={sam.name} model.checkpoint=FILE onnx_encoder={int8.path}"
        print(f"what it costs in AR: python evaluate.py {given} ...")


def draw_scenes(args: argparse.Namespace) -> None:
    """Writes drawn scenes as a tar or a folder."""
    if args.scenes < 1 or args.size < 16:
        raise ValueError("Scenes are one or more, of 16 pixels a side or more.")
    scenes = ShapesDataset(args.scenes, (args.size, args.size), args.seed, args.world)
    ahead = DataLoader(scenes, batch_size=None, collate_fn=_as_it_is, num_workers=args.workers)
    progress = tqdm(ahead, total=args.scenes, desc=f"drawing {args.output}", unit="scene", disable=None)
    write = write_sa1b_tar if args.output.suffix == ".tar" else write_lvis
    write(progress, args.output)


def convert_to_yolo(args: argparse.Namespace) -> None:
    """Writes a data set in ultralytics' layout."""
    if (args.images is None) != (args.annotations is None):
        raise ValueError("--annotations FILE goes with --images FOLDER.")
    dataset = (
        SA1BDataset(args.tars, args.limit) if args.tars else CocoDataset(args.annotations, args.images, args.limit)
    )
    last = len(dataset) - args.val
    if args.val < 0 or last < 1:
        raise ValueError(f"--val keeps {args.val} of {len(dataset)} images, and leaves none to train on.")
    splits = {"train": range(last), "val": range(last, len(dataset))}
    for split, indices in splits.items():
        if len(indices):
            progress = tqdm(indices, desc=f"writing {args.output}/images/{split}", unit="image", disable=None)
            done = write_yolo(dataset, progress, args.output, split, masks=not args.boxes)
            print(f"{split}: {done.images} images, {done.objects} objects; {done.merged} duplicates of a box left out")
    written = write_data_yaml(args.output, [split for split, indices in splits.items() if len(indices)])
    print(f"written: {written}")


def report_sweep(args: argparse.Namespace) -> None:
    """Writes the tables and figures of a sweep, prints the table, and lists the jobs that gave no result."""
    for name, command in failed_jobs(args.folder).items():
        print(f"{name} gave nothing. Alone: {command}\n")
    runs = gather(args.folder)
    rows = sweep_rows(runs, args.baseline)
    table = cells(rows)
    output = args.output or args.folder / "report"
    output.mkdir(parents=True, exist_ok=True)
    write_csv(rows, output / "runs.csv")
    write_whole(output / "table.md", as_markdown(table) + "\n")
    write_whole(output / "table.tex", as_latex(table) + "\n")
    figures = write_figures(runs, output)
    print(as_markdown(table))
    print(f"\nwritten: {output}/runs.csv, table.md, table.tex, {', '.join(path.name for path in figures)}")


def report_claims(args: argparse.Namespace) -> None:
    """Writes the report, and prints its tables and what became of each claim."""
    claims, tables = write_claims(args.folder, args.teacher, args.student)
    for title, table in tables.items():
        print(f"{title}\n\n{as_markdown(table)}\n")
    print(as_lines(claims))
    print(f"\nwritten: {args.folder}/report.html, report.md")


def write_picture(args: argparse.Namespace) -> None:
    """Writes a picture of evaluations."""
    kind = Image.registered_extensions().get(args.output.suffix.lower())
    if kind is None:
        raise ValueError(f"{args.output} is to be a picture: name it .png or .jpg.")
    picture = result_picture(_named(args.runs), args.images)
    content = io.BytesIO()  # Pillow does not notice where the end of a JPEG finds no room
    picture.save(content, kind)
    with whole_file(args.output) as partial:
        partial.write_bytes(content.getvalue())
    print(f"written: {args.output}")


def _named(runs: Sequence[str]) -> dict[str, Path]:
    """Folders by the name before an equals sign, or else by their own."""
    named: dict[str, Path] = {}
    for run in runs:
        name, path = run.split("=", 1) if "=" in run and not Path(run).exists() else (Path(run).name, run)
        if name in named:
            raise ValueError(f"Two evaluations are called {name}; give them names: NAME=FOLDER.")
        named[name] = Path(path)
    return named


def _as_it_is(sample: Any) -> Any:
    return sample
