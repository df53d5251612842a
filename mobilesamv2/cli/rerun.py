"""``mobilesamv2 rerun``: make a run anew from its own record, in a folder of its own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder of the run, and the changes."""
    parser.description = (
        "Make a training or an evaluation anew, by the command line that its folder records. It prints which versions "
        "differ today, and writes into a new folder."
    )
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="folder of the run, with .hydra in it")
    parser.add_argument("changes", metavar="KEY=VALUE", nargs="*", help="further overrides, output_dir=FOLDER for one")


def run(args: argparse.Namespace) -> None:
    """Make the run anew.

    Raises:
        FileNotFoundError: if the folder records no run.
        ValueError: if it would write into the same folder.
    """
    from mobilesamv2.cli.main import main

    program, overrides = recorded_command(args.run_folder)
    for change in args.changes:
        if change.startswith("output_dir=") and Path(change.partition("=")[2]).resolve() == args.run_folder.resolve():
            raise ValueError(f"output_dir must be another folder than {args.run_folder}, which the run resumes in.")
    for line in differences(recorded_environment(args.run_folder)):
        print(line)
    # a later override of a key takes the place of an earlier one
    changed = {change.lstrip("+~").partition("=")[0] for change in args.changes}
    kept = [each for each in overrides if each.lstrip("+~").partition("=")[0] not in changed | {"output_dir", "resume"}]
    print(f"mobilesamv2 {' '.join([program, *kept, *args.changes])}", flush=True)
    main([program, *kept, *args.changes])


def recorded_command(folder: Path) -> tuple[str, list[str]]:
    """Return the program of a run, ``train`` or ``evaluate``, and its overrides.

    Raises:
        FileNotFoundError: if the folder does not have them.
        ValueError: if they can't be read.
    """
    paths = folder / ".hydra" / "hydra.yaml", folder / ".hydra" / "overrides.yaml"
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {path}, so that {folder} is no folder of a training or an evaluation."
            )
    program = _from_yaml(paths[0], lambda record: record["hydra"]["job"]["config_name"])
    overrides = _from_yaml(paths[1], lambda record: [str(each) for each in record])
    if program not in ("train", "evaluate"):
        raise ValueError(f"{paths[0]} must name the program train or evaluate, got {program}.")
    return program, overrides


def _from_yaml(path: Path, find: Callable[[Any], Any]) -> Any:
    """Return what is found in a YAML file, a ValueError if it is not there."""
    import yaml

    try:
        return find(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error!r}") from error


def recorded_environment(folder: Path) -> dict[str, Any]:
    """Return the versions and the commit of the last part of a run; nothing where they are not recorded."""
    for name, find in (("run.json", lambda record: record["environments"][-1]), ("results.json", lambda r: r["run"])):
        try:
            return dict(find(json.loads((folder / name).read_text())))
        except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
            continue
    return {}


def differences(then: dict[str, Any]) -> Sequence[str]:
    """Return a line for each version, and for the commit, that differs today."""
    from mobilesamv2.recipes.records import environment

    now = environment(then.get("seed", 0))
    names = sorted(now["versions"].keys() & (then.get("versions") or {}).keys())
    pairs = [(name, then["versions"][name], now["versions"][name]) for name in names]
    if "commit" in then:
        pairs.append(("commit", then["commit"], now["commit"]))
    return [f"{name} was {old} and is {new}" for name, old, new in pairs if old != new]
