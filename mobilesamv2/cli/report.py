"""``mobilesamv2 report``: tables, figures and comparisons of evaluations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

REPORTS = ("sweep", "table", "picture", "compare", "claims")
RUN_HELP = "folder of an evaluation, or NAME=FOLDER"


def with_default_report(arguments: Sequence[str]) -> list[str]:
    """Return the arguments after ``report`` with ``sweep`` inserted where the first one is a folder."""
    arguments = list(arguments)
    if arguments and Path(arguments[0]).is_dir() and arguments[0] not in REPORTS:
        arguments.insert(0, "sweep")
    return arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the kinds of reports and their arguments."""
    parser.description = "Make tables, figures and comparisons of evaluations; report DIR is report sweep DIR."
    reports = parser.add_subparsers(required=True, metavar="REPORT")

    sweep_help = "all evaluations below a folder: a page, CSV, Markdown, LaTeX and figures"
    sweep = reports.add_parser("sweep", help=sweep_help)
    sweep.add_argument("folder", type=Path, help="the sweep's output_dir, or any folder of evaluations")
    sweep.add_argument("-o", "--output", type=Path, help="folder to write into (default: report in the sweep's)")
    sweep.add_argument("--baseline", help="name of the run that the others are compared with, paired by image")
    sweep.set_defaults(run_report=report_sweep)

    table = reports.add_parser("table", help="one row per evaluation, as Markdown")
    table.add_argument("runs", nargs="+", help=RUN_HELP)
    table.set_defaults(run_report=report_table)

    picture = reports.add_parser("picture", help="images beside the masks of evaluations with task.save_masks=true")
    picture.add_argument("runs", nargs="+", help=RUN_HELP)
    picture.add_argument("-o", "--output", type=Path, required=True, help="image file to write, .png or .jpg")
    picture.add_argument("--images", type=int, default=4, help="number of images, the first ones (default: 4)")
    picture.set_defaults(run_report=report_picture)

    compare = reports.add_parser("compare", help="second minus first, with paired bootstrap intervals")
    compare.add_argument("first", help="folder of an evaluation, or its results.json")
    compare.add_argument("second", help="another one on the same images")
    compare.set_defaults(run_report=report_compare)

    claims = reports.add_parser(
        "claims",
        help="MobileSAMv2's claims and tables in miniature, as HTML and Markdown",
        description="Check MobileSAMv2's claims: each is held, failed, or unresolved, where the interval of the "
        "difference contains 0. The exit status is 0 in all three cases.",
    )
    claims.add_argument("folder", type=Path, help="evaluations with task.save_masks=true; the report goes here too")
    claims.add_argument("--teacher", required=True, help="model name of the teacher")
    claims.add_argument("--student", required=True, help="model name of the student")
    claims.add_argument(
        "--dense",
        type=Path,
        metavar="FOLDER",
        help="the teacher's evaluations by the 64 x 64 grid and by boxes, if these are of fewer images than the others",
    )
    claims.add_argument(
        "--start",
        type=Path,
        metavar="FOLDER",
        help="an evaluation of the student by boxes before it learned, on the same images or the first of them",
    )
    claims.set_defaults(run_report=report_claims)


def run(args: argparse.Namespace) -> None:
    """Make the chosen report."""
    args.run_report(args)


def report_sweep(args: argparse.Namespace) -> None:
    """Write the page, tables and figures of a sweep, print the table, and list the jobs without a result."""
    from mobilesamv2.reports.sweep_report import write_sweep
    from mobilesamv2.reports.table import as_markdown

    report = write_sweep(args.folder, args.output or args.folder / "report", args.baseline)
    for name, command in report.failed.items():
        print(f"{name} has no result. To run it alone: {command}\n")
    print(as_markdown(report.cells))
    print(f"\nwritten: {', '.join(map(str, report.written))}")


def report_table(args: argparse.Namespace) -> None:
    """Print a table with one row per evaluation."""
    from mobilesamv2.reports.result_files import read_result
    from mobilesamv2.reports.table import result_table

    print(result_table({name: read_result(folder) for name, folder in _folders_by_name(args.runs).items()}))


def report_picture(args: argparse.Namespace) -> None:
    """Write a picture of the masks of evaluations.

    Raises:
        ValueError: if the output's suffix is not that of an image format.
    """
    import io

    from PIL import Image

    from mobilesamv2.files import atomic_write
    from mobilesamv2.reports.picture import result_picture

    image_format = Image.registered_extensions().get(args.output.suffix.lower())
    if image_format is None:
        raise ValueError(f"--output must be an image file such as masks.png or masks.jpg, got {args.output}.")
    picture = result_picture(_folders_by_name(args.runs), args.images)
    content = io.BytesIO()  # Pillow does not notice if the disk is too full for the end of a JPEG
    picture.save(content, image_format)
    with atomic_write(args.output) as partial:
        partial.write_bytes(content.getvalue())
    print(f"written: {args.output}")


def report_compare(args: argparse.Namespace) -> None:
    """Print the differences of two evaluations."""
    from mobilesamv2.reports.compare import compare_results

    print(compare_results(args.first, args.second))


def report_claims(args: argparse.Namespace) -> None:
    """Write the report of the claims, and print its tables and the outcome of each claim."""
    from mobilesamv2.reports.claim_report import format_claims, write_claims
    from mobilesamv2.reports.table import as_markdown

    _, claims, tables = write_claims(args.folder, args.teacher, args.student, args.dense, args.start)
    for title, cells in tables.items():
        print(f"{title}\n\n{as_markdown(cells)}\n")
    print(format_claims(claims))
    print(f"\nwritten: {args.folder}/report.html, report.md")


def _folders_by_name(runs: Sequence[str]) -> dict[str, Path]:
    """Map the name before an equals sign, or else the folder's own name, to the folder."""
    folders: dict[str, Path] = {}
    for run in runs:
        name, path = run.split("=", 1) if "=" in run and not Path(run).exists() else (Path(run).name, run)
        if name in folders:
            raise ValueError(f"Names of evaluations must be unique, got {name} twice; set them by NAME=FOLDER.")
        folders[name] = Path(path)
    return folders
