"""The chain of docs/train.md on 200 photographs, from the weights that ship: a teacher, its student, a detector.

    python benchmarks/photos.py --bsds FOLDER         # about 17 minutes of one CPU core; a stopped run resumes
    python benchmarks/photos.py --write-only          # the table again, from benchmarks/results/photos.csv

Trains on 180 of BSDS500's training images (20 are kept for validation), evaluates before and after on its 100
validation images, writes benchmarks/results/photos.csv and the table of docs/train.md. What ships is evaluated in the
folders of accuracy.py, whichever program comes first.

FOLDER is that of accuracy.py, with the training images and their regions in sa_000000.tar, in SA-1B's layout.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accuracy import PROMPTS, QUIET, REACHED, SAMPLERS, measure_each, photographs
from accuracy_texts import TRAIN
from figures import Figures, prompt_change, read_evaluations, recall_change, write_evaluations
from result_pages import RESULTS, write_pages

from mobilesamv2.model_zoo import find_weights
from mobilesamv2.recipes.run import train
from mobilesamv2.reports.table import as_markdown

PHOTOS = RESULTS / "photos.csv"
PAGES = (TRAIN,)
HELD_OUT = 20
ROWS = {
    "photos": ("the weights that ship", "photos_reached_mini_detector"),
    "trained": ("trained on photographs, SAM and detector", "trained_reached"),
    "student": ("student of this SAM, with this detector", "trained_reached"),
}
"""What evaluations are of, the first as ``accuracy.py`` names them; and which one is of the detector."""

DIFFERENCES = {
    "training": ("trained minus what ships [95%]", "photos", "trained"),
    "distillation": ("student minus its teacher [95%]", "trained", "student"),
}
PROMPTED = {"box": "boxes", "centre": "centres", "points_3": "three points"}


def main() -> None:
    """Train, evaluate, and write the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bsds", type=Path, metavar="FOLDER", help="folder of sa_000000.tar, val_lvis.json and val/")
    what.add_argument("--write-only", action="store_true", help="write the table from the results that there are")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/accuracy"), help="folder of all runs")
    parser.add_argument("--limit", type=int, default=200, help="photographs, with those for validation")
    parser.add_argument("--epochs", type=int, default=6, help="of each of the three")
    args = parser.parse_args()
    if args.bsds:
        write_evaluations(PHOTOS, measure(args.bsds, trained(args.bsds, args), args.output))
    write_pages(PAGES, stated())


def trained(bsds: Path, args: argparse.Namespace) -> dict[str, list[str]]:
    """Train the three, and return the overrides that choose each."""
    output: Path = args.output
    given = ["dataset=sa1b", f"dataset.tars={bsds / 'sa_000000.tar'}", f"dataset.limit={args.limit}"]
    given += [f"dataset.index_folder={output / 'index'}", f"validation_images={HELD_OUT}", *QUIET]
    given += ["task.warmup_images=180", f"trainer.max_epochs={args.epochs}"]
    teacher = train(
        "experiment=pretrain_mini",
        *given,
        f"model.checkpoint={find_weights('mini_conv.safetensors')}",
        "optimizer.lr=1e-3",
        "ema=0.95",
        f"output_dir={output / 'photos_teacher'}",
    )
    teacher_file = teacher / "mini_conv.safetensors"
    student = train(
        "experiment=distill_slim_synthetic",
        *given,
        f"teacher.checkpoint={teacher_file}",
        f"output_dir={output / 'photos_student'}",
    )
    detector = train(
        "experiment=detect_yolov8n_synthetic",
        *given,
        f"detector.checkpoint={find_weights('mini_detector.pt')}",
        "ema=0.95",
        f"output_dir={output / 'photos_detector'}",
    )
    name = "mini_conv_slim"
    return {
        "trained": ["model=mini_conv", f"model.checkpoint={teacher_file}"],
        "student": ["model=by_name", f"model.name={name}", f"model.checkpoint={student / name}.safetensors"],
        "detector": [f"detector.checkpoint={detector / 'detector.pt'}"],
    }


def measure(bsds: Path, models: dict[str, list[str]], output: Path) -> Figures:
    """Evaluate what ships and what was trained; return the figures, with paired differences."""
    photos, reached, given = photographs(bsds), [*REACHED, "detector=mini_detector", "model=mini_conv"], {}
    for key in ROWS:
        sam = ["model=mini_conv"] if key == "photos" else models[key]
        detector = [] if key == "photos" else models["detector"]
        given[f"{key}_prompts"] = [*PROMPTS, *photos, *sam]
        given[f"{key}_sampled_boxes"] = [*SAMPLERS["photos_sampled_boxes"], *photos, *sam, *detector]
        given[f"{key}_sampled_grid"] = [*SAMPLERS["photos_sampled_grid"], *photos, *sam]
    given["photos_reached_mini_detector"] = [*reached, *photos]
    given["trained_reached"] = [*reached, *photos, *models["detector"]]
    figures = measure_each(given, output)
    for key, (_, first, second) in DIFFERENCES.items():
        figures[f"{key}_prompts"] = prompt_change(output / f"{first}_prompts", output / f"{second}_prompts")
        for by in ("boxes", "grid"):
            pair = [output / f"{name}_sampled_{by}" for name in (first, second)]
            figures[f"{key}_sampled_{by}"] = recall_change(*pair)
    return figures


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return {"photos": table(read_evaluations(PHOTOS))}


def table(figures: Figures) -> str:
    """Return the table of docs/train.md."""
    rows = [["", *(f"prompt mIoU, {name}" for name in PROMPTED.values()), "regions that 100 boxes reach",
             "mean AR, boxes", "mean AR, grid of 16 x 16"]]  # fmt: skip
    for key, (name, reached) in ROWS.items():
        cells = [figures[f"{key}_prompts"][f"mIoU {kind}"].percent() for kind in PROMPTED]
        cells.append(figures[reached]["recall_50"].percent())
        rows.append([name, *cells, *(figures[f"{key}_sampled_{by}"]["mAR"].interval() for by in ("boxes", "grid"))])
    for key, (name, _, _) in DIFFERENCES.items():
        prompts = [figures[f"{key}_prompts"][f"mIoU {kind}"].change() for kind in PROMPTED]
        rows.append([name, *prompts, "", *(figures[f"{key}_sampled_{by}"]["mAR"].change() for by in ("boxes", "grid"))])
    return as_markdown(rows)


if __name__ == "__main__":
    main()
