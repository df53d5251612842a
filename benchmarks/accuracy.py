"""Accuracy of the weights that ship, on drawn scenes and on photographs, as the documentation states it.

    python benchmarks/accuracy.py --bsds FOLDER       # about 7 minutes of one CPU core; a stopped run resumes
    python benchmarks/accuracy.py --write-only        # the texts again, from benchmarks/results/accuracy.csv

Prompts mini_conv for every object, counts the objects that mini_detector's and the prompt head's boxes reach, segments
everything with these boxes and with a grid, on 100 scenes of the test split and on BSDS500's 100 validation images; and
on the first 12 of these shows how much the choices of a protocol move a figure. Writes
benchmarks/results/accuracy.csv and the texts of docs/train.md, docs/evaluate.md and mobilesamv2/weights/README.md.

FOLDER has the images in val/, and in val_lvis.json the regions of one annotator of each, in LVIS's layout.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from accuracy_texts import ACCURACY, CHOICE_IMAGES, HEADS, PAGES, SCENE_SEED, SCENES, stated
from figures import Figure, figures_of, recall_change, write_evaluations
from result_pages import write_pages
from tqdm import tqdm

from mobilesamv2.recipes.run import evaluate

QUIET = ["num_workers=0", "+trainer.enable_progress_bar=false"]
DRAWN = ["dataset=synthetic", "dataset.split=test", f"dataset.seed={SCENE_SEED}"]
PROMPTS = ["task=evaluate_prompts", "task.kinds=[box,centre,points_3]"]
REACHED = ["task=evaluate_detector", "task.ks=[100]", "task.confidence=0.0001", "task.nms_iou=0.75"]
MASKS = [
    "prompt_sampler=object_aware",
    "prompt_sampler.max_prompts=100",
    "prompt_sampler.confidence=0.0001",
    "prompt_sampler.detector_nms_iou=0.75",
    "prompt_sampler.snap=0",
    "task.metric.ks=[10,50,100]",
]
SAMPLERS = {
    "photos_sampled_boxes": [
        "prompt_sampler=object_aware",
        "detector=mini_detector",
        "prompt_sampler.confidence=0.004",
        "prompt_sampler.detector_nms_iou=0.75",
        "prompt_sampler.snap=0",
    ],
    "photos_sampled_grid": ["prompt_sampler=grid_proposals", "prompt_sampler.points_per_side=16"],
}
THREE = "task.kinds=[box,centre,points_1]"
LARGE = "task.min_area=1024"
CLICKS = ["task=evaluate_clicks", "task.max_clicks=5", LARGE]
CHOICES = {
    "single": ["task=evaluate_prompts", THREE, "task.mask_choice=single", "task.boundary_dilation_ratio=0.02"],
    "predicted_iou": ["task=evaluate_prompts", THREE, "task.mask_choice=predicted_iou"],
    "oracle": ["task=evaluate_prompts", THREE, "task.mask_choice=oracle"],
    "box_overlap": ["task=evaluate_prompts", "task.kinds=[box]", "task.mask_choice=box_overlap"],
    "large": ["task=evaluate_prompts", "task.kinds=[box]", "task.mask_choice=single", LARGE],
    "boundary": ["task=evaluate_prompts", "task.kinds=[box]", "task.mask_choice=single",
                 "task.boundary_dilation_ratio=0.01"],
    "clicks": [*CLICKS, "task.mask_input=false"],
    "clicks_predicted_iou": [*CLICKS, "task.mask_input=false", "task.mask_choice=predicted_iou"],
    "clicks_random": [*CLICKS, "task.mask_input=false", "task.next_click=random"],
    "clicks_fed_back": [*CLICKS, "task.mask_input=true"],
}  # fmt: skip
"""Evaluations that differ in the choices of a protocol."""


def main() -> None:
    """Evaluate, and write the results and the texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bsds", type=Path, metavar="FOLDER", help="folder of val_lvis.json and val/")
    what.add_argument("--write-only", action="store_true", help="write the texts from the results that there are")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/accuracy"), help="folder of all evaluations")
    args = parser.parse_args()
    if args.bsds:
        write_evaluations(ACCURACY, measure(evaluations(args.bsds), args.output))
    write_pages(PAGES, stated())


def evaluations(bsds: Path) -> dict[str, list[str]]:
    """Return the overrides of each evaluation."""
    photos = photographs(bsds)
    found: dict[str, list[str]] = {}
    for images, data in {"scenes": [*DRAWN, f"dataset.limit={SCENES}"], "photos": photos}.items():
        found[f"{images}_prompts"] = [*PROMPTS, *data]
        for detector in HEADS:
            found[f"{images}_reached_{detector}"] = [*REACHED, f"detector={detector}", *data]
            found[f"{images}_masks_{detector}"] = [*MASKS, f"detector={detector}", *data]
    found |= {name: [*given, *photos] for name, given in SAMPLERS.items()}
    limit = f"dataset.limit={CHOICE_IMAGES}"
    return found | {f"choice_{name}": [*given, *photos, limit] for name, given in CHOICES.items()}


def photographs(bsds: Path) -> list[str]:
    """Return the overrides that choose the photographs."""
    return ["dataset=lvis", f"dataset.annotations={bsds / 'val_lvis.json'}", f"dataset.images={bsds / 'val'}"]


def measure(given: Mapping[str, Sequence[str]], output: Path) -> dict[str, dict[str, Figure]]:
    """Run the evaluations; return the figures, with the head's minus the detector's, paired by image."""
    figures = measure_each({name: ["model=mini_conv", *overrides] for name, overrides in given.items()}, output)
    for images in ("scenes", "photos"):
        pair = [output / f"{images}_masks_{detector}" for detector in HEADS]
        figures[f"{images}_masks_change"] = recall_change(*pair)
    return figures


def measure_each(given: Mapping[str, Sequence[str]], output: Path) -> dict[str, dict[str, Figure]]:
    """Run the evaluations, each in a folder of its name, where one that is done returns at once; return the figures."""
    figures = {}
    with tqdm(given.items(), unit="evaluation") as bar:
        for name, overrides in bar:
            bar.set_postfix_str(name)
            with contextlib.redirect_stdout(io.StringIO()):
                folder = evaluate(*overrides, *QUIET, f"output_dir={output / name}")
            figures[name] = figures_of(folder)
    return figures


if __name__ == "__main__":
    main()
