"""Images/s of decoupled distillation, and the share of the time spent waiting for data, on the same photos in one run.

    python benchmarks/distillation.py                                              # or: make bench
    python benchmarks/distillation.py --student mobile_sam --teacher sam_vit_h --precision bf16-mixed --batch-size 16 \
        --peak-tflops 989                                                          # on a GPU

This project reads photos from a tar and the teacher's embeddings from its cache of fp16 or int8, or runs the teacher
online. Its rival is the loop that MobileSAM's re-implementations have: extracted photos, an fp32 ``.npy`` beside each,
a DataLoader, and forward, backward and step, without logs and checkpoints. First the loaders run alone, at 1024 pixels
with embeddings of full size (fp16 2 MiB, int8 1 MiB, npy 4 MiB), from memory and from disk; then they feed a student,
from memory.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from mobilesamv2 import build_sam
from mobilesamv2.callbacks.throughput import ThroughputMonitor
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.sa1b import SA1BDataset
from mobilesamv2.data.samples import EncoderSamples, normalized_pixels
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.writers import write_sa1b_tar
from mobilesamv2.tasks.distill import DistillDecoupled
from mobilesamv2.tasks.teacher import Teacher, teacher_identity, valid_grid_size

ADAMW = partial(torch.optim.AdamW, lr=1e-4)


class PlainFiles(Dataset[tuple[Tensor, Tensor]]):
    """Photos and embeddings as the peers have them: a JPEG and an fp32 ``.npy`` of each."""

    def __init__(self, folder: Path, image_size: int) -> None:
        self.photos = sorted(folder.glob("*.jpg"))
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = np.asarray(Image.open(self.photos[index]).convert("RGB"))
        embedding = torch.from_numpy(np.load(self.photos[index].with_suffix(".npy")))
        return normalized_pixels(image, self.image_size), embedding


def draw(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write the same images as a tar and as files."""
    scenes = SyntheticDataset(count, size)
    write_sa1b_tar((scenes[i] for i in tqdm(range(count), desc="drawing", unit="photo")), folder / "sa_000000.tar")
    tar = SA1BDataset(folder / "sa_000000.tar")
    for i in range(count):
        Image.fromarray(tar.load_image(i)).save(folder / f"sa_{i}.jpg", quality=95)


def keep_embeddings(folder: Path, teacher: Any, image_size: int, batch_size: int, shape: tuple[int, int, int]) -> None:
    """Embeddings of all photos, random ones, in each way to keep them."""
    samples = EncoderSamples(SA1BDataset(folder / "sa_000000.tar"), image_size)
    generator = torch.Generator().manual_seed(0)
    identity = teacher_identity(teacher)
    caches = [EmbeddingCache(folder / dtype, identity, dtype, shard_size=batch_size) for dtype in ("fp16", "int8")]
    for i in range(len(samples)):
        embedding = torch.randn(1, *shape, generator=generator)
        for cache in caches:
            cache.write([i], embedding, valid_grid_size(samples[i]["resized"])[None])
        np.save(folder / f"sa_{i}.npy", embedding[0].numpy())
    for cache in caches:
        cache.flush()


def loader_of(folder: Path, way: str, teacher: Any, image_size: int, args: argparse.Namespace) -> Iterable[Any]:
    """Batches, without a student."""
    if way == "npy":
        files = PlainFiles(folder, image_size)
        return DataLoader(files, args.batch_size, shuffle=True, num_workers=args.num_workers, drop_last=True)
    cache = EmbeddingCache(folder / way, teacher_identity(teacher), way)
    samples = EncoderSamples(SA1BDataset(folder / "sa_000000.tar"), image_size)
    return TrainingData(samples, args.batch_size, 0, args.num_workers, embeddings=cache).train_dataloader()


def forget(folder: Path) -> None:
    """Has the system drop what it keeps of the files in memory."""
    for path in folder.rglob("*.*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def images_per_second(loader: Iterable[Any], batch_size: int, epochs: int, cold: Path | None = None) -> float:
    """Of a loader alone; the first batch, which waits for the workers to start, is left out.

    Args:
        loader: gives batches.
        batch_size: images in each.
        epochs: times to go through it.
        cold: a folder whose files come from disk each time.
    """
    counts, seconds = 0, 0.0
    for _ in range(epochs):
        if cold is not None:
            forget(cold)
        batches = iter(loader)
        next(batches)
        begin = time.perf_counter()
        counts += sum(1 for _ in batches)
        seconds += time.perf_counter() - begin
    return counts * batch_size / seconds


def train_plainly(folder: Path, args: argparse.Namespace) -> tuple[float, float]:
    """Return images/s of other implementations' loop, and the share of the time that it waits."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = build_sam(args.student).image_encoder.to(device).train()
    optimizer = ADAMW(student.parameters())
    files = PlainFiles(folder, build_sam(args.student).image_size)
    loader = DataLoader(files, args.batch_size, shuffle=True, num_workers=args.num_workers, drop_last=True)
    half = args.precision == "bf16-mixed"
    steps, waited, begin = 0, 0.0, 0.0
    for _ in range(args.epochs):
        batches, free_since = iter(loader), time.perf_counter()
        for i in itertools.count():
            batch = next(batches, None)
            if batch is None:
                break
            if i:  # the first of an epoch waits for the workers to start
                waited += time.perf_counter() - free_since
            else:
                began = time.perf_counter()
            pixels, wanted = (tensor.to(device) for tensor in batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = (student(pixels) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            steps, free_since = steps + 1, time.perf_counter()
            if i == 0:
                steps -= 1
                began = free_since
        begin += free_since - began
    return steps * args.batch_size / begin, waited / begin


def train_ours(
    folder: Path,
    way: str,
    teacher: Any,
    args: argparse.Namespace,
    samples: EncoderSamples | None = None,
    compiled: bool = False,
) -> tuple[float, float]:
    """``train.py``'s task and data under its trainer, with its log: images/s and the share of waiting.

    Args:
        folder: of the photos and embeddings.
        way: how the embeddings are kept, or online.
        teacher: the model to imitate.
        args: of the command line.
        samples: of the photos, where they are read in another way than from the tar.
        compiled: compile the student's image encoder, as ``compile=true`` does.
    """
    torch.manual_seed(0)
    cache = None if way == "online" else EmbeddingCache(folder / way, teacher_identity(teacher), way)
    task = DistillDecoupled(build_sam(args.student), Teacher(teacher, cache, args.teacher_precision), ADAMW)
    if compiled:
        task.backbone.compile()
    if samples is None:
        samples = EncoderSamples(SA1BDataset(folder / "sa_000000.tar"), teacher.image_size)
    data = TrainingData(samples, args.batch_size, 0, args.num_workers, embeddings=cache)
    with tempfile.TemporaryDirectory() as log:
        trainer = pl.Trainer(
            max_epochs=args.epochs,
            precision=args.precision,
            callbacks=[ThroughputMonitor()],
            log_every_n_steps=1,
            logger=CSVLogger(log, "", ""),
            default_root_dir=log,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
            gradient_clip_val=1.0,
        )
        trainer.fit(task, datamodule=data)
        rows = [row for row in csv.DictReader((Path(log) / "metrics.csv").open()) if row["train/images_per_second"]]
    per_epoch = len(rows) // args.epochs
    kept = [row for i, row in enumerate(rows) if i % per_epoch]  # without each epoch's first step, as above
    seconds = [args.batch_size / float(row["train/images_per_second"]) for row in kept]
    waited = [s * float(row["train/data_wait"]) for s, row in zip(seconds, kept, strict=True)]
    return args.batch_size / fmean(seconds), sum(waited) / sum(seconds)


def flops_of_a_photo(name: str, backward: bool) -> float:
    """Of the image encoder, two for each multiplication with its addition; three times as many with backward."""
    with torch.device("meta"):
        sam = build_sam(name)
        pixels = torch.empty(1, 3, sam.image_size, sam.image_size)
        with FlopCounterMode(display=False) as counter:
            sam.image_encoder(pixels)
    return counter.get_total_flops() * (3 if backward else 1)


def teacher_images_per_second(teacher: Any, args: argparse.Namespace) -> float:
    """Of the teacher alone, in a batch that is on its device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = Teacher(teacher.to(device), None, args.teacher_precision)
    pixels = torch.randn(args.batch_size, 3, teacher.image_size, teacher.image_size, device=device)
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        encoder.encode(pixels).mean().item()
        seconds.append(time.perf_counter() - begin)
    return args.batch_size / min(seconds)


def main() -> None:
    """Print two tables and the rates of the encoders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--student", default="mini_conv")
    parser.add_argument("--teacher", default="sam_vit_mini")
    parser.add_argument("--photos", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--teacher-precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--height", type=int, default=750, help="of the photos, pixels")
    parser.add_argument("--width", type=int, default=1125)
    parser.add_argument("--peak-tflops", type=float, help="of the device, to print the share of it that is reached")
    args = parser.parse_args()
    torch.manual_seed(0)
    teacher = build_sam(args.teacher)
    side = teacher.image_size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, args.photos, (args.height, args.width))
        keep_embeddings(folder, teacher, 1024, args.batch_size, (256, 64, 64))
        print(f"\nloader alone, 1024 pixels, embeddings of 256 x 64 x 64, {args.num_workers} worker(s)")
        for place, cold in (("memory", None), ("disk", folder)):
            rates = {}
            for way in ("npy", "fp16", "int8"):
                loader = loader_of(folder, way, teacher, 1024, args)
                rates[way] = images_per_second(loader, args.batch_size, args.epochs, cold)
                print(f"  {way:5} from {place:7} {rates[way]:8.1f} images/s   {rates[way] / rates['npy']:5.2f} x npy")
        for kept in (folder / "fp16", folder / "int8"):
            for shard in kept.iterdir():
                shard.unlink()
        shape = (teacher.prompt_encoder.embed_dim, side // 16, side // 16)
        keep_embeddings(folder, teacher, side, args.batch_size, shape)
        print(f"\n{args.student} learns {args.teacher}, {side} pixels, batches of {args.batch_size}, {args.precision}")
        results = {"npy, plain loop": train_plainly(folder, args)}
        results |= {f"ours, {way}": train_ours(folder, way, teacher, args) for way in ("fp16", "int8", "online")}
    for way, (rate, waited) in results.items():
        ratio = rate / results["npy, plain loop"][0]
        print(f"  {way:16} {rate:8.1f} images/s   waiting {100 * waited:4.1f}%   {ratio:5.2f} x npy")
    teacher_rate, student_rate = teacher_images_per_second(teacher, args), results["ours, fp16"][0]
    for what, rate, model, backward in (
        ("the teacher alone", teacher_rate, args.teacher, False),
        ("the student's steps", student_rate, args.student, True),
    ):
        tflops = rate * flops_of_a_photo(model, backward) / 1e12
        share = f", {100 * tflops / args.peak_tflops:.1f}% of the peak" if args.peak_tflops else ""
        print(f"  {what}: {rate:.1f} images/s, {tflops:.3f} TFLOP/s{share}")


if __name__ == "__main__":
    main()
