"""``mobilesamv2 benchmark``: models under protocols, in one table; and results of others for the leaderboard."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results.csv")
"""In a clone."""

ACTIONS = ("run", "submit")

CHOICES_HELP = (
    "{} with commas between; or one with settings of its own, 'NAME KEY=VALUE' or, for one without a name, "
    "'LABEL: KEY=VALUE KEY=VALUE'; may be repeated"
)


def with_default_action(arguments: Sequence[str]) -> list[str]:
    """Return the arguments after ``benchmark`` with ``run`` inserted where they name no action, its settings last."""
    arguments = list(arguments)
    if arguments and arguments[0] not in (*ACTIONS, "-h", "--help"):
        arguments.insert(0, "run")
    return _settings_last(arguments) if arguments[:1] == ["run"] else arguments


def _settings_last(arguments: Sequence[str]) -> list[str]:
    """Move KEY=VALUE behind the options, since argparse takes them from one place alone."""
    takes_next = [each.startswith("-") and "=" not in each and each != "--dry-run" for each in arguments]
    last = [
        "=" in each and not each.startswith("-") and not is_value
        for is_value, each in zip([False, *takes_next[:-1]], arguments, strict=True)
    ]
    pairs = list(zip(arguments, last, strict=True))
    return [each for each, is_last in pairs if not is_last] + [each for each, is_last in pairs if is_last]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add both actions and their arguments."""
    parser.description = (
        "Evaluate models under protocols, and write one table. benchmark --models A,B is benchmark run --models A,B."
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _add_run(actions.add_parser("run", help="evaluate every model under every protocol, and write the table"))
    _add_submit(actions.add_parser("submit", help="check a result, and add it to the results of the leaderboard"))


def run(args: argparse.Namespace) -> None:
    """Do what was chosen."""
    args.run_action(args)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Each cell of the table is an evaluation in a folder of its own, FOLDER/MODEL/PROTOCOL. A benchmark that was "
        "stopped resumes with the same command, and the cells that failed are run again."
    )
    parser.add_argument("--models", action="append", required=True, help=CHOICES_HELP.format("models"))
    protocols_help = CHOICES_HELP.format("protocols, names of conf/protocol or tasks such as evaluate_prompts,")
    parser.add_argument("--protocols", action="append", required=True, help=protocols_help)
    parser.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", help="settings of every cell: dataset=coco dataset.limit=500"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("outputs/benchmark"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--config-dir", type=Path, metavar="DIR", help="YAML files of your own: models, protocols, tasks, data sets"
    )
    parser.add_argument("--workers", type=int, default=1, help="cells at a time on this machine (default: %(default)s)")
    launcher_help = "run all cells by a launcher of Hydra's: slurm, with hydra.launcher.partition=NAME and the like"
    parser.add_argument("--launcher", help=launcher_help)
    parser.add_argument("--dry-run", action="store_true", help="list the cells and what is done of them, and run none")
    parser.set_defaults(run_action=run_cells)


def run_cells(args: argparse.Namespace) -> None:
    """Run a benchmark, or list its cells.

    Raises:
        ValueError: if a name is unknown, a number out of its range, or the folder holds another benchmark.
        FileNotFoundError: if there is no folder of further configurations.
        SystemExit: with status 1, if cells failed; they are named on stderr.
    """
    from mobilesamv2.recipes.benchmark import describe_cells, run_benchmark
    from mobilesamv2.recipes.benchmark_cells import benchmark_cells, model_choices, protocol_choices

    if args.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {args.workers}.")
    plain = next((each for each in args.overrides if "=" not in each and not each.startswith("~")), None)
    if plain is not None:
        raise ValueError(f"Settings must be KEY=VALUE, got {plain}; models and protocols have commas between.")
    hydra = [each for each in args.overrides if each.startswith("hydra")]
    if hydra and args.launcher is None:
        raise ValueError(f"{hydra[0]} is of a launcher: --launcher slurm.")
    shared = [each for each in args.overrides if each not in hydra]
    if args.config_dir is not None and not args.config_dir.is_dir():
        raise FileNotFoundError(f"There is no folder {args.config_dir} of configurations.")
    models, protocols = (
        model_choices(args.models, args.config_dir),
        protocol_choices(args.protocols, args.config_dir),
    )
    cells = benchmark_cells(models, protocols, shared, args.output, args.config_dir)
    if args.dry_run:
        print(describe_cells(cells))
        return
    failed = run_benchmark(cells, args.output, args.workers, args.launcher, hydra)
    _report(cells, args.output)
    if failed:
        print(f"\n{len(failed)} of {len(cells)} cells failed; the same command runs them again:", file=sys.stderr)
        for name, reason in failed.items():
            print(f"  {name}: {reason}", file=sys.stderr)
        raise SystemExit(1)


def _report(cells: Sequence[Any], folder: Path) -> None:
    """Write the table of the cells that have results, and print it."""
    from mobilesamv2.reports.benchmark import benchmark_notes, benchmark_table, read_cells, write_benchmark
    from mobilesamv2.reports.published import read_published
    from mobilesamv2.reports.table import as_markdown

    results = read_cells((cell.model, cell.protocol, cell.folder) for cell in cells)
    if not results:
        return
    published = read_published()
    written = write_benchmark(results, published, folder / "report")
    print(f"{as_markdown(benchmark_table(results, published))}\n\n{benchmark_notes(results)}")
    print(f"\nwritten: {', '.join(map(str, written))}")


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Check the folder of an evaluation: that its model had weights, that metrics, images, settings and times are "
        "what the counts of its images give, and that this code made it. Then add it to the results of the leaderboard."
    )
    parser.add_argument(
        "folder", type=Path, help="an evaluation as it was left, or a benchmark, of which all cells are"
    )
    parser.add_argument("--by", required=True, metavar="NAME", help="who made it")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="of mask AP (default: the file that it names)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="CSV", help="file to add to (default: %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="check, and add nothing")
    parser.set_defaults(run_action=submit)


def submit(args: argparse.Namespace) -> None:
    """Check results, and add them to the results file; none is added if one is refused.

    Raises:
        FileNotFoundError: if there is no result, or the folder of the results file is not there.
        ValueError: if a result is refused, or the file has another outcome of it.
    """
    from mobilesamv2.recipes.protocols import require_recorded_protocol
    from mobilesamv2.recipes.records import code_sha256
    from mobilesamv2.reports.leaderboard import add_results, result_rows
    from mobilesamv2.reports.published import read_published
    from mobilesamv2.reports.submission import check_submission

    folders = sorted(path.parent for path in args.folder.rglob("results.json"))
    if not folders:
        raise FileNotFoundError(f"There is no results.json in {args.folder} or below.")
    if not args.results.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {args.results.parent}: run this in a clone, or name --results CSV."
        )
    published = read_published()
    results = [
        check_submission(folder, code_sha256(), require_recorded_protocol, args.annotations) for folder in folders
    ]
    rows = [result_rows(result, args.by, published) for result in results]
    for folder, is_new in zip(folders, add_results(rows, args.results, args.dry_run), strict=True):
        if args.dry_run:
            print(f"{folder}: accepted")
        else:
            print(f"{folder}: added to {args.results}" if is_new else f"{folder}: was in {args.results} before")
