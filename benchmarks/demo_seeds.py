"""The demo's claims seed by seed: from the folders of demos to the figures and the table that the documentation states.

python benchmarks/demo_seeds.py outputs/demo_2 outputs/demo_3 ...      each made by mobilesamv2 demo -o FOLDER --seed N

Writes mobilesamv2/reports/demo_results.csv, which later demos are set beside, and the table of docs/demo.md; prints how
often each claim held. A demo takes about 5 minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from mobilesamv2.data.json_files import read_json
from mobilesamv2.files import write_text_atomic
from mobilesamv2.recipes.demo import STUDENT, TEACHER
from mobilesamv2.reports.claims import demo_figures, evaluate_claims, select_runs
from mobilesamv2.reports.stated import DEMO_RESULTS, demo_rows, demo_table
from mobilesamv2.reports.sweep import load_runs
from mobilesamv2.reports.table import as_markdown

PAGE = Path(__file__).parents[1] / "docs" / "demo.md"
BEGIN, END = "<!-- demo_seeds: begin -->\n", "<!-- demo_seeds: end -->"


def main() -> None:
    """Write the figures and the table, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of demos")
    figures, outcomes = [], []
    for folder in parser.parse_args().folders:
        runs = select_runs(load_runs(folder / "runs"), TEACHER, STUDENT, load_runs(folder / "dense"))
        figures.append(demo_figures(runs, read_json(folder / "demo.json")["seed"]))
        outcomes.append([claim.outcome for claim in evaluate_claims(runs)])
    figures.sort(key=lambda one: one.seed)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(demo_rows(figures))
    write_text_atomic(DEMO_RESULTS, text.getvalue())
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    table = as_markdown(demo_table(figures))
    write_text_atomic(PAGE, f"{before}{BEGIN}{table}\n{END}{after}")
    print(table)
    for number, claim in enumerate(zip(*outcomes, strict=True), 1):
        print(f"claim {number}: held on {claim.count('held')} of {len(claim)} seeds")
    widths = [one.gain_high - one.gain_low for one in figures]
    print(f"interval of the difference: {min(widths):.1f} to {max(widths):.1f} points wide")


if __name__ == "__main__":
    main()
