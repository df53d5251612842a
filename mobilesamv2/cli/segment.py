"""``mobilesamv2 segment``: segment everything in images; write overlays of the masks, and one file in COCO's layout."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from mobilesamv2.cli.options import (
    add_checkpoint,
    add_detector,
    add_device,
    add_download,
    add_max_pixels,
    add_value_range,
    add_weights,
    available_device,
    may_download,
    one_of,
)

if TYPE_CHECKING:
    import numpy as np

    from mobilesamv2.models.sam import Sam
    from mobilesamv2.prompts import PromptSampler
    from mobilesamv2.structures import Masks

SAMPLERS = {
    "grid": "Grid",
    "grid_proposals": "GridProposals",
    "hierarchical": "Hierarchical",
    "object_aware": "ObjectAware",
    "prompt_head": "PromptHeadBoxes",
}
"""Classes of ``mobilesamv2.prompts`` by the names of conf/prompt_sampler."""


BY_BOXES = ("object_aware", "prompt_head")
"""Samplers that prompt with a detector's boxes."""

FRAME = "Sizes, boxes and masks are of the upright images, turned as their EXIF orientation says."
"""Description of ``masks.json``, under COCO's key ``info``."""


class Segmented(NamedTuple):
    """Result of ``segment_images``.

    Attributes:
        num_masks: number of masks of each image.
        broken: one sentence for each image that could not be read.
        written: the file in COCO's layout.
        kept: number of images that an earlier run had segmented with the same settings.
    """

    num_masks: list[int]
    broken: list[str]
    written: Path
    kept: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = (
        "Segment everything in images: an overlay of the masks and a JSON file for each, and masks.json in COCO's "
        "layout. A stopped run resumes."
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, a folder, or a pattern in quotes")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--model",
        help="name of a model with weights, a safetensors file, a folder, or owner/repository of the Hugging Face Hub; "
        "mini_conv is in this package but was trained on synthetic scenes only (default: mobile_sam)",
    )
    add_checkpoint(parser)
    add_weights(parser)
    add_download(parser)
    sampler_help = f"what chooses the prompts: {', '.join(SAMPLERS)} (default: %(default)s)"
    sampler_type = one_of("prompt sampler", list(SAMPLERS))
    parser.add_argument("--sampler", type=sampler_type, default="grid", metavar="NAME", help=sampler_help)
    points_help = "points per side of a grid (default: the sampler's own, 32 or 64)"
    parser.add_argument("--points-per-side", type=int, help=points_help)
    threshold_help = "keep masks of a grid with {} (default: the model's own; SAM's are .88 and .95)"
    parser.add_argument("--pred-iou-thresh", type=float, help=threshold_help.format("a predicted IoU above this"))
    parser.add_argument(
        "--stability-score-thresh", type=float, help=threshold_help.format("a stability score of at least this")
    )
    area_help = "fill holes and remove disconnected regions of fewer pixels, then drop duplicates (default: 0, off)"
    parser.add_argument("--min-mask-region-area", type=float, default=0, metavar="PIXELS", help=area_help)
    add_detector(parser)
    add_device(parser)
    add_value_range(parser)
    add_max_pixels(parser)


def run(args: argparse.Namespace) -> None:
    """Segment everything in images.

    Raises:
        ValueError: if an image can't be read, once the others are done, or options contradict each other.
    """
    from mobilesamv2.checkpoints import weights_sha256
    from mobilesamv2.data.images import MAX_DECODED_PIXELS, check_decoding, find_images, read_rgb
    from mobilesamv2.pretrained import load_model, toy_note
    from mobilesamv2.prompts import ObjectAware
    from mobilesamv2.segevery import SegEvery

    max_pixels = MAX_DECODED_PIXELS if args.max_pixels is None else args.max_pixels
    check_decoding("always", args.value_range, max_pixels)
    images = find_images(args.images)
    device = available_device(args.device)
    model = args.model if args.model or args.checkpoint else "mobile_sam"
    download = not args.checkpoint and may_download(model, args.weights, args.download)
    sam = load_model(model, args.checkpoint, args.weights, download)
    if note := toy_note(sam, args.weights):
        print(note, file=sys.stderr)
    sampler = build_sampler(args, sam, device)
    segevery = SegEvery(sam.for_inference().to(device), sampler)
    made_by = {"model": sam.name, "weights_sha256": weights_sha256(sam)} | segevery.sampler.settings
    if isinstance(sampler, ObjectAware):
        detector: Any = sampler.detector
        made_by |= {"detector_sha256": weights_sha256(detector), "detector_size": detector.image_size}
    if args.value_range is not None:
        made_by["value_range"] = args.value_range
    read = partial(read_rgb, upright="always", value_range=args.value_range, max_pixels=max_pixels)
    done = segment_images(images, segevery, args.output, made_by, read)
    if done.kept:
        print(f"{done.kept} images were already segmented with these settings and are kept; to redo, change --output.")
    num_images = len(done.num_masks)
    print(f"{sum(done.num_masks)} masks on {num_images} images; written: {done.written} and the overlays beside it")
    if done.num_masks and not any(done.num_masks):
        options = "--confidence" if args.sampler in BY_BOXES else "--pred-iou-thresh and --stability-score-thresh"
        print(f"No mask passed the thresholds; lower them with {options}.", file=sys.stderr)
    if done.broken:
        raise ValueError(f"{len(done.broken)} of {len(images)} images were skipped. " + " ".join(done.broken))


def build_sampler(args: argparse.Namespace, sam: Sam, device: str) -> PromptSampler:
    """Build the prompt sampler that the options describe, for a model that is no copy for inference.

    Raises:
        ValueError: if an option belongs to another sampler.
    """
    from mobilesamv2 import prompts
    from mobilesamv2.model_zoo import find_named, find_weights
    from mobilesamv2.prompt_heads import load_detector, prompt_head_file

    names = ("points_per_side", "pred_iou_thresh", "stability_score_thresh")
    settings = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    min_area = args.min_mask_region_area
    if args.sampler in BY_BOXES:
        if settings:
            options = ", ".join("--" + name.replace("_", "-") for name in settings)
            raise ValueError(
                f"{options} can't be combined with --sampler {args.sampler}, which prompts with a detector's boxes "
                "and keeps every mask."
            )
        if args.detector_size is not None and args.sampler == "prompt_head":
            raise ValueError("--detector-size is of an ultralytics detector; a prompt head has the model's input.")
        default = "ObjectAwareModel.pt" if args.sampler == "object_aware" else prompt_head_file(sam.name)
        named = args.detector
        checkpoint = find_named(named, args.weights) if named else find_weights(default, args.weights)
        detector = load_detector(checkpoint, sam, args.detector_size)
        confidence = {} if args.confidence is None else {"confidence": args.confidence}
        build = getattr(prompts, SAMPLERS[args.sampler])
        return build(detector.to(device), **confidence, min_mask_region_area=min_area)
    if args.detector or args.detector_size is not None or args.confidence is not None:
        raise ValueError(f"--detector, --detector-size and --confidence require --sampler {' or '.join(BY_BOXES)}.")
    return getattr(prompts, SAMPLERS[args.sampler])(**settings, min_mask_region_area=min_area)


def segment_images(
    images: Sequence[Path],
    segment: Callable[[np.ndarray], Masks],
    output: Path,
    made_by: Mapping[str, Any],
    read: Callable[[Path], np.ndarray] | None = None,
) -> Segmented:
    """Write an overlay of the masks for each image, a JSON file beside it, and ``masks.json`` for all of them.

    Each JSON file is in SA-1B's layout, one image's ``image`` and ``annotations``; ``masks.json`` is in COCO's. Images
    of several folders keep these below ``output``. An image whose EXIF data contains a rotation is turned upright
    first; sizes, boxes and masks are those of the upright image, which ``CocoDataset`` reads too (``upright="auto"``).
    An image that can't be read is skipped, and named in the result. A stopped run resumes: an image that has its JSON
    file, of the same ``made_by``, is kept as it is.

    Args:
        images: their paths.
        segment: maps an image, RGB uint8 (H, W, 3), to its masks; a ``SegEvery``.
        output: folder to write into.
        made_by: what the masks depend on beside the image, as plain values.
        read: loads an image, RGB uint8 (H, W, 3), upright; None is ``read_rgb`` without further settings.

    Raises:
        ValueError: if two images would share an overlay, an overlay would be written beside an image, or ``output`` is
            a file.
        OSError: if a file can't be written.
    """
    from tqdm import tqdm

    from mobilesamv2.data.images import read_rgb
    from mobilesamv2.files import atomic_write

    read = partial(read_rgb, upright="always") if read is None else read
    overlays = _overlay_paths(images, output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"The output must be a folder, got the file {output}.")
    records: list[Path] = []
    counts, broken, kept = [], [], 0
    for path in tqdm(images, desc="segmenting", unit="image", disable=None):
        overlay_path, record = overlays[path], overlays[path].with_suffix(".json")
        size, changed_ns = path.stat().st_size, path.stat().st_mtime_ns
        expected = dict(made_by) | {"photo": str(path), "photo_bytes": size, "photo_changed_ns": changed_ns}
        count = _count_annotations(record, expected) if overlay_path.is_file() else None
        if count is None:
            try:
                image = read(path)
            except ValueError as error:
                broken.append(str(error))
                continue
            count = _segment_image(image, str(path), segment, overlay_path, expected)
        else:
            kept += 1
        records.append(record)
        counts.append(count)
    written = output / "masks.json"
    with atomic_write(written) as part, part.open("w") as file:
        _merge_records(records, file)
    return Segmented(counts, broken, written, kept)


def _segment_image(
    image: np.ndarray, name: str, segment: Callable[[np.ndarray], Masks], overlay_path: Path, made_by: Mapping[str, Any]
) -> int:
    """Write an image's overlay and, last, its JSON file; return the number of masks."""
    from PIL import Image

    from mobilesamv2.files import atomic_write, write_text_atomic
    from mobilesamv2.visualize import overlay

    masks = segment(image)
    drawn = Image.fromarray(overlay(image, masks.rles))
    with atomic_write(overlay_path) as partial:
        drawn.save(partial, "PNG", compress_level=1)  # 6 takes four times as long
    about = {"file_name": name, "height": masks.size[0], "width": masks.size[1]}
    content = {"image": about, "annotations": _annotations(masks), "made_by": made_by}
    write_text_atomic(overlay_path.with_suffix(".json"), json.dumps(content))
    return len(masks)


def _count_annotations(record: Path, made_by: Mapping[str, Any]) -> int | None:
    """Return the number of masks in an image's JSON file; None if it is of another image or settings, or damaged."""
    try:
        content = json.loads(record.read_text())
        annotations, image = content["annotations"], content["image"]
        is_sound = isinstance(annotations, list) and all(isinstance(each, dict) for each in [image, *annotations])
        return len(annotations) if is_sound and content["made_by"] == json.loads(json.dumps(made_by)) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _merge_records(records: Sequence[Path], file: TextIO) -> None:
    """Write COCO's layout from the JSON files of the images, with one of them in memory at a time."""
    images, number = [], 0
    file.write(f'{{"info": {json.dumps({"description": FRAME})}, "annotations": [')
    for image_id, record in enumerate(records, 1):
        content = json.loads(record.read_text())
        images.append({"id": image_id} | content["image"])
        for annotation in content["annotations"]:
            file.write(", " if number else "")
            number += 1
            file.write(json.dumps(annotation | {"id": number, "image_id": image_id}))
    file.write(f'], "images": {json.dumps(images)}, "categories": {json.dumps([{"id": 1, "name": "object"}])}}}')


def _overlay_paths(images: Sequence[Path], output: Path) -> dict[Path, Path]:
    """Map each image to its overlay: below ``output`` as the image is below the folder that all share."""
    folders = [image.resolve().parent for image in images]
    root = Path(os.path.commonpath(folders))
    names = [folder.relative_to(root) / image.stem for folder, image in zip(folders, images, strict=True)]
    occurrences = Counter(names)
    overlays: dict[Path, Path] = {}
    for image, name in zip(images, names, strict=True):
        # images that differ in their suffix alone keep it, and masks.json is the file of all images
        unique = name.with_name(image.name) if occurrences[name] > 1 or name == Path("masks") else name
        overlays[image] = output / unique.with_name(f"{unique.name}.png")
    beside = {path.parent.resolve() for path in overlays.values()} & set(folders)
    if beside:
        raise ValueError(f"The overlays would be written beside the images of {beside.pop()}: choose another folder.")
    if len(set(overlays.values())) < len(images):
        raise ValueError("Two of the images would share an overlay: segment them separately.")
    return overlays


def _annotations(masks: Masks) -> list[dict[str, Any]]:
    """Return the COCO annotations of one image, sorted by score, numbered from 1."""
    from mobilesamv2.masks import areas

    results = masks.to_coco(1)
    sizes = areas([result["segmentation"] for result in results]).tolist()
    numbered = enumerate(zip(results, sizes, strict=True), 1)
    return [{"id": i, "area": size, "iscrowd": 0, **result} for i, (result, size) in numbered]
