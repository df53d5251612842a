"""SegEvery's time and memory with SAM 2: this project, and the official SAM2AutomaticMaskGenerator, in one run.

    OMP_NUM_THREADS=1 python benchmarks/segevery_sam2.py --image photo.jpg    # with the test dependencies; 5 minutes
    OMP_NUM_THREADS=1 python benchmarks/segevery_sam2.py --image photo.jpg --points-per-side 16 --write   # for the docs
    python benchmarks/segevery_sam2.py --points-per-side 32 --device cuda

Same weights, photo, points, thresholds and threads. The weights are random, and calibrated to the photo so that SAM 2's
filters keep masks of 30 to 40% of the points. Each measurement is a process of its own, since peak memory is a
process's; each warms up on one point. On a CPU, seconds are processor time of all threads, which other programs hardly
change.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder import seconds_now
from PIL import Image
from result_pages import RESULTS, ROOT, digits, paragraph, read_csv, write_csv, write_pages
from segevery import agreement, grid_points, read_image, show, steady_masks, total, working
from segevery_official import Clock, memory, times
from typing_extensions import override

from mobilesamv2.reports.table import as_markdown

SEGEVERY_SAM2 = RESULTS / "segevery_sam2.csv"
PAGES = [ROOT / "docs" / "evaluate.md"]
SHORT_NAMES = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}


class StageClock(Clock):
    """Seconds of each call of a module, by ``seconds_now``."""

    @override
    def _add(self, sign: int) -> None:
        self.seconds += sign * seconds_now(self.device)


def official_sam2(model: str) -> Any:
    """Return the official model without weights."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from sam2.build_sam import build_sam2

    release, size = model.split("_hiera_")
    GlobalHydra.instance().clear()  # importing sam2 initialises Hydra for itself
    with initialize_config_module("sam2", version_base="1.2"):
        return build_sam2(f"configs/{release}/{release}_hiera_{SHORT_NAMES[size]}.yaml", ckpt_path=None, device="cpu")


@torch.no_grad()
def write_weights(model: str, image: np.ndarray, path: Path) -> None:
    """Random weights in the official format, such that masks of a third of a grid's points pass SAM 2's filters."""
    from mobilesamv2 import build_sam
    from mobilesamv2.checkpoints import save_sam2

    torch.manual_seed(0)
    torch.save({"model": official_sam2(model).state_dict()}, path)
    sam = build_sam(model, path)
    last = sam.mask_decoder.iou_prediction_head.layers[-1]
    last.weight.mul_(40)
    for name, parameter in sam.mask_decoder.transformer.named_parameters():
        if "attn" in name and parameter.ndim == 2:
            parameter.mul_(6)  # or all prompts would have one mask
    for name, parameter in sam.mask_decoder.named_parameters():
        if parameter.ndim == 4 and "output_upscaling" in name:
            parameter.copy_(parameter.mean((2, 3), keepdim=True))  # or masks would be chequered
    predicted_iou, stability = steady_masks(sam, image)
    best = torch.where(stability >= 0.95, predicted_iou.logit(), -9.0).amax(1)  # of each prompt
    last.bias[1:] += 1.386 - best.quantile(0.65)  # sigmoid(1.386) is the threshold of .8
    save_sam2(sam, path, memory_from=path)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Segment everything by one of the two, and return seconds by stage, bytes and masks."""
    image, device = np.asarray(Image.open(job["image"]).convert("RGB")), torch.device(job["device"])
    points = grid_points(job["points_per_side"], job["points_per_side"] ** 2).numpy()
    return (official_worker if job["side"] == "official" else our_worker)(job, image, points, device)


def official_worker(job: dict[str, Any], image: np.ndarray, points: np.ndarray, device: torch.device) -> dict[str, Any]:
    """SAM 2's mask generator with its defaults."""
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

    sam = official_sam2(job["model"])
    sam.load_state_dict(torch.load(job["weights"], weights_only=True)["model"])
    sam.eval().to(device)
    loaded = memory(device, peak=False)

    def generator(grid: np.ndarray) -> Any:
        nms = job["nms_iou"]
        return SAM2AutomaticMaskGenerator(
            sam, points_per_side=None, point_grids=[grid], output_mode="coco_rle", box_nms_thresh=nms
        )

    generator(points[:1]).generate(image)  # warms up
    encoder, decoder = StageClock(sam.image_encoder, device), StageClock(sam.sam_mask_decoder, device)
    start = seconds_now(device)
    records = generator(points).generate(image)
    seconds = seconds_now(device) - start
    scale = np.array([image.shape[1], image.shape[0]])
    index = [int(np.abs(points * scale - np.array(record["point_coords"][0])).sum(1).argmin()) for record in records]
    masks = [record["segmentation"] for record in records]
    result = {"masks": masks, "prompt_index": index, "peak": memory(device, peak=True), "loaded": loaded}
    return result | times(seconds, encoder, decoder)


def our_worker(job: dict[str, Any], image: np.ndarray, points: np.ndarray, device: torch.device) -> dict[str, Any]:
    """SegEvery with the same grid."""
    from mobilesamv2 import SegEvery, build_sam
    from mobilesamv2.prompts import Grid

    sam = build_sam(job["model"], job["weights"]).to(device).for_inference()
    loaded = memory(device, peak=False)
    SegEvery(sam, Grid(points_per_side=1))(image)
    segevery = SegEvery(sam, Grid(points_per_side=job["points_per_side"], box_nms_thresh=job["nms_iou"]))
    start = seconds_now(device)
    masks = segevery(image)
    seconds = seconds_now(device) - start
    taken = segevery.timer.cpu_ms if device.type == "cpu" else segevery.timer.ms
    encoder, decoder = (taken[stage] / 1000 for stage in ("image_encoder", "mask_decoder"))
    result = {"encoder": encoder, "decoder": decoder, "rest": seconds - encoder - decoder}
    result |= {"peak": memory(device, peak=True), "loaded": loaded}
    return result | {"masks": masks.rles, "prompt_index": masks.prompt_index.tolist()}


def in_a_process(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Measure in a process of its own."""
    job_file, out_file = folder / "job.json", folder / "out.json"
    job_file.write_text(json.dumps(job))
    command = [sys.executable, "-W", "ignore", __file__, "--worker", str(job_file), str(out_file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{job['side']} ended with {done.returncode}:\n{done.stdout.decode()}")
    return json.loads(out_file.read_text())


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="a photo (default: a drawn scene of 1500 x 2250)")
    parser.add_argument("--model", default="sam2.1_hiera_tiny", help="sam2.1_hiera_* or sam2_hiera_*")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    write_help = "write results/segevery_sam2.csv, and its texts of the docs; of the CPU, and with --image"
    parser.add_argument("--write", action="store_true", help=write_help)
    args = parser.parse_args()
    if args.write and (args.device != "cpu" or args.image is None):
        parser.error("--write wants --device cpu and --image: the documentation states a CPU's seconds on a photo.")
    return args


def main() -> None:
    """Print seconds by stage, peak memory, the ratios and how far the masks agree."""
    args = parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, image = Path(name), read_image(args.image)
        Image.fromarray(image).save(folder / "photo.png")
        write_weights(args.model, image, folder / "weights.pt")
        job = {"image": str(folder / "photo.png"), "weights": str(folder / "weights.pt"), "model": args.model}
        job |= {"device": args.device, "points_per_side": args.points_per_side, "nms_iou": 0.7}
        threads = torch.get_num_threads()
        print(
            f"{image.shape[0]} x {image.shape[1]} pixels, {args.device}, {threads} threads, torch {torch.__version__}"
        )
        heading = "".join(f"{column:>9s}" for column in ("s", "encoder", "decoder", "rest"))
        print(f"{args.model:34s}{heading}{'peak MiB':>11s}{'beyond':>11s}", flush=True)
        grid = f"grid of {args.points_per_side} x {args.points_per_side}"
        measured = {}
        for side in ("official", "ours"):
            measured[side] = in_a_process(job | {"side": side}, folder)
            show(f"{side}, {grid}", measured[side])
        official, ours = measured["official"], measured["ours"]
        speed, beyond = total(official) / total(ours), working(official) / working(ours)
        peak = official["peak"] / ours["peak"]
        print(
            f"    {speed:.1f} times as fast, 1/{beyond:.1f} of the memory beyond the model's, "
            f"1/{peak:.1f} of the process's"
        )
        few = job | {"points_per_side": 6, "nms_iou": 1.0}
        official, ours = (in_a_process(few | {"side": side}, folder) for side in ("official", "ours"))
        share = len(set(ours["prompt_index"])) / 36
        same, line = agreement(ours, official)
        print(f"    36 points without NMS: {line}; {share:.0%} of them pass the filters")
        if args.write:
            about = [args.model, args.points_per_side, *image.shape[:2], threads, same]
            write_results([[side, *row(result), *about] for side, result in measured.items()])


COLUMNS = ["code", "encoder", "mask_decoder", "rest", "total", "peak_mib"]
COLUMNS += ["model", "points_per_side", "height", "width", "threads", "masks_iou"]


def row(result: dict[str, Any]) -> list[str]:
    """Return seconds by stage and of all, and MiB beyond the model's, as cells."""
    seconds = [result["encoder"], result["decoder"], result["rest"], total(result)]
    return [*(f"{each:.2f}" for each in seconds), f"{working(result) / 2**20:.0f}"]


def write_results(rows: list[list[Any]]) -> None:
    """Write the file of results, and the guide's text."""
    write_csv(SEGEVERY_SAM2, [COLUMNS, *rows])
    write_pages(PAGES, stated())


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return texts(read_csv(SEGEVERY_SAM2))


def texts(rows: list[dict[str, str]]) -> dict[str, str]:
    """Return the guide's text by its name, of the rows of the file of results."""
    official, ours = rows
    grid = f"grid of {ours['points_per_side']} x {ours['points_per_side']}"
    head = ["seconds of CPU time", "encoder", "mask decoder", "rest", "total", "peak MiB, beyond the model"]
    cells = [
        [f"{one['code']}, {grid}", *(digits(float(one[name]), 3) for name in COLUMNS[1:5]), one["peak_mib"]]
        for one in rows
    ]
    faster, memory = (float(official[name]) / float(ours[name]) for name in ("total", "peak_mib"))
    threads = "one thread" if ours["threads"] == "1" else f"{ours['threads']} threads"
    about = (
        f"`{ours['model']}` at 1024 pixels, one image of {ours['height']} x {ours['width']} pixels, {threads}, "
        "one run of each.",
        f"Ours takes 1/{faster:.1f} of the time and 1/{memory:.1f} of the memory; the masks are the same (mean "
        f"IoU {float(ours['masks_iou']):.4f}).",
    )
    return {"segevery_sam2": f"{as_markdown([head, *cells])}\n\n{paragraph(*about)}"}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        Path(sys.argv[3]).write_text(json.dumps(measure(json.loads(Path(sys.argv[2]).read_text()))))
    else:
        main()
