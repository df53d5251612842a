"""The ways to train a student side by side in miniature: this project's own and those of other distilled SAMs.

    python benchmarks/recipes.py --write           # about 4 minutes of one CPU core; the table of docs/train.md
    python benchmarks/recipes.py --write-only      # the same from benchmarks/results/recipes.csv
    python benchmarks/recipes.py --start 400 --steps 200 --scenes 100 -o outputs/longer

A student (``micro_conv``, from random weights) is first distilled from ``mini_conv`` by its embeddings, which is what
the second phases go on from. From there each way has the same number of steps of the same drawn scenes, and learns from
the same objects (``experiment=ablation_recipes``). Then each student is prompted for every object of other scenes, of
shape families and textures that training does not draw: the IoU with the teacher's masks and with the objects, with 95%
intervals over scenes, and the difference from the start, paired by scene. The CPU time is of training alone; a way that
was stopped amid its training starts over.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from accuracy import QUIET, measure_each
from figures import Figure, Figures, prompt_change, write_evaluations
from recipes_texts import AGAINST, KINDS, PAGES, RECIPES, START, WAYS, stated, table
from result_pages import write_pages

from mobilesamv2.data.json_files import read_json
from mobilesamv2.files import write_text_atomic
from mobilesamv2.recipes.run import train

BATCH = 4
SIZE = "[192,256]"
STUDENT = "micro_conv"


def main() -> None:
    """Train, evaluate, print the table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=int, default=40, help="steps of the student that all ways start from")
    parser.add_argument("--steps", type=int, default=16, help="steps of each way")
    parser.add_argument("--scenes", type=int, default=20, help="scenes of the evaluation")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of each way, one for all")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/recipes"), help="folder of all runs")
    parser.add_argument("--write", action="store_true", help="write the results and the documentation's text")
    parser.add_argument("--write-only", action="store_true", help="write the text from the results that there are")
    args = parser.parse_args()
    if not args.write_only:
        figures = measure(args)
        print(f"\n{table(figures)}")
        if args.write:
            write_evaluations(RECIPES, figures)
    if args.write or args.write_only:
        write_pages(PAGES, stated())


def measure(args: argparse.Namespace) -> Figures:
    """Train each way, prompt each student, and return the figures with the changes from the start."""
    output: Path = args.output
    shared = ["validation_images=4", *QUIET, f"dataset.size={SIZE}"]
    start = train(
        f"experiment=distill_{STUDENT}_synthetic",
        *shared,
        f"batch_size={BATCH}",
        f"dataset.limit={BATCH * args.start + 4}",
        "dataset.seed=1",
        "task.warmup_images=32",
        "trainer.max_epochs=1",
        f"output_dir={output / START}",
    )
    figures = {"settings": {name: Figure(getattr(args, name)) for name in ("start", "steps", "scenes", "lr")}}
    for way in WAYS:
        given = ["experiment=ablation_recipes", "hydra.mode=RUN", f"task={way}", *shared]
        given += [f"model.checkpoint={start / STUDENT}.safetensors", f"dataset.limit={BATCH * args.steps + 4}"]
        given += [f"optimizer.lr={args.lr}", f"output_dir={output / way}"]
        figures[way] = {"cpu_s": Figure(timed(given, output / f"{way}.json"))}
    given = {
        f"{way}_{against}": prompted(output / way / f"{STUDENT}.safetensors", args.scenes, against)
        for way in (START, *WAYS)
        for against in AGAINST
    }
    figures |= measure_each(given, output)
    for way in WAYS:
        for against in AGAINST:
            pair = [output / f"{each}_{against}" for each in (START, way)]
            figures[f"{way}_{against}_change"] = prompt_change(*pair)
    return figures


def timed(given: list[str], record: Path) -> float:
    """Train, unless the record says that it was done; return the seconds of CPU time that it took."""
    if record.is_file():
        train(*given)  # refuses other settings, and returns at once
    else:
        began = time.process_time()
        train(*given, "resume=null")
        write_text_atomic(record, f'{{"cpu_s": {time.process_time() - began:.1f}}}\n')
    return read_json(record)["cpu_s"]


def prompted(student: Path, scenes: int, against: str) -> list[str]:
    """Return the overrides that prompt a student for every object."""
    return [
        "task=evaluate_prompts",
        f"task.kinds=[{','.join(KINDS)}]",
        "dataset=synthetic",
        f"dataset.size={SIZE}",
        "dataset.split=test",
        f"dataset.limit={scenes}",
        "dataset.seed=2",
        f"model={STUDENT}",
        f"model.checkpoint={student}",
        *(["model@teacher=mini_conv"] if against == "teacher" else []),
    ]


if __name__ == "__main__":
    main()
