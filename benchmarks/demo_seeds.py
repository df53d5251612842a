"""The demo's claims seed by seed: from the folders of demos to the figures and the texts that the documentation states.

python benchmarks/demo_seeds.py outputs/demo_2 outputs/demo_3 ...      each made by mobilesamv2 demo -o FOLDER --seed N

Writes mobilesamv2/reports/demo_results.csv, which later demos are set beside, benchmarks/results/demo_example.csv with
the evaluations of the first seed, and from these two the tables and claims of docs/demo.md and README.md; draws
docs/masks.png of the first seed; prints how often each claim held. A demo takes about 6 minutes on two idle cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from result_pages import RESULTS, ROOT, write_csv, write_pages

from mobilesamv2.data.json_files import read_json
from mobilesamv2.evaluation.results import percent, percent_range
from mobilesamv2.recipes.demo import STUDENT, TEACHER
from mobilesamv2.reports.claim_report import picture_columns
from mobilesamv2.reports.claims import ClaimRuns, demo_figures, evaluate_claims, select_runs
from mobilesamv2.reports.picture import result_picture
from mobilesamv2.reports.stated import DEMO_RESULTS, demo_claims, demo_rows, demo_table
from mobilesamv2.reports.sweep import load_runs, stage_times
from mobilesamv2.reports.table import as_markdown

EXAMPLE = RESULTS / "demo_example.csv"
PICTURE = ROOT / "docs" / "masks.png"
PAGES = (ROOT / "docs" / "demo.md", ROOT / "README.md")


def main() -> None:
    """Write the figures and the texts, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of demos")
    demos = []
    for folder in parser.parse_args().folders:
        dense = load_runs(folder / "dense") if (folder / "dense").is_dir() else ()  # or it is among the other grids
        runs = select_runs(load_runs(folder / "runs"), TEACHER, STUDENT, dense, load_runs(folder / "start"))
        demos.append((read_json(folder / "demo.json")["seed"], runs))
    demos.sort(key=lambda demo: demo[0])
    figures = [demo_figures(runs, seed) for seed, runs in demos]
    example = example_rows(demos[0][1])
    write_csv(DEMO_RESULTS, demo_rows(figures))
    write_csv(EXAMPLE, example)
    texts = {
        "demo_seeds": as_markdown(demo_table(figures)),
        "demo_example": as_markdown(example),
        "demo_claims": demo_claims(figures),
    }
    write_pages(PAGES, texts)
    result_picture(picture_columns(demos[0][1]), num_images=3).save(PICTURE)
    print(as_markdown(demo_table(figures)))
    outcomes = [[claim.outcome for claim in evaluate_claims(runs)] for _, runs in demos]
    for number, claim in enumerate(zip(*outcomes, strict=True), 1):
        print(f"claim {number}: held on {claim.count('held')} of {len(claim)} seeds")
    widths = [one.gain_high - one.gain_low for one in figures]
    print(f"interval of the difference: {min(widths):.1f} to {max(widths):.1f} points wide")


def example_rows(runs: ClaimRuns) -> list[list[str]]:
    """Return prompts, time and AR of each evaluation of a demo, as cells."""
    shown = [*runs.grids, runs.boxes, runs.student, *runs.dense_apart]
    unit, times = stage_times(shown)
    ks = runs.boxes.result["protocol"]["ks"]
    rows = [["", "scenes", "prompts", f"mask decoder, {unit}", *(f"AR@{k}" for k in ks), "mean AR [95%]"]]
    for run in shown:
        protocol, metrics = run.result["protocol"], run.result["metrics"]
        label = runs.labels[run.name].removesuffix(f", {protocol['num_images']} images")
        cells = [label, str(protocol["num_images"]), f"{protocol['mean_prompts_decoded']:.0f}"]
        recalls = [percent(metrics[f"AR@{k}"]) for k in ks]
        mean = f"{percent(metrics['mAR'])} {percent_range(run.result['interval']['mAR'])}"
        rows.append([*cells, f"{times[run.name]['mask_decoder']:.0f}", *recalls, mean])
    return rows


if __name__ == "__main__":
    main()
