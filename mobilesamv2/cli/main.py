"""Parser assembly and error handling of the command line ``mobilesamv2``.

A subcommand is a row of ``COMMANDS`` and a module with ``add_arguments(parser)`` and ``run(args)``. The module is
imported only when its subcommand is named, and imports what is slow to import (torch, matplotlib and the like) inside
``run``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import NamedTuple

from mobilesamv2.broken_pipe import quiet_broken_pipe
from mobilesamv2.data.loader_failures import loader_failure
from mobilesamv2.extras import missing_library
from mobilesamv2.recipes.command_line import as_hydra_program


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        name: what is typed after ``mobilesamv2``.
        module: import path of the module that defines ``add_arguments(parser)`` and ``run(args)``.
        help: its line in ``mobilesamv2 --help``.
    """

    name: str
    module: str
    help: str


HYDRA_COMMANDS = ("train", "evaluate")
"""Their arguments, --help among them, are Hydra's."""

COMMANDS = (
    Command("train", "mobilesamv2.recipes.train", "train: the configurations of conf/, experiment=NAME and overrides"),
    Command("evaluate", "mobilesamv2.recipes.evaluate", "evaluate: AR@K, prompt mIoU, AP, time per stage"),
    Command("rerun", "mobilesamv2.cli.rerun", "make a training or an evaluation anew, from its own record"),
    Command("demo", "mobilesamv2.cli.demo", "the papers in miniature, in minutes"),
    Command("models", "mobilesamv2.cli.models", "list the models that build_sam accepts, with their sizes"),
    Command("segment", "mobilesamv2.cli.segment", "segment everything in images: overlays, and masks in COCO's layout"),
    Command("app", "mobilesamv2.cli.app", "interactive demo: points, boxes and everything, on images of your own"),
    Command("download", "mobilesamv2.cli.download", "download published weight files"),
    Command("export", "mobilesamv2.cli.export", "write a model as ONNX: encoder.onnx and decoder.onnx"),
    Command("synthesize", "mobilesamv2.cli.synthesize", "write synthetic scenes with exact masks"),
    Command("yolo-data", "mobilesamv2.cli.yolo_data", "write a data set in ultralytics' layout, for yolo train"),
    Command("report", "mobilesamv2.cli.report", "tables, figures and comparisons of evaluations"),
    Command("benchmark", "mobilesamv2.cli.benchmark", "models under protocols in one table; the leaderboard"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: arguments after the program's name; None is those of the process.

    Raises:
        SystemExit: with one sentence, if the user can mend the error.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in HYDRA_COMMANDS:
        _run_hydra(arguments)
        return
    if arguments[:1] == ["report"]:
        from mobilesamv2.cli.report import with_default_report

        arguments[1:] = with_default_report(arguments[1:])
    elif arguments[:1] == ["benchmark"]:
        from mobilesamv2.cli.benchmark import with_default_action

        arguments[1:] = with_default_action(arguments[1:])
    try:
        with quiet_broken_pipe():
            args = build_parser(next((a for a in arguments if not a.startswith("-")), None)).parse_args(arguments)
            args.run(args)
    except ImportError as error:
        raise SystemExit(f"error: {missing_library(error)}") from error
    except _user_errors() as error:
        raise SystemExit(f"error: {loader_failure(error, '--workers') or error}") from error
    except (RuntimeError, MemoryError) as error:
        sentence = loader_failure(error, "--workers")
        if sentence is None:
            raise
        raise SystemExit(f"error: {sentence}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None


def _run_hydra(arguments: list[str]) -> None:
    """Run a program that reads its own arguments from ``sys.argv``."""
    command = next(command for command in COMMANDS if command.name == arguments[0])
    try:
        program = import_module(command.module)
    except ImportError as error:
        raise SystemExit(f"error: {missing_library(error)}") from error
    with quiet_broken_pipe(), as_hydra_program(command.name, arguments[1:]):
        program.main()


def build_parser(name: str | None = None) -> argparse.ArgumentParser:
    """Build the parser of all subcommands, with the arguments of one of them.

    Args:
        name: the subcommand whose module is imported for its arguments; the others have only their line of help.
    """
    parser = argparse.ArgumentParser(prog="mobilesamv2", description="Small segment-anything models.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('mobilesamv2')}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.name, help=command.help)
        if command.name == name:
            module = import_module(command.module)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def _user_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions whose message is all that the user needs; torch's own only where torch was imported."""
    torch = sys.modules.get("torch")
    return (ValueError, OSError, *((torch.OutOfMemoryError,) if torch else ()))
