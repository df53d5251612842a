"""An evaluation of LVIS's size with masks that are drawn instead of decoded: memory, time, kills, several processes.

    python benchmarks/lvis_scale.py                               # 19,809 images of 1,000 masks; five minutes of a core
    python benchmarks/lvis_scale.py --write                       # the documentation's figures; six minutes
    python benchmarks/lvis_scale.py --images 60 --masks 50 --check-images 90     # two minutes
    python benchmarks/lvis_scale.py --save-masks                  # every mask goes to disk, too

Everything but images and networks is what ``evaluate.py`` runs: the loop under ``Trainer.test``, mask AR@K, shards of
results, gathering, intervals, results.json. Drawn masks are those of a bank of ellipses, so that drawing costs next to
nothing; half of them are those of the image's own objects. It prints

- processor time and resident memory by tenths of the run: what grows with the number of images shows in them;
- the same for the end of the run: gathering, metrics, intervals, files;
- whether a run that was killed and resumed, and one of several processes, write the same results as one left alone;
- hours on LVIS's validation split by sampler: published stage times, and this script's own measurement of the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from lvis_scale_texts import GPUS, LVIS_IMAGES, PUBLISHED_MS, gpu_hours, write_lvis_scale
from pycocotools import mask as coco_mask
from torch import Tensor

from mobilesamv2.data.base import ImageDataset
from mobilesamv2.data.datamodule import EvaluationData
from mobilesamv2.evaluation.masks import EvaluateMasks
from mobilesamv2.evaluation.results import mask_metric_record, stack_values, write_record
from mobilesamv2.evaluation.shards import ResultShards
from mobilesamv2.masks import areas
from mobilesamv2.metrics.average_recall import AverageRecall
from mobilesamv2.metrics.mask_metric import MaskMetric
from mobilesamv2.metrics.stage_time import PROMPT_FREE_STAGES, StageTimer
from mobilesamv2.structures import RLE, GroundTruth

HEIGHT, WIDTH, BANK, OBJECTS = 480, 640, 4000, 12
"""Of drawn images; LVIS's validation split has 244,707 objects on 19,809 images of about this size."""


class DrawnMasks(NamedTuple):
    """Masks of one image."""

    rles: list[RLE]
    scores: Tensor


def draw_bank(rng: np.random.Generator) -> list[RLE]:
    """Draw ellipses of all sizes."""
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    bank: list[RLE] = []
    while len(bank) < BANK:
        reach = np.exp(rng.uniform(1, 5)) * rng.uniform(0.6, 1.6, 2)
        x, y = (rng.uniform((0, 0), (WIDTH, HEIGHT)) + reach * np.stack([np.cos(angles), np.sin(angles)], 1)).T
        outline = np.stack([x.clip(0, WIDTH), y.clip(0, HEIGHT)], 1).ravel().tolist()
        rle: Any = coco_mask.frPyObjects([outline], HEIGHT, WIDTH)[0]
        if coco_mask.area(rle):
            bank.append({"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()})
    return bank


class DrawnImages(ImageDataset):
    """Black images with drawn objects, from a bank; the first pixels of an image hold its number."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.bank = draw_bank(np.random.default_rng(0))
        self.bank_areas = areas(self.bank).double().numpy()

    @property
    def image_ids(self) -> list[int]:
        """Return the numbers of the images."""
        return list(range(self.count))

    @property
    def provenance(self) -> dict[str, Any]:
        """Return that they are drawn."""
        return {"annotations": "drawn", "annotations_sha256": None}

    def load_image(self, index: int) -> np.ndarray:
        """Return a black image that holds its number."""
        image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        image[0, 0] = [index >> 16, index >> 8 & 255, index & 255]
        return image

    def content_hash(self, index: int) -> str:
        """Return the number of an image, which it is drawn from."""
        return str(index)

    def objects(self, index: int) -> np.ndarray:
        """Return which ellipses of the bank are the objects of an image."""
        return np.random.default_rng((1, index)).choice(BANK, OBJECTS, replace=False)

    def ground_truth(self, index: int) -> GroundTruth:
        """Return the objects of an image."""
        chosen = self.objects(index)
        rles = [self.bank[i] for i in chosen.tolist()]
        frequencies: list[str | None] = ["rcf"[i % 3] for i in chosen.tolist()]
        return GroundTruth(index, (HEIGHT, WIDTH), rles, self.bank_areas[chosen].tolist(), frequencies)


class EvaluateDrawn(EvaluateMasks):
    """Finds masks by drawing them, and keeps account of time and memory."""

    def __init__(
        self, dataset: DrawnImages, metric: MaskMetric, shards: ResultShards | None, masks: int, kill_after: int | None
    ) -> None:
        super().__init__(metric, shards)
        self.dataset, self.num_masks, self.kill_after = dataset, masks, kill_after
        self.account: list[tuple[float, float]] = []
        """Processor seconds and resident MB after each image."""
        self._timer = StageTimer(torch.device("cpu"), PROMPT_FREE_STAGES)

    @property
    def timer(self) -> StageTimer:
        """Return the timer of the image that was evaluated last."""
        return self._timer

    def find(self, images: Sequence[np.ndarray]) -> Iterator[DrawnMasks]:
        """Yield the masks of each image."""
        for image in images:
            self._timer.start_image()
            with self._timer.stage("network"):
                high, middle, low = image[0, 0].tolist()
                index = (high << 16) + (middle << 8) + low
                rng = np.random.default_rng((2, index))
                own = rng.choice(self.dataset.objects(index), self.num_masks // 2)
                chosen = [*own.tolist(), *rng.integers(BANK, size=self.num_masks - len(own)).tolist()]
                found = DrawnMasks([self.dataset.bank[i] for i in chosen], torch.from_numpy(rng.random(len(chosen))))
            yield found
            self.account.append((time.process_time(), resident_mb()))
            if self.kill_after is not None and len(self.account) >= self.kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

    def to_coco(self, masks: DrawnMasks, image_id: int) -> list[dict[str, Any]]:
        """Return masks as COCO results."""
        return [
            {"image_id": image_id, "category_id": 1, "segmentation": rle, "score": score}
            for rle, score in zip(masks.rles, masks.scores.tolist(), strict=True)
        ]


def resident_mb() -> float:
    """Return the memory that this process holds; its largest so far where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def run_part(args: argparse.Namespace) -> None:
    """Evaluate as one program does, and write results and an account into ``args.part``."""
    folder, dataset, metric = Path(args.part), DrawnImages(args.images), AverageRecall()
    shards = ResultShards(folder, {"masks": args.masks}, args.save_masks)
    task = EvaluateDrawn(dataset, metric, shards, args.masks, args.kill_after)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=args.processes,
        strategy="ddp" if args.processes > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(folder),
    )
    done = [result.image_id for result in shards.done]
    data = EvaluationData(dataset, 0, done)
    began = time.process_time()
    trainer.test(task, datamodule=data, verbose=False)
    if not trainer.is_global_zero:
        return
    tested = time.process_time()
    values = stack_values(task.results)
    ids = [result.image_id for result in task.results]
    results, per_image = mask_metric_record(metric, ids, values, 0, {}, {}, task.results)
    write_record(results, folder, **per_image)
    account = {
        "began": began,
        "images": task.account,
        "tested": tested,
        "written": time.process_time(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "resumed": len(done),
    }
    (folder / "account.json").write_text(json.dumps(account))


def start_part(folder: Path, args: argparse.Namespace, images: int, **options: int) -> int:
    """Run a part in a program of its own; return its exit status."""
    command = [sys.executable, __file__, "--part", str(folder), "--images", str(images), "--masks", str(args.masks)]
    command += ["--save-masks"] if args.save_masks else []
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    quiet = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.returncode


def outcome(folder: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Return what must be the same however a run came about: metrics, intervals, and counts of each image."""
    results = json.loads((folder / "results.json").read_text())
    with np.load(folder / "per_image.npz") as arrays:
        return (results["metrics"], results["interval"], results["n_gt"]), dict(arrays)


def require_same(folder: Path, reference: Path, how: str) -> None:
    """Check that two runs have the same outcome.

    Raises:
        SystemExit: if they have not.
    """
    (facts, arrays), (wanted, wanted_arrays) = outcome(folder), outcome(reference)
    if facts != wanted or any(not np.array_equal(arrays[name], each) for name, each in wanted_arrays.items()):
        raise SystemExit(f"A run {how} has other results than one that was left alone.")
    print(f"  {how}: the same metrics, intervals and counts")


def figures_of(folder: Path, images: int) -> dict[str, float]:
    """Print time and memory by tenths of a run, and return its figures by name; ``ms`` is all that an image costs."""
    account = json.loads((folder / "account.json").read_text())
    seconds, memory = np.array(account["images"]).T
    edges = np.linspace(0, len(seconds), min(10, len(seconds)) + 1).astype(int)
    print(f"{'images':>10} {'CPU ms an image':>16} {'resident MB':>12}")
    before, first, rates = account["began"], 0, []
    for last in edges[1:].tolist():
        rates.append((seconds[last - 1] - before) * 1e3 / (last - first))
        print(f"{last:>10} {rates[-1]:>16.2f} {memory[last - 1]:>12.0f}")
        before, first = seconds[last - 1], last
    growth = (memory[-1] - memory[edges[1] - 1]) / (len(memory) - edges[1]) * 1e3 if len(memory) > edges[1] else 0.0
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    figures = {
        "images": images,
        "loop ms": (account["tested"] - account["began"]) * 1e3 / images,
        "fastest tenth ms": min(rates),
        "slowest tenth ms": max(rates),
        "first MB": memory[edges[1] - 1],
        "last MB": memory[-1],
        "peak MB": account["peak_mb"],
        "growth KB": max(0.0, growth),
        "end s": account["written"] - account["tested"],
        "disk MB": size / 1e6,
        "minutes": (account["written"] - account["began"]) / 60,
        "ms": (account["written"] - account["began"]) * 1e3 / images,
    }
    return {name: float(value) for name, value in figures.items()}


def print_account(folder: Path, images: int) -> dict[str, float]:
    """Print time and memory of a run, and return its figures."""
    one = figures_of(folder, images)
    print(f"  loop {one['loop ms']:.2f} ms an image; memory grows by {one['growth KB']:.1f} KB an image;", end="")
    print(f" peak {one['peak MB']:.0f} MB; metrics, intervals and files: {one['end s']:.1f} s for {images} images")
    print(f"  {one['disk MB']:.1f} MB on disk, {one['disk MB'] / images * 1e3:.1f} KB an image")
    whole = one["ms"] * LVIS_IMAGES / 3.6e6
    print(f"  {LVIS_IMAGES} images: {whole:.2f} hours of a core" + ("" if images == LVIS_IMAGES else ", extrapolated"))
    return one


def print_hours(own_ms: float, gpus: int) -> None:
    """Print the hours of LVIS's validation split by sampler."""
    print(
        f"\nhours on {LVIS_IMAGES} images; GPU: published (MobileSAM, MobileSAMv2); scoring: {own_ms:.1f} ms, measured"
    )
    for name in PUBLISHED_MS:
        alone = gpu_hours(name, own_ms)
        print(f"  {name:33} {alone:7.2f} h on one GPU   {alone / gpus:6.2f} h on {gpus}, without their starts")


def check_others(root: Path, args: argparse.Namespace) -> None:
    """Check that a run that was killed, and one of several processes, have the results of one that was left alone."""
    print(f"\n{args.check_images} images, beside a run that was left alone", flush=True)
    start_part(root / "alone", args, args.check_images, processes=1)
    kill_after = args.check_images * 2 // 3
    status = start_part(root / "killed", args, args.check_images, processes=1, kill_after=kill_after)
    if status != -signal.SIGKILL:
        raise SystemExit(f"The run to be killed ended with status {status}.")
    start_part(root / "killed", args, args.check_images, processes=1)
    kept = json.loads((root / "killed" / "account.json").read_text())["resumed"]
    if not kept:
        raise SystemExit("The run was killed before it had saved an image: raise --check-images.")
    require_same(root / "killed", root / "alone", f"killed after {kill_after}, resumed with {kept}")
    start_part(root / "divided", args, args.check_images, processes=args.processes)
    require_same(root / "divided", root / "alone", f"of {args.processes} processes")


def write_figures(root: Path, figures: dict[str, float], args: argparse.Namespace) -> None:
    """Measure the same with every mask kept, on fewer images, and write the documentation's figures."""
    args.save_masks = True
    print(f"\n{args.saved_images} images, every mask kept", flush=True)
    start_part(root / "saved", args, args.saved_images, processes=1)
    saved = print_account(root / "saved", args.saved_images)
    figures |= {"saved images": args.saved_images, "saved ms": saved["ms"], "checked images": args.check_images}
    write_lvis_scale(figures | {"saved KB an image": saved["disk MB"] * 1e3 / args.saved_images})


def main() -> None:
    """Run all parts and print the report, or run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=LVIS_IMAGES)
    parser.add_argument("--masks", type=int, default=1000, help="of an image")
    parser.add_argument("--save-masks", action="store_true")
    parser.add_argument("--check-images", type=int, default=400, help="of the runs that are killed and divided")
    parser.add_argument("--saved-images", type=int, default=2000, help="of the run of --write that keeps every mask")
    parser.add_argument("--processes", type=int, default=2, help="of the run that is divided")
    parser.add_argument("--gpus", type=int, default=GPUS, help="of the cluster whose hours are printed")
    parser.add_argument("--write", action="store_true", help="write results/lvis_scale.csv, and its texts of the docs")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--kill-after", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part:
        run_part(args)
        return
    if min(args.images, args.check_images) < 2 or args.processes < 2:
        raise SystemExit("--images, --check-images and --processes must be at least 2.")
    if args.write and (args.save_masks or args.images != LVIS_IMAGES or args.masks != 1000):
        raise SystemExit("--write wants all images with 1,000 masks each, without --save-masks, as the docs say.")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        print(
            f"{args.images} images, {args.masks} masks and {OBJECTS} objects on each; all of LVIS takes four minutes",
            flush=True,
        )
        start_part(root / "whole", args, args.images, processes=1)
        figures = print_account(root / "whole", args.images)
        check_others(root, args)
        print_hours(figures["ms"], args.gpus)
        if args.write:
            write_figures(root, figures, args)


if __name__ == "__main__":
    main()
