"""SegEvery's time and memory: this project, and MobileSAM's and MobileSAMv2's own code, in one run.

    OMP_NUM_THREADS=2 python benchmarks/segevery.py             # wants the test dependencies
    python benchmarks/segevery.py --image photo.jpg --device cuda
    # the documentation's figures
    OMP_NUM_THREADS=2 python benchmarks/segevery.py --image notebooks/photos/coffee.jpg --long-side 2250 --write

Same weights, photo, threads and allocator. The weights are random, and calibrated to the photo so that SAM's filters
keep the masks of 10 to 50% of a grid's prompts. Each measurement is a process of its own, since peak memory is a
process's and the official packages don't bear company; each warms up on one prompt. SAM's grid is timed on 64 of its
points, and what is beyond the image encoder is scaled up; its memory does not grow with more points.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from segevery_texts import Measured, write_measured
from torch import Tensor

OFFICIAL = Path(__file__).with_name("segevery_official.py")
MIB = 2**20
STAGES = ("encoder", "decoder", "rest")
TUNED = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
MIB_PER_BOX = 60
"""What MobileSAMv2's demo takes for each box on a photo of 1500 x 2250; 18 GB for 320."""


def random_boxes(number: int, size: tuple[int, int]) -> Tensor:
    """(N, 4) xyxy, pixels, with sides from a fiftieth to a half of the image's."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([size[1], size[0]])
    sides = 0.02 * 25 ** torch.rand(number, 2, generator=generator)
    corner = torch.rand(number, 2, generator=generator) * (1 - sides)
    return torch.cat([corner * scale, (corner + sides) * scale], dim=1)


def grid_points(points_per_side: int, number: int) -> Tensor:
    """Return (number, 2) xy as shares of width and height: points of a grid, drawn at random if not all."""
    steps = (torch.arange(points_per_side) + 0.5) / points_per_side
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    every = torch.stack([x, y], dim=-1).reshape(-1, 2)
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:number].sort().values]


@torch.no_grad()
def write_weights(image: np.ndarray, path: Path) -> None:
    """Random weights of MobileSAM, such that the masks of three in ten of a grid's prompts pass SAM's filters."""
    from mobilesamv2 import build_sam
    from mobilesamv2.checkpoints import save_mobile_sam

    torch.manual_seed(0)
    sam = build_sam("mobile_sam")
    heads = sam.mask_decoder.output_hypernetworks_mlps
    last = sam.mask_decoder.iou_prediction_head.layers[-1]
    last.weight.mul_(4)
    # boxes ask for a mask that no point of a grid does: let it be the same as the first of these
    sam.mask_decoder.mask_tokens.weight[0] = sam.mask_decoder.mask_tokens.weight[1]
    for name, parameter in sam.mask_decoder.transformer.named_parameters():
        if "attn" in name and parameter.ndim == 2:
            parameter.mul_(6)  # or all prompts would have one mask
    for name, parameter in sam.named_parameters():
        if parameter.ndim == 4 and ("output_upscaling" in name or name.startswith("image_encoder.neck")):
            parameter.copy_(parameter.mean((2, 3), keepdim=True))  # or masks would be chequered
    predicted_iou, stability = steady_masks(sam, image)
    best = torch.where(stability >= 0.95, predicted_iou, -9.0).amax(1)  # of each prompt
    last.bias[1:] += 0.88 - best.quantile(0.7)
    heads[0].load_state_dict(heads[1].state_dict())
    save_mobile_sam(sam, path)


def steady_masks(sam: Any, image: np.ndarray) -> tuple[Tensor, Tensor]:
    """Scale a model's logits until half of an image's masks are stable; return predicted IoU and stability (64, 3)."""
    from mobilesamv2 import SegAny
    from mobilesamv2.rle_encoder import RleEncoder
    from mobilesamv2.structures import Prompts

    heads = sam.mask_decoder.output_hypernetworks_mlps
    segany = SegAny(sam)
    segany.set_image(image)
    encode = RleEncoder.for_frame(segany.frame, sam.device)
    points = (grid_points(8, 64) * torch.tensor([image.shape[1], image.shape[0]]))[:, None]
    prompts = Prompts(points=points, labels=torch.ones(64, 1, dtype=torch.int64))
    for step in range(5):  # the stability of a slot does not quite go with the scale of its logits
        logits, predicted_iou = segany.predict_low_res(prompts, multimask_output=True)
        stability = encode(logits.flatten(0, 1))[1].reshape(64, 3)
        for head, quantile in zip(heads[1:], stability.quantile(0.5, dim=0).tolist(), strict=True):
            for parameter in head.layers[-1].parameters() if step < 4 else ():
                parameter.mul_(max(1 - quantile, 0.01) / 0.05)
    return predicted_iou, stability


class GivenBoxes:
    """Stands in for a detector."""

    def __init__(self, boxes_xyxy: Tensor) -> None:
        self.boxes_xyxy = boxes_xyxy

    def detect(
        self, image: np.ndarray, *, confidence: float, nms_iou: float, max_boxes: int, snap: int
    ) -> tuple[Tensor, Tensor]:
        """Return the boxes that were given; the settings are those of a detector."""
        return self.boxes_xyxy, torch.linspace(1, 0.5, len(self.boxes_xyxy))


def our_worker(job: dict[str, Any]) -> dict[str, Any]:
    """SegEvery with points or boxes."""
    from segevery_official import memory, now

    from mobilesamv2 import SegEvery, build_sam
    from mobilesamv2.prompts import Grid, ObjectAware
    from mobilesamv2.structures import Prompts

    class GivenPoints(Grid):
        def rounds(self, image: np.ndarray, embedding: Any) -> Iterator[Prompts]:  # pyright: ignore[reportIncompatibleMethodOverride]
            points = torch.tensor(job["points"]) * torch.tensor([image.shape[1], image.shape[0]])
            yield Prompts(points=points[:, None], labels=torch.ones(len(points), 1, dtype=torch.int64))

    image = np.asarray(Image.open(job["image"]).convert("RGB"))
    device = torch.device(job["device"])
    sam = build_sam("mobile_sam", job["weights"]).to(device).for_inference()
    loaded = memory(device, peak=False)
    SegEvery(sam, Grid(points_per_side=1))(image)
    if job["work"] == "grid":
        sampler = GivenPoints(box_nms_thresh=job["nms_iou"])
    else:
        sampler = ObjectAware(GivenBoxes(torch.tensor(job["boxes_xyxy"])))
    segevery = SegEvery(sam, sampler)
    start = now(device)
    masks = segevery(image)
    seconds = now(device) - start
    encoder, decoder = (segevery.timer.ms[stage] / 1000 for stage in ("image_encoder", "mask_decoder"))
    result = {"encoder": encoder, "decoder": decoder, "rest": seconds - encoder - decoder}
    result |= {"peak": memory(device, peak=True), "loaded": loaded}
    return result | {"masks": masks.rles, "prompt_index": masks.prompt_index.tolist()}


class Bench:
    """Runs measurements on one photo."""

    def __init__(self, folder: Path, image: np.ndarray, device: str) -> None:
        self.folder = folder
        self.device = device
        self.size = image.shape[0], image.shape[1]
        self.measured: list[Measured] = []  # with the default malloc
        Image.fromarray(image).save(folder / "photo.png")
        write_weights(image, folder / "weights.pt")

    def keep(
        self,
        code: str,
        prompts: str,
        result: dict[str, Any],
        timed_prompts: int = 0,
        iou: float | None = None,
        passing: float | None = None,
    ) -> None:
        """Keep a measurement for the file of results; see ``Measured``."""
        stages = [round(value, 2) for value in (*(result[name] for name in STAGES), total(result))]
        mib, threads = round(working(result) / MIB), torch.get_num_threads()
        self.measured.append(Measured(code, prompts, timed_prompts, *stages, mib, iou, passing, *self.size, threads))

    def measure(
        self,
        side: str,
        work: str,
        prompts: Tensor,
        *,
        tuned: bool = False,
        nms_iou: float = 0.7,
        fast: bool = False,
        compiled: bool = False,
    ) -> dict[str, Any]:
        """One side's seconds by stage, peak memory and masks, from a process of its own.

        ``fast`` runs the official code in bfloat16 with larger batches of points, ``compiled`` compiles its encoder.
        """
        name = f"{side}, {work}, {len(prompts)} prompts{', tuned malloc' if tuned else ''}"
        print(f"\r\033[K{name} ...", end="", file=sys.stderr, flush=True)
        job = {"image": str(self.folder / "photo.png"), "weights": str(self.folder / "weights.pt")}
        job |= {
            "nms_iou": nms_iou,
            "fast": fast,
            "compiled": compiled,
            "work": work,
            "device": self.device,
            "points" if work == "grid" else "boxes_xyxy": prompts.tolist(),
        }
        job_file, out_file = self.folder / "job.json", self.folder / "out.json"
        job_file.write_text(json.dumps(job))
        program = [str(OFFICIAL)] if side == "official" else [__file__, "--worker"]
        command = [sys.executable, "-W", "ignore", *program, str(job_file), str(out_file)]
        done = subprocess.run(
            command, env=os.environ | (TUNED if tuned else {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        print("\r\033[K", end="", file=sys.stderr, flush=True)
        if done.returncode:
            raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stdout.decode()}")
        return json.loads(out_file.read_text())


def scaled(result: dict[str, Any], factor: float) -> dict[str, Any]:
    """Return the same with ``factor`` times as many prompts."""
    return result | {"decoder": result["decoder"] * factor, "rest": result["rest"] * factor}


def total(result: dict[str, Any]) -> float:
    """Seconds from photo to masks."""
    return result["encoder"] + result["decoder"] + result["rest"]


def show(name: str, result: dict[str, Any], note: str = "") -> None:
    """Return a row of the table."""
    stages = "".join(f"{result[stage]:9.2f}" for stage in ("encoder", "decoder", "rest"))
    memory = f"{result['peak'] / MIB:11.0f}{working(result) / MIB:11.0f}"
    print(f"{name:34s}{total(result):9.2f}{stages}{memory}  {note}", flush=True)


def working(result: dict[str, Any]) -> int:
    """Bytes at most, beyond those of the loaded model and its libraries."""
    return max(1, result["peak"] - result["loaded"])


def ratios(official: dict[str, Any], ours: dict[str, Any], times: float) -> str:
    """Print what was gained, beside the aim."""
    speed, memory = total(official) / total(ours), working(official) / working(ours)
    peak = official["peak"] / ours["peak"]
    return (
        f"{speed:.1f} times as fast (wanted {times:g}), 1/{memory:.1f} of the memory beyond the model's (wanted 1/5), "
        f"1/{peak:.1f} of the process's"
    )


def agreement(ours: dict[str, Any], official: dict[str, Any]) -> tuple[float, str]:
    """Mean IoU of the masks of the same prompts, for each official mask the best of ours; and a line about it."""
    from mobilesamv2.masks import iou

    by_prompt: dict[int, list[Any]] = {}
    for i, rle in zip(ours["prompt_index"], ours["masks"], strict=True):
        by_prompt.setdefault(i, []).append(rle)
    filled = [(i, rle) for i, rle in zip(official["prompt_index"], official["masks"], strict=True) if covers(rle)]
    best = np.array([iou([rle], by_prompt.get(i, [])).max(initial=0) for i, rle in filled])
    numbers = f"{len(ours['masks'])} masks and {len(filled)}"
    if not len(best):
        raise SystemExit(f"{numbers}: there is nothing to compare.")
    return round(float(best.mean()), 6), f"{numbers}, IoU mean {best.mean():.6f}, least {best.min():.4f}"


def covers(rle: Any) -> bool:
    """Whether a mask has a pixel; ours drops those that have none."""
    from mobilesamv2.masks import areas

    return bool(areas([rle])[0] > 0)


def compare(bench: Bench, args: argparse.Namespace, tuned: bool) -> None:
    """Both sides with a grid and with boxes, under one setting of malloc."""
    side, number = args.points_per_side, args.points_per_side**2
    chosen = grid_points(side, min(args.official_points, number))
    boxes = random_boxes(args.boxes, bench.size)
    affordable = boxes[: fitting_boxes(args)]
    heading = "".join(f"{name:>9s}" for name in ("s", "encoder", "decoder", "rest"))
    print(f"\n{'tuned malloc' if tuned else 'default malloc':34s}{heading}{'peak MiB':>11s}{'beyond':>11s}")

    official_grid = bench.measure("official", "grid", chosen, tuned=tuned)
    official_grid = scaled(official_grid, number / len(chosen))
    note = "" if len(chosen) == number else f"scaled from {len(chosen)} points"
    show(f"MobileSAM, grid of {side} x {side}", official_grid, note)
    our_grid = bench.measure("ours", "grid", grid_points(side, number), tuned=tuned)
    show(f"ours, grid of {side} x {side}", our_grid)
    print(f"    {ratios(official_grid, our_grid, 8)}")
    grid_iou, passing = compare_masks(bench, chosen[:: max(1, len(chosen) // 32)])

    official_boxes = bench.measure("official", "boxes", affordable, tuned=tuned)
    note = "" if len(affordable) == len(boxes) else f"scaled from {len(affordable)} boxes, memory is not"
    official_boxes = scaled(official_boxes, len(boxes) / len(affordable))
    show(f"MobileSAMv2, {len(boxes)} boxes", official_boxes, note)
    our_boxes = bench.measure("ours", "boxes", boxes, tuned=tuned)
    show(f"ours, {len(boxes)} boxes", our_boxes)
    print(f"    {ratios(official_boxes, our_boxes, 4)}")
    boxes_iou, line = agreement(our_boxes, official_boxes)
    print(f"    the same boxes: {line}")
    fewer, faster = (official_grid["decoder"] / d["decoder"] for d in (official_boxes, our_boxes))
    print(
        f"    mask decoder, MobileSAM's grid to our boxes: {faster:.1f} times less (wanted 16), "
        f"{fewer:.1f} by fewer prompts and {faster / fewer:.1f} by faster code"
    )
    few, dense = rivals(bench, args, our_boxes, tuned)
    if tuned:
        return
    bench.keep("MobileSAM", f"{side} x {side}", official_grid, len(chosen) if len(chosen) < number else 0)
    bench.keep("ours", f"{side} x {side}", our_grid, iou=grid_iou, passing=passing)
    bench.keep("MobileSAMv2", f"{len(boxes)} boxes", official_boxes, len(affordable) if note else 0)
    bench.keep("ours", f"{len(boxes)} boxes", our_boxes, iou=boxes_iou)
    bench.keep("ours", f"{args.detected_boxes} boxes", few)
    bench.keep("ours", "64 x 64", dense)


def compare_masks(bench: Bench, points: Tensor) -> tuple[float, float]:
    """Compare the masks of some points without NMS, which random weights leave little of.

    Returns their mean IoU, and the share of the points of which masks pass SAM's filters.
    """
    official, ours = (bench.measure(side, "grid", points, nms_iou=1.0) for side in ("official", "ours"))
    share = len(set(ours["prompt_index"])) / len(points)
    mean, line = agreement(ours, official)
    print(f"    {len(points)} points without NMS: {line}; {share:.0%} of them pass the filters")
    if not 0.1 <= share <= 0.5:
        raise SystemExit("The weights should let 10 to 50% of the prompts pass: these figures say little.")
    return mean, round(share, 4)


def rivals(
    bench: Bench, args: argparse.Namespace, our_boxes: dict[str, Any], tuned: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Object-aware boxes against grids, all by our own code; return those of few boxes and of the dense grid."""
    few = bench.measure("ours", "boxes", random_boxes(args.detected_boxes, bench.size), tuned=tuned)
    show(f"ours, {args.detected_boxes} boxes", few, "as many as a detector proposes")
    grid: dict[str, Any] = {}
    for side in (32, 64):
        grid = bench.measure("ours", "grid", grid_points(side, side * side), tuned=tuned)
        gains = f"{grid['decoder'] / our_boxes['decoder']:.1f} and {grid['decoder'] / few['decoder']:.1f}"
        show(f"ours, grid of {side} x {side}", grid, f"decoder: {gains} times theirs")
    return few, grid


def fitting_boxes(args: argparse.Namespace) -> int:
    """As many boxes as MobileSAMv2's demo has memory for."""
    if args.device != "cpu":
        free = torch.cuda.mem_get_info()[0]
    else:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return min(args.boxes, max(1, int(free / MIB / MIB_PER_BOX)))


def read_image(path: Path | None, long_side: int | None = None) -> np.ndarray:
    """Return an image, resized if asked, or a synthetic scene of 1500 x 2250 pixels."""
    if path is not None:
        image = Image.open(path).convert("RGB")
        scale = 1 if long_side is None else long_side / max(image.size)
        width, height = (round(side * scale) for side in image.size)
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    from mobilesamv2.data.synthetic.dataset import SyntheticDataset

    scene, _ = SyntheticDataset(1, seed=0)[0]
    return np.asarray(Image.fromarray(scene).resize((2250, 1500), Image.Resampling.BICUBIC))


def main() -> None:
    """Print seconds by stage, peak memory, the ratios and how far the masks agree."""
    parser = argparse.ArgumentParser(description="SegEvery here and in MobileSAM's and MobileSAMv2's code.")
    parser.add_argument("--image", type=Path, help="a photo (default: a drawn scene of 1500 x 2250)")
    parser.add_argument("--long-side", type=int, help="resize the photo to so many pixels (default: as it is)")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--official-points", type=int, default=64, help="MobileSAM's grid is timed on so many points")
    parser.add_argument("--boxes", type=int, default=320)
    parser.add_argument("--detected-boxes", type=int, default=100, help="as many as a detector really proposes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--write",
        action="store_true",
        help="write results/segevery.csv, and its texts of the docs; of the CPU, and with --image",
    )
    parser.add_argument("--default-malloc-only", action="store_true", help="leave the runs with tuned malloc out")
    args = parser.parse_args()
    if args.write and (args.device != "cpu" or args.image is None):
        parser.error("--write wants --device cpu and --image: the documentation states a CPU's seconds on a photo.")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), read_image(args.image, args.long_side), args.device)
        height, width = bench.size
        threads = torch.get_num_threads()
        print(f"{height} x {width} pixels, {args.device}, {threads} threads, torch {torch.__version__}")
        for tuned in (False,) if args.default_malloc_only or args.device != "cpu" else (False, True):
            compare(bench, args, tuned)
        if args.write:
            write_measured(bench.measured)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        Path(sys.argv[3]).write_text(json.dumps(our_worker(json.loads(Path(sys.argv[2]).read_text()))))
    else:
        main()
