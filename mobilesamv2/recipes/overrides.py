"""A command line that Hydra can't compose ends in a sentence with the nearest names."""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException, MissingConfigException, OverrideParseException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mobilesamv2.names import did_you_mean
from mobilesamv2.recipes import schema

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Environment variable with which Hydra raises errors, instead of printing them in its own words and exiting."""

COMPOSING = "MOBILESAMV2_COMPOSING"
"""Set beside it where this package has set it, not the user; the jobs that a launcher starts inherit both."""


def explain_overrides(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a program of Hydra's: if its command line can't be composed, it ends with one sentence.

    ``HYDRA_FULL_ERROR=1`` shows the traceback, as of any other error.
    """

    @functools.wraps(main)
    def program(cfg: DictConfig | None = None) -> Any:
        if cfg is not None or os.environ.get(FULL_ERROR) == "1":
            return main(cfg)
        os.environ |= {FULL_ERROR: "1", COMPOSING: "1"}
        try:
            return main()
        except (CompactHydraException, OmegaConfBaseException, ValueError) as error:
            raise SystemExit(f"error: {explanation(error, sys.argv[1:])}") from error
        finally:
            _stop_composing()

    return program


@contextmanager
def job_errors() -> Iterator[None]:
    """Leave the errors of a job to what runs it, until the next job of a sweep is composed."""
    composing = _stop_composing()
    yield
    if composing:
        os.environ |= {FULL_ERROR: "1", COMPOSING: "1"}


def _stop_composing() -> bool:
    """Take back what ``explain_overrides`` has set; return whether it had."""
    composing = os.environ.pop(COMPOSING, None) is not None
    if composing:
        os.environ.pop(FULL_ERROR, None)
    return composing


def explanation(error: Exception, arguments: Sequence[str]) -> str:
    """Return what a user can do about a command line that can't be composed.

    Args:
        error: of Hydra or OmegaConf.
        arguments: of the program.
    """
    cause, text = error.__cause__, str(error)
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        return _unknown_choice(str(error.missing_cfg_file), error.options, arguments)
    if isinstance(error, OverrideParseException):
        return f"'{error.override}' can't be read as KEY=VALUE: {text.splitlines()[0]}."
    if text.startswith("Config group override must be"):
        return _no_choice(text, arguments)
    key = re.match(r"Could not override '(.+?)'", text)
    if key and isinstance(cause, OmegaConfBaseException):
        return _unknown_key(key[1], cause)
    if key:
        groups = re.search(r"Did you mean to override (?:one of )?(.+)\?", text)
        near = did_you_mean(key[1], groups[1].split(", "), "{}=NAME") if groups else ""
        return f"This program has no group {key[1]}.{near}"
    gone = re.match(r"Could not delete.*'(.+?)(=.*)?'", text)
    if gone:
        keys = [field.name for program in (schema.EvaluateConfig, schema.TrainConfig) for field in fields(program)]
        return f"There is no {gone[1]}{gone[2] or ''} to leave out.{did_you_mean(gone[1], keys, '~{}')}"
    reason = f": {str(cause).splitlines()[0]}." if isinstance(cause, OmegaConfBaseException) else ""
    return "\n".join(line for line in text.splitlines() if not line.startswith("To append")) + reason


def group_options(group: str, config_dir: Path | None = None) -> list[str]:
    """Return the names to choose from in a group of conf/ and of ``--config-dir``; none if there is no such group."""
    folders = [schema.CONF] if config_dir is None else [schema.CONF, config_dir]
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def _unknown_choice(file: str, options: Sequence[str] | None, arguments: Sequence[str]) -> str:
    """Describe a value of a group that names no file."""
    group, _, name = file.rpartition("/")
    options = sorted(options or group_options(group))
    keys = [key for key, value in _pairs(arguments) if key.partition("@")[0] == group and name in value]
    key = keys[0] if keys else group
    other = f" {key}=by_name takes any other: see conf/{group}/by_name.yaml." if "by_name" in options else ""
    near = did_you_mean(name, options, f"{key}={{}}")
    return f"There is no {key}={name} in conf/{group}.{near} Available: {', '.join(options)}.{other}"


def _no_choice(text: str, arguments: Sequence[str]) -> str:
    """Describe a value of a group that is no name, as null is none."""
    for key, value in _pairs(arguments):
        options = group_options(key.partition("@")[0])
        if options and (value == "null" or not re.search(r"[^\d.+-]", value)):
            return (
                f"{key}={value} chooses nothing: {key}=NAME takes one of {', '.join(options)}, and ~{key} leaves the "
                "group out."
            )
    return text


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield keys and values of overrides."""
    for argument in arguments:
        if "=" in argument and not argument.startswith("-"):
            key, _, value = argument.lstrip("+~").partition("=")
            yield key, value


def _unknown_key(path: str, cause: OmegaConfBaseException) -> str:
    """Describe a key that the configuration does not have.

    Args:
        path: of the key, as the user wrote it.
        cause: its first part that does not exist, and the node that lacks it.
    """
    node: Any = cause.parent_node
    if not isinstance(node, DictConfig):
        return f"There is no key {path}."
    missing = str(cause.full_key)
    stem, _, last = missing.rpartition(".")
    prefix, rest = f"{stem}." if stem else "", path.removeprefix(missing)
    keys = [str(key) for key in node if not str(key).startswith("_") and key != "hydra"]
    taken = _optional(get_object(node["_target_"])) if "_target_" in node else []
    if last in taken:
        return f"conf/ gives {path} no value, and {node['_target_'].rpartition('.')[2]} takes one: +{path}=VALUE."
    forms = {key: f"{prefix}{key}{rest}" for key in keys} | {
        key: f"+{prefix}{key}{rest}" for key in taken if key not in keys
    }
    if not forms:
        return f"There is no key {path}: {stem} is one value."
    near = did_you_mean(last, forms)
    for key, form in forms.items():
        near = near.replace(f"'{key}'", form)
    if not near:
        elsewhere = [each for each in _paths(node._get_root()) if each.endswith(f".{last}{rest}")]
        near = f" Did you mean {' or '.join(elsewhere[:3])}?" if elsewhere else ""
    return f"There is no key {path}.{near} {stem or 'The program'} has {', '.join(forms)}."


def _optional(target: Any) -> list[str]:
    """Return the parameters that a class or function has defaults for; the others are handed in by the program."""
    parameters = inspect.signature(target).parameters.values()
    return [each.name for each in parameters if each.default is not inspect.Parameter.empty]


def _paths(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all keys."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        for key in map(str, node):
            yield f"{prefix}{key}"
            if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
                yield from _paths(node._get_node(key), f"{prefix}{key}.")
