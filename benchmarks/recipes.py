"""The six ways of EdgeSAM, EfficientViT-SAM, TinySAM and EfficientSAM3 to train a student, side by side in miniature.

    python benchmarks/recipes.py                   # about 5 minutes of one CPU core; the table of docs/train.md
    python benchmarks/recipes.py --start 400 --steps 200 --scenes 100 -o outputs/longer

A student (``micro_conv``, from random weights) is first distilled from ``mini_conv`` by its embeddings, which is what
the second phases go on from. From there each way has the same number of steps of the same drawn scenes, and learns from
the same objects (``experiment=ablation_recipes``). Then each student is prompted for every object of other scenes, of
shape families and textures that training does not draw: the IoU with the teacher's masks and with the objects, with 95%
intervals over scenes, and the difference from the start, paired by scene. The CPU time is of training alone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from mobilesamv2.metrics.bootstrap import percentiles, resampled_sums
from mobilesamv2.metrics.prompt_iou import mean_ious
from mobilesamv2.recipes.run import evaluate, train

WAYS = {
    "distill": "EfficientViT-SAM, stage 1: squared error of the embedding",
    "edgesam_encoder": "EdgeSAM, phase 1: without the padding",
    "efficientsam3_encoder": "EfficientSAM3: and cosine distance",
    "edgesam_prompts": "EdgeSAM, phase 2: prompts in the loop",
    "tinysam": "TinySAM: full stage, hard prompts and masks",
    "efficientvit_sam_end_to_end": "EfficientViT-SAM, stage 2: annotated masks, end to end",
}
"""Tasks of conf/task, the values of ``experiment=ablation_recipes``, in the order of the table."""

KINDS = ["box", "points_1", "points_3"]
BATCH = 4
SIZE = "[192,256]"


def main() -> None:
    """Train, evaluate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=int, default=40, help="steps of the student that all ways start from")
    parser.add_argument("--steps", type=int, default=16, help="steps of each way")
    parser.add_argument("--scenes", type=int, default=20, help="scenes of the evaluation")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of each way, one for all")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/recipes"), help="a stopped run resumes here")
    args = parser.parse_args()
    shared = ["num_workers=0", "validation_images=4", "+trainer.enable_progress_bar=false", f"dataset.size={SIZE}"]
    folder = train(
        "experiment=distill_micro_conv_synthetic",
        *shared,
        f"batch_size={BATCH}",
        f"dataset.limit={BATCH * args.start + 4}",
        "dataset.seed=1",
        "task.warmup_images=32",
        "trainer.max_epochs=1",
        f"output_dir={args.output}/start",
    )
    students, seconds = {"the start": folder / "micro_conv.safetensors"}, {}
    for way, name in WAYS.items():
        began = time.process_time()
        folder = train(
            "experiment=ablation_recipes",
            "hydra.mode=RUN",
            f"task={way}",
            *shared,
            f"model.checkpoint={students['the start']}",
            f"dataset.limit={BATCH * args.steps + 4}",
            f"optimizer.lr={args.lr}",
            f"output_dir={args.output}/{way}",
        )
        students[name], seconds[name] = folder / "micro_conv.safetensors", time.process_time() - began
    counts = {
        name: [prompted(args, path, against) for against in ("teacher", "objects")] for name, path in students.items()
    }
    print_table(counts, seconds)


def prompted(args: argparse.Namespace, student: Path, against: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of IoUs (scenes, kinds, groups) and the numbers of objects (scenes, groups) of a student."""
    folder = evaluate(
        "task=evaluate_prompts",
        f"task.kinds=[{','.join(KINDS)}]",
        "dataset=synthetic",
        f"dataset.size={SIZE}",
        "dataset.split=test",
        f"dataset.limit={args.scenes}",
        "dataset.seed=2",
        "model=micro_conv",
        f"model.checkpoint={student}",
        *(["model@teacher=mini_conv"] if against == "teacher" else []),
        "num_workers=0",
        "+trainer.enable_progress_bar=false",
        f"output_dir={student.parent}/{against}",
    )
    kept = np.load(folder / "per_image.npz")
    return kept["iou_sums"], kept["n_gt"]


def print_table(counts: dict[str, list[tuple[np.ndarray, np.ndarray]]], seconds: dict[str, float]) -> None:
    """Print mean IoUs in percent and their differences from the start, with paired intervals, as Markdown."""
    head = [f"{kind.replace('_', ' ')}, {of}" for of in ("teacher's masks", "objects") for kind in KINDS]
    print(f"\n| way | CPU s | {' | '.join(head)} |\n|---|---|{'---|' * len(head)}")
    for name, pair in counts.items():
        starts = [start for start, _ in counts["the start"]]
        cells = [cell for (sums, n_gt), start in zip(pair, starts, strict=True) for cell in cells_of(sums, n_gt, start)]
        spent = f"{seconds[name]:.0f}" if name in seconds else "-"
        print(f"| {name} | {spent} | {' | '.join(cells)} |")
    n_gt = counts["the start"][0][1]
    print(f"\n{len(n_gt)} scenes, {n_gt[:, 0].sum()} objects; mIoU in percent, and its change [95%], paired by scene.")


def cells_of(sums: np.ndarray, n_gt: np.ndarray, start: np.ndarray) -> list[str]:
    """Return the cells of a row: the mean IoU of each kind, and its change from the start with its interval."""
    is_start = np.array_equal(sums, start)
    values, changes = (mean_ious(each.sum(0), n_gt.sum(0), KINDS) for each in (sums, sums - start))
    draws = resampled_sums(sums if is_start else sums - start, n_gt, seed=0, resamples=2000)
    intervals = percentiles(mean_ious(*draw, KINDS) for draw in draws)
    cells = []
    for kind in KINDS:
        value, change, interval = (each[f"mIoU {kind}"] for each in (values, changes, intervals))
        assert value is not None
        assert change is not None
        assert interval is not None
        low, high = (100 * end for end in interval)
        shown = f"[{low:.1f}, {high:.1f}]" if is_start else f"{100 * change:+.1f} [{low:+.1f}, {high:+.1f}]"
        cells.append(f"{100 * value:.1f} {shown}")
    return cells


if __name__ == "__main__":
    main()
