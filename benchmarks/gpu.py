"""What one card does, in ten minutes: encoders, mask decoder, SegEvery, and training from cached embeddings and pixels.

    python benchmarks/gpu.py                              # wants the test dependencies for the official packages
    python benchmarks/gpu.py --miniature --device cpu     # the same steps with small models; --no-compile: minutes

Weights are random, or those that ship for ``--miniature``; times are those of the fastest of several passes, memory is
the card's peak beyond what was held before, in training without the teacher. bfloat16 and torch.compile change masks:
SegEvery's rows say how many. Training reads the teacher's embeddings from disk and decodes the photos, or reads the
pixels too, as with ``cache.pixels=raw``, which a first pass has written; the rows say how many photos they decode.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import distillation
import numpy as np
import torch
from loading import flush, our_batches
from PIL import Image
from segevery import Bench, GivenBoxes, grid_points, random_boxes, read_image, total, write_weights
from segevery_official import now
from typing_extensions import override

from mobilesamv2 import SegEvery, build_sam
from mobilesamv2.data.sa1b import SA1BDataset
from mobilesamv2.data.samples import EncoderSamples
from mobilesamv2.masks import iou
from mobilesamv2.model_zoo import PACKAGE_WEIGHTS
from mobilesamv2.models.cost import encoder_cost
from mobilesamv2.models.sam import Sam
from mobilesamv2.prompts import Grid, ObjectAware
from mobilesamv2.prompts.sampler import PromptSampler
from mobilesamv2.structures import RLE

MIB = 2**20
SAME_MASK = 0.95
"""IoU with the closest mask of the reference from which a mask counts as unchanged."""
OFFICIAL_PACKAGES = ("mobile_sam", "mobilesam_lite")
"""Modules of MobileSAM's and MobileSAMv2's own code, which the test dependencies contain."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        encoders: models whose encoders are timed.
        model: of the mask decoder and SegEvery.
        batch: images in a pass of an encoder and a step of training.
        prompts: numbers of box prompts of the mask decoder.
        points_per_side: of SegEvery's grid.
        official_points: of that grid, those that the official code is timed with, and ours beside it.
        boxes: of SegEvery by boxes.
        repeats: passes, of which the fastest counts.
        teacher: of the training.
        photos: to train on.
        image: height and width of those photos and, in miniature, of SegEvery's image.
    """

    encoders: tuple[str, ...] = ("sam_vit_h", "mobile_sam")
    model: str = "mobile_sam"
    batch: int = 8
    prompts: tuple[int, ...] = (64, 256, 1024)
    points_per_side: int = 32
    official_points: int = 1024
    boxes: int = 320
    repeats: int = 5
    teacher: str = "sam_vit_h"
    photos: int = 128
    image: tuple[int, int] = (1500, 2250)


MINIATURE = Sizes(
    ("sam_vit_mini", "mini"), "mini_conv", 2, (8, 16), 8, 16, 16, 1, "sam_vit_mini", 8, (192, 256)
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How a network runs: in which precision, and whether it is compiled."""

    name: str
    dtype: torch.dtype | None = None
    compiled: bool = False


def ways(compiled: bool) -> list[Way]:
    """Return float32, bfloat16 and, if wanted, compiled bfloat16."""
    plain = [Way("fp32"), Way("bf16", torch.bfloat16)]
    return [*plain, Way("bf16, compiled", torch.bfloat16, compiled=True)] if compiled else plain


@contextmanager
def precision(way: Way, device: torch.device) -> Iterator[None]:
    """Run what is inside in the way's precision."""
    with torch.inference_mode(), torch.autocast(device.type, dtype=way.dtype, enabled=way.dtype is not None):
        yield


def with_peak(run: Callable[[], Result], device: torch.device) -> tuple[Result, str]:
    """Return what a call returns, and its peak MiB beyond what was held before."""
    if device.type != "cuda":
        return run(), "-"
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = run()
    return result, f"{(torch.cuda.max_memory_allocated(device) - held) / MIB:.0f}"


def fastest(run: Callable[[], Any], device: torch.device, repeats: int) -> tuple[float, str]:
    """Return the seconds of the fastest run after one to warm up, and the peak MiB beyond what was held before."""

    def timed() -> float:
        begin = now(device)
        run()
        return now(device) - begin

    run()
    seconds, peak = with_peak(lambda: [timed() for _ in range(repeats)], device)
    return min(seconds), peak


def row(name: str, *cells: str) -> None:
    """Print a row of a table."""
    print(f"  {name:36s}" + "".join(f"{cell:>16s}" for cell in cells), flush=True)


def load(name: str, weights: Path | None, device: torch.device, way: Way) -> Sam:
    """Return a model for inference, its encoder compiled if the way says so."""
    torch.manual_seed(0)
    sam = build_sam(name, weights).to(device).for_inference()
    if way.compiled:
        sam.image_encoder.compile()
    return sam


def encoders(sizes: Sizes, device: torch.device, args: argparse.Namespace) -> None:
    """Time image encoders in each way."""
    print(f"\nimage encoders, {sizes.batch} image(s)")
    row("", "ms an image", "images/s", "peak MiB", "TFLOP/s")
    for name in sizes.encoders:
        flops = 2 * encoder_cost(build_sam(name).image_encoder, build_sam(name).image_size).macs
        for way in ways(args.compile):
            sam = load(name, None, device, way)
            images = torch.randn(sizes.batch, 3, sam.image_size, sam.image_size, device=device)
            with precision(way, device):
                seconds, peak = fastest(lambda s=sam, x=images: s.image_encoder(x), device, sizes.repeats)
            rate = sizes.batch / seconds
            row(f"{name}, {way.name}", f"{1000 / rate:.2f}", f"{rate:.1f}", peak, f"{rate * flops / 1e12:.3f}")


def mask_decoder(sizes: Sizes, device: torch.device) -> None:
    """Time the mask decoder by the number of prompts."""
    print(f"\nmask decoder of {sizes.model}, one mask a box")
    row("", "ms", "prompts/s", "peak MiB")
    for way in ways(compiled=False):
        sam = load(sizes.model, None, device, way)
        cells = sam.image_size // 16
        embedding = torch.randn(1, sam.embedding_channels, cells, cells, device=device)
        for number in sizes.prompts:
            boxes = random_boxes(number, (sam.image_size, sam.image_size)).to(device)
            with precision(way, device):
                seconds, peak = fastest(
                    lambda s=sam, e=embedding, b=boxes: s.decode(e, boxes_xyxy=b, multimask_output=False),
                    device,
                    sizes.repeats,
                )
            row(f"{number} boxes, {way.name}", f"{1000 * seconds:.2f}", f"{number / seconds:.0f}", peak)


def photo(sizes: Sizes, args: argparse.Namespace) -> np.ndarray:
    """Return SegEvery's image."""
    image = read_image(args.image)
    return np.asarray(Image.fromarray(image).resize(sizes.image[::-1])) if args.miniature else image


def segment_everything(sizes: Sizes, device: torch.device, args: argparse.Namespace, folder: Path) -> None:
    """Time SegEvery by a grid and by boxes in each way, and count the masks that a way changes."""
    image = photo(sizes, args)
    if args.miniature:
        weights = PACKAGE_WEIGHTS / f"{sizes.model}.safetensors"
    else:
        weights = folder / "weights.pt"
        write_weights(image, weights)
    boxes = random_boxes(sizes.boxes, (image.shape[0], image.shape[1]))
    samplers: dict[str, PromptSampler] = {
        f"grid of {sizes.points_per_side} x {sizes.points_per_side}": Grid(points_per_side=sizes.points_per_side),
        f"{sizes.boxes} boxes": ObjectAware(GivenBoxes(boxes)),
    }
    print(f"\nSegEvery with {sizes.model}, {image.shape[0]} x {image.shape[1]} pixels")
    row("", "s", "decoder, s", "peak MiB", "masks", "missing", "new")
    for name, sampler in samplers.items():
        reference: list[RLE] = []
        for way in ways(args.compile):
            segevery = SegEvery(load(sizes.model, weights, device, way), sampler)
            with precision(way, device):
                seconds, peak = fastest(lambda s=segevery: s(image), device, min(2, sizes.repeats))
                found = segevery(image).rles
            reference = reference or found
            decoder = segevery.timer.ms["mask_decoder"] / 1000
            missing, new = count_changed(found, reference)
            counts = (str(len(found)), str(missing), str(new))
            row(f"{name}, {way.name}", f"{seconds:.3f}", f"{decoder:.3f}", peak, *counts)


def count_changed(found: list[RLE], reference: list[RLE]) -> tuple[int, int]:
    """Count the reference's masks without a counterpart, and those that were found without one; a change is in both."""
    overlap = iou(found, reference)
    return int((overlap.max(0, initial=0) < SAME_MASK).sum()), int((overlap.max(1, initial=0) < SAME_MASK).sum())


def official(sizes: Sizes, args: argparse.Namespace, folder: Path) -> None:
    """Time MobileSAM's and MobileSAMv2's own code, as released and with segment-anything-fast's steps, beside ours."""
    print("\nthe official packages beside ours, a process each")
    missing = [name for name in OFFICIAL_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"  left out: {' and '.join(missing)} not installed; `pip install -e '.[test]'` adds them")
        return
    bench = Bench(folder, photo(sizes, args), args.device)
    row("", "s", "decoder, s", "peak MiB")
    points = grid_points(sizes.points_per_side, sizes.official_points)
    jobs = {"grid": points, "boxes": random_boxes(sizes.boxes, bench.size)}
    steps = "bf16, compiled" if args.compile else "bf16"
    for work, prompts in jobs.items():
        for who, fast in (("official", False), ("official", True), ("ours", False)):
            result = bench.measure(who, work, prompts, fast=fast, compiled=fast and args.compile)
            name = f"{who}, {len(prompts)} {'points' if work == 'grid' else work}{f', {steps}' if fast else ''}"
            row(name, f"{total(result):.3f}", f"{result['decoder']:.3f}", f"{result['peak'] / MIB:.0f}")


class CountedPhotos(SA1BDataset):
    """Photos of a tar, of which it is counted how many are decoded, by workers too."""

    def __init__(self, tar: Path) -> None:
        super().__init__(tar)
        self._decoded = multiprocessing.Value("q", 0)

    @property
    def decoded(self) -> int:
        """Return how many photos were decoded until now."""
        return self._decoded.value

    @override
    def load_image(self, index: int) -> np.ndarray:
        with self._decoded.get_lock():
            self._decoded.value += 1
        return super().load_image(index)


def training(sizes: Sizes, device: torch.device, args: argparse.Namespace, folder: Path) -> None:
    """Time distillation from what is cached, and say what share of the card's arithmetic it reaches."""
    student = sizes.encoders[-1]
    settings = argparse.Namespace(
        student=student,
        teacher=sizes.teacher,
        teacher_precision="bf16" if device.type == "cuda" else "fp32",
        precision="bf16-mixed" if device.type == "cuda" else "32-true",
        batch_size=sizes.batch,
        num_workers=args.num_workers,
        epochs=2,
    )
    teacher = build_sam(sizes.teacher)
    cells = teacher.image_size // 16
    distillation.draw(folder, sizes.photos, sizes.image)
    shape = (teacher.embedding_channels, cells, cells)
    distillation.keep_embeddings(folder, teacher, teacher.image_size, sizes.batch, shape)
    teacher.to(device)  # before memory is measured, since it stays there
    images = CountedPhotos(folder / "sa_000000.tar")
    decoding, keeping = (EncoderSamples(images, teacher.image_size) for _ in range(2))
    keep_pixels(keeping, folder, settings)
    print(f"\ndistillation of {sizes.teacher} into {student}, batches of {sizes.batch}, {settings.precision}")
    row("", "images/s", "waiting", "TFLOP/s", "share of peak", "peak MiB", "decoded photos")
    flops = distillation.flops_of_a_photo(student, backward=True)
    for way, samples, compiled in (
        ("fp16", decoding, False),
        ("int8", decoding, False),
        ("fp16", keeping, False),
        ("int8", keeping, False),
        *([("int8", keeping, True)] if args.compile else []),
    ):
        before, train = images.decoded, partial(distillation.train_ours, folder, way, teacher, settings)
        (rate, waited), peak = with_peak(partial(train, samples, compiled=compiled), device)
        tflops = rate * flops / 1e12
        share = f"{100 * tflops / args.peak_tflops:.1f}%" if args.peak_tflops else "-"
        name = f"{way} embeddings{' and pixels' if samples is keeping else ''}{', compiled' if compiled else ''}"
        row(name, f"{rate:.1f}", f"{100 * waited:.1f}%", f"{tflops:.3f}", share, peak, str(images.decoded - before))


def keep_pixels(samples: EncoderSamples, folder: Path, settings: argparse.Namespace) -> None:
    """Make the first pass, which decodes all photos and writes their pixels to disk."""
    samples.keep_pixels(folder, "raw")
    for _ in our_batches(samples, settings):
        pass
    flush(samples)


def card(device: torch.device) -> str:
    """Return the name of the device, with its driver where there is one."""
    if device.type != "cuda":
        return f"CPU, {torch.get_num_threads()} threads"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0]
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"{torch.cuda.get_device_name(device)}, {memory:.0f} GiB, driver {driver or 'unknown'}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--miniature", action="store_true", help="small models and numbers, to try the script")
    parser.add_argument("--image", type=Path, help="a photo for SegEvery (default: a drawn scene of 1500 x 2250)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--official", action=argparse.BooleanOptionalAction, default=True, help="time the official code"
    )
    parser.add_argument("--num-workers", type=int, default=8, help="processes that decode photos for the training")
    parser.add_argument("--peak-tflops", type=float, help="of the card in bfloat16, dense: 989 for an H100 SXM")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here: --miniature --device cpu tries the script.")
    sizes, begin = MINIATURE if args.miniature else Sizes(), time.perf_counter()
    np.random.seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{card(device)}; torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoders(sizes, device, args)
        mask_decoder(sizes, device)
        segment_everything(sizes, device, args, folder)
        if args.official:
            official(sizes, args, folder)
        training(sizes, device, args, folder)
    print(f"\n{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
