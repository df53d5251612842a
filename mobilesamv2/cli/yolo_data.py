"""``mobilesamv2 yolo-data``: a data set in ultralytics' layout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mobilesamv2.cli.options import add_max_pixels, add_value_range


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = "Write a data set in ultralytics' layout, with one class, for yolo train."
    parser.add_argument("output", type=Path, help="folder to write: images, labels and data.yaml")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tars", nargs="+", help="SA-1B: tars, or folders of tars or of extracted files")
    source.add_argument("--annotations", type=Path, help="a JSON file in COCO's layout")
    parser.add_argument("--images", type=Path, help="with --annotations: the folder of its images")
    bad_help = "annotations that can't be used: refuse the file, or leave them out (default: %(default)s)"
    parser.add_argument("--bad-annotations", choices=("error", "leave_out"), default="error", help=bad_help)
    parser.add_argument("--limit", type=float, help="at most N images, or below 1 that share of them")
    val_help = "number of images, the last ones, for validation (default: %(default)s)"
    parser.add_argument("--val", type=int, default=0, help=val_help)
    add_value_range(parser)
    upright_help = "turn images as their EXIF orientation says: as dataset.upright (default: %(default)s)"
    parser.add_argument("--upright", choices=("auto", "always", "never"), default="auto", help=upright_help)
    add_max_pixels(parser)
    parser.add_argument("--boxes", action="store_true", help="boxes instead of outlines, for yolo detect")


def run(args: argparse.Namespace) -> None:
    """Write images, labels and data.yaml.

    Raises:
        ValueError: if options contradict each other, or no image is left to train on.
    """
    from tqdm import tqdm

    from mobilesamv2.data.coco import CocoDataset
    from mobilesamv2.data.images import MAX_DECODED_PIXELS
    from mobilesamv2.data.sa1b import SA1BDataset
    from mobilesamv2.data.yolo_format import write_data_yaml, write_yolo

    if (args.images is None) != (args.annotations is None):
        raise ValueError("--annotations FILE and --images FOLDER must be given together.")
    if args.tars and args.bad_annotations != "error":
        raise ValueError("--bad-annotations must come with --annotations; one of SA-1B costs itself alone.")
    decoding: dict[str, Any] = {
        "upright": args.upright,
        "value_range": args.value_range,
        "max_pixels": MAX_DECODED_PIXELS if args.max_pixels is None else args.max_pixels,
    }
    dataset = (
        SA1BDataset(args.tars, args.limit, **decoding)
        if args.tars
        else CocoDataset(args.annotations, args.images, args.limit, bad_annotations=args.bad_annotations, **decoding)
    )
    if not args.boxes:
        dataset.require_masks()
    num_train = len(dataset) - args.val
    if args.val < 0 or num_train < 1:
        raise ValueError(f"--val must be at least 0 and leave images to train on, got {args.val} of {len(dataset)}.")
    ranges = {"train": range(num_train), "val": range(num_train, len(dataset))}
    splits = {split: indices for split, indices in ranges.items() if len(indices)}
    for split, indices in splits.items():
        progress = tqdm(indices, desc=f"writing {args.output}/images/{split}", unit="image", disable=None)
        done = write_yolo(dataset, progress, args.output, split, masks=not args.boxes)
        print(f"{split}: {done.images} images, {done.objects} objects; {done.merged} duplicates of a box left out")
    print(f"written: {write_data_yaml(args.output, list(splits))}")
