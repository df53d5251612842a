"""A small SAM 2 that learns on drawn scenes, from the SAM that ships, and what its finer levels are worth to students.

    python benchmarks/sam2_mini.py                 # about an hour of one CPU core; a stopped run resumes
    python benchmarks/sam2_mini.py --write-only    # the table of docs/train.md, from benchmarks/results

Trains by ``experiment=distill_sam2_mini_from_sam`` and ``pretrain_sam2_mini``, then distils the two students of
``ablation_levels_synthetic``, by the embedding and on from there by masks, decoder included. Prompts each model for
every object of 100 other scenes, of shape families and textures that training does not draw, and segments everything
by 100 boxes of mini_detector with the SAM and the SAM 2. Writes benchmarks/results/sam2_mini.csv, mIoU and mean AR in
percent with 95% intervals over scenes, of differences paired by scene, and the table of docs/train.md.
"""

from __future__ import annotations

import argparse
import csv
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
from result_pages import RESULTS, ROOT, write_csv, write_pages

from mobilesamv2.data.json_files import read_json
from mobilesamv2.evaluation.results import percent, percent_range
from mobilesamv2.metrics.bootstrap import RESAMPLES, percentiles, resampled_sums
from mobilesamv2.metrics.prompt_iou import mean_ious
from mobilesamv2.recipes.run import evaluate, train
from mobilesamv2.reports.stated import LINE_WIDTH
from mobilesamv2.reports.table import as_markdown

SAM2_MINI = RESULTS / "sam2_mini.csv"
PAGES = (ROOT / "docs" / "train.md",)

KINDS = {"box": "box", "centre": "centre", "points_3": "three points"}
SCENES = ["dataset=synthetic", "dataset.split=test", "dataset.seed=11", "dataset.limit=100"]
QUIET = ["num_workers=0", "+trainer.enable_progress_bar=false"]
NAME, STUDENT = "sam2_mini_conv", "sam2_micro_conv"
COUPLED = ["task=distill_coupled", "dataset.limit=544", "trainer.max_epochs=1", "optimizer.lr=5e-4"]
"""The students' second step: 60 steps of 8 scenes."""

ROWS = {
    "mini_conv": "`mini_conv`, which ships, the SAM",
    "coarse": "`distill_sam2_mini_from_sam`",
    "whole": "`pretrain_sam2_mini`",
    "micro_conv": "student with strides 16, 8 and 4, by the embedding",
    "micro_conv_stride16": "student with stride 16 alone, by the embedding",
    "micro_conv_coupled": "student with strides 16, 8 and 4, then by masks",
    "micro_conv_stride16_coupled": "student with stride 16 alone, then by masks",
}
"""Folders of the evaluations, and what they are of."""

EVERYTHING = ("mini_conv", "whole")
"""Models that segment everything too."""

DIFFERENCES = (
    ("`pretrain_sam2_mini` minus its start", "whole", "coarse"),
    ("`pretrain_sam2_mini` minus `mini_conv`", "whole", "mini_conv"),
    ("strides 16, 8 and 4 minus 16 alone, by the embedding", "micro_conv", "micro_conv_stride16"),
    ("the same, then by masks", "micro_conv_coupled", "micro_conv_stride16_coupled"),
)


class Prompted(NamedTuple):
    """IoUs of a model's masks.

    Attributes:
        sums: (scenes, kinds, groups).
        n_gt: (scenes, groups), numbers of objects.
    """

    sums: np.ndarray
    n_gt: np.ndarray


def main() -> None:
    """Train, evaluate, and write the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/sam2_mini"), help="folder of all runs")
    parser.add_argument("--write-only", action="store_true", help="write the table from the results that there are")
    args = parser.parse_args()
    if not args.write_only:
        models = trained(args.output)
        everything = {key: mean_ar(models[key], args.output / f"everything_of_{key}") for key in EVERYTHING}
        write_results({key: prompted(models[key], args.output / f"of_{key}") for key in ROWS}, everything)
    write_pages(PAGES, stated())


def trained(output: Path) -> dict[str, list[str]]:
    """Train what the rows are of, and return the overrides that choose each model."""
    coarse = train("experiment=distill_sam2_mini_from_sam", *QUIET, f"output_dir={output}/coarse")
    whole = train(
        "experiment=pretrain_sam2_mini",
        f"model.checkpoint={coarse / NAME}.safetensors",
        *QUIET,
        f"output_dir={output}/whole",
    )
    models = {"mini_conv": ["model=mini_conv"], "coarse": chosen(NAME, coarse), "whole": chosen(NAME, whole)}
    for encoder in ("micro_conv", "micro_conv_stride16"):
        given = ["experiment=ablation_levels_synthetic", "hydra.mode=RUN", f"encoder={encoder}", *QUIET]
        given += [f"teacher.checkpoint={whole / NAME}.safetensors", f"cache.folder={output}/embeddings"]
        first = train(*given, f"output_dir={output}/{encoder}")
        start = f"model.checkpoint={first / STUDENT}.safetensors"
        second = train(*given, *COUPLED, start, f"output_dir={output}/{encoder}_coupled")
        for key, folder in ((encoder, first), (f"{encoder}_coupled", second)):
            models[key] = [*chosen(STUDENT, folder), f"encoder={encoder}"]
    return models


def chosen(name: str, folder: Path) -> list[str]:
    """Return the overrides that choose a model of a run's folder."""
    return ["model=by_name", f"model.name={name}", f"model.checkpoint={folder / name}.safetensors"]


def prompted(model: list[str], folder: Path) -> Prompted:
    """Prompt a model for every object of the scenes."""
    kinds = f"task.kinds=[{','.join(KINDS)}]"
    where = f"output_dir={folder}"
    kept = np.load(evaluate("task=evaluate_prompts", kinds, *SCENES, *model, *QUIET, where) / "per_image.npz")
    return Prompted(kept["iou_sums"], kept["n_gt"])


def mean_ar(model: list[str], folder: Path) -> str:
    """Return the mean AR of a model with 100 boxes of mini_detector, on the same scenes, and its interval."""
    given = ["experiment=ablation_prompt_head", "hydra.mode=RUN", "detector=mini_detector", *model, *QUIET]
    found = read_json(evaluate(*given, f"output_dir={folder}") / "results.json")
    return f"{percent(found['metrics']['mAR'])} {percent_range(found['interval']['mAR'])}"


def write_results(found: dict[str, Prompted], everything: dict[str, str]) -> None:
    """Write the figures of each model and the differences of pairs, with intervals, as cells."""
    rows = [["model", *KINDS.values(), "mean AR"]]
    for key, (sums, n_gt) in found.items():
        rows.append([ROWS[key], *cells(sums, n_gt), everything.get(key, "-")])
    for name, key, other in DIFFERENCES:
        rows.append([name, *cells(found[key].sums - found[other].sums, found[key].n_gt, "+.1f"), "-"])
    write_csv(SAM2_MINI, rows)


def cells(sums: np.ndarray, n_gt: np.ndarray, form: str = ".1f") -> list[str]:
    """Return the mean IoU of each kind of prompt, or its difference, with its interval, in percent."""
    kinds = list(KINDS)
    means = mean_ious(sums.sum(0), n_gt.sum(0), kinds)
    draws = resampled_sums(sums, n_gt, seed=0, resamples=RESAMPLES)
    intervals, shown = percentiles(mean_ious(*draw, kinds) for draw in draws), []
    for name in (f"mIoU {kind}" for kind in kinds):
        value, interval = means[name], intervals[name]
        assert value is not None
        assert interval is not None
        low, high = (f"{100 * end:{form}}" for end in interval)
        shown.append(f"{100 * value:{form}} [{low}, {high}]")
    return shown


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return texts(read_results())


def texts(rows: list[list[str]]) -> dict[str, str]:
    """Return the table of docs/train.md and the sentence about the students, by their names."""
    cells = {row[0]: [cell.partition(" ")[0] for cell in row[1:3]] for row in rows}
    (first_box, first_centre), (box, centre) = (cells[name] for name, *_ in DIFFERENCES[2:])
    sentence = (
        f"The student that has all three minus the one with stride 16 alone: from boxes {first_box} points after the "
        f"first step and {box} after the second, from centres {first_centre} and {centre}."
    )
    return {"sam2_mini": as_markdown(rows), "sam2_mini_levels": textwrap.fill(sentence, LINE_WIDTH)}


def read_results() -> list[list[str]]:
    """Return the cells that ``write_results`` wrote."""
    with SAM2_MINI.open(newline="") as file:
        return list(csv.reader(file))


if __name__ == "__main__":
    main()
