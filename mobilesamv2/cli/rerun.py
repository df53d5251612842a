"""``mobilesamv2 rerun``: make a run anew from its own record, in a folder of its own."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class RecordedCommand(NamedTuple):
    """The command line of a run.

    Attributes:
        program: ``train`` or ``evaluate``.
        overrides: settings, and where further configurations are searched.
        config_dir: of ``--config-dir``.
    """

    program: str
    overrides: list[str]
    config_dir: Path | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder of the run, and the changes."""
    parser.description = (
        "Make a training or an evaluation anew, by the command line that its folder records; of a job of a sweep, this "
        "one alone. It prints which versions and files differ today, and writes into a new folder."
    )
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="folder of the run, with .hydra in it")
    parser.add_argument("changes", metavar="KEY=VALUE", nargs="*", help="further overrides, output_dir=FOLDER for one")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="in place of the one that the run had")


def run(args: argparse.Namespace) -> None:
    """Make the run anew.

    Raises:
        FileNotFoundError: if the folder records no run, or its further configurations are gone.
        ValueError: if it would write into the same folder.
    """
    from mobilesamv2.cli.main import main
    from mobilesamv2.recipes.reruns import differences_of_code, differences_of_files

    program, overrides, config_dir = recorded_command(args.run_folder)
    config_dir = args.config_dir or config_dir
    if config_dir is not None and not config_dir.is_dir():
        raise FileNotFoundError(f"There is no folder {config_dir} of configurations: name its place by --config-dir.")
    for change in args.changes:
        if change.startswith("output_dir=") and Path(change.partition("=")[2]).resolve() == args.run_folder.resolve():
            raise ValueError(f"output_dir must be another folder than {args.run_folder}, which the run resumes in.")
    # one run, though the experiment may be a sweep; a later override of a key takes the place of an earlier one
    overrides = ["hydra.mode=RUN", *overrides]
    changed = {change.lstrip("+~").partition("=")[0] for change in args.changes}
    kept = [each for each in overrides if each.lstrip("+~").partition("=")[0] not in changed | {"output_dir", "resume"}]
    for line in differences_of_code(recorded_environment(args.run_folder)):
        print(line)
    if "hydra.mode" not in changed:
        for line in differences_of_files(args.run_folder, program, [*kept, *args.changes], config_dir):
            print(line)
    more = [] if config_dir is None else ["--config-dir", str(config_dir)]
    print(f"mobilesamv2 {shlex.join([program, *more, *kept, *args.changes])}", flush=True)
    main([program, *more, *kept, *args.changes])


def recorded_command(folder: Path) -> RecordedCommand:
    """Return the command line of a run.

    Raises:
        FileNotFoundError: if the folder does not have it.
        ValueError: if it can't be read.
    """
    paths = folder / ".hydra" / "hydra.yaml", folder / ".hydra" / "overrides.yaml"
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {path}, so that {folder} is no folder of a training or an evaluation."
            )
    program, searched, config_dir = _from_yaml(paths[0], _read_hydra)
    overrides = _from_yaml(paths[1], lambda record: [str(each) for each in record])
    if program not in ("train", "evaluate"):
        raise ValueError(f"{paths[0]} must name the program train or evaluate, got {program}.")
    return RecordedCommand(program, [*searched, *overrides], config_dir)


def _read_hydra(record: Any) -> tuple[str, list[str], Path | None]:
    """Return the program, the overrides by which configurations are searched, and the folder of ``--config-dir``."""
    hydra = record["hydra"]
    overrides = hydra.get("overrides", {}).get("hydra", [])
    sources = hydra.get("runtime", {}).get("config_sources", [])
    folders = [Path(each["path"]) for each in sources if each["provider"] == "command-line"]
    searched = [str(each) for each in overrides if str(each).startswith("hydra.searchpath=")]
    return hydra["job"]["config_name"], searched, folders[0] if folders else None


def _from_yaml(path: Path, find: Callable[[Any], Any]) -> Any:
    """Return what is found in a YAML file, a ValueError if it is not there."""
    import yaml

    try:
        return find(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error!r}") from error


def recorded_environment(folder: Path) -> dict[str, Any]:
    """Return the versions and the commit of the last part of a run; nothing where they are not recorded."""
    for name, find in (("run.json", lambda record: record["environments"][-1]), ("results.json", lambda r: r["run"])):
        try:
            return dict(find(json.loads((folder / name).read_text())))
        except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
            continue
    return {}
