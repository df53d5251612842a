"""The keys of conf/ and the types of their values: a mistyped one is an error that names it."""

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import reduce
from importlib import import_module
from operator import or_
from pathlib import Path
from types import GenericAlias, ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from mobilesamv2.model_zoo import find_weights
from mobilesamv2.names import did_you_mean
from mobilesamv2.ranges import Count, NonNegativeInt, Range, Share, annotated_types, require_range
from mobilesamv2.recipes.library_ranges import library_ranges

_PACKAGED = Path(__file__).parents[1] / "conf"

CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "conf"
"""The folder of configurations: in the installed package, or beside it in a clone."""

Seed = Annotated[int, Range(0, 2**32 - 1)]

MINUTES_OF_A_YEAR = 525_600


@dataclass
class ProtocolConfig:
    """Keys of ``protocol``: its name in conf/protocol, where it is published, and what that leaves open."""

    name: str | None = None
    source: str | None = None
    silent: str | None = None


@dataclass
class EvaluateConfig:
    """Keys of conf/evaluate.yaml; each group is checked against the signature of what it builds."""

    paths: Any = MISSING
    recipe: str = MISSING
    model: Any = MISSING
    encoder: str | None = None
    onnx_encoder: str | None = None
    detector: Any = None
    prompt_sampler: Any = MISSING
    dataset: Any = MISSING
    trainer: Any = MISSING
    task: Any = None
    teacher: Any = None
    logger: Any = None
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    experiment: Any = None
    predictions: str | None = None
    compile: bool = False
    seed: Seed = 0
    batch_size: Count = 1
    num_workers: NonNegativeInt = 1
    output_dir: str = MISSING


@dataclass
class BestConfig:
    """Keys of ``best``: the metric whose best validation has its weights kept, and ``min`` or ``max``."""

    metric: str | None = None
    mode: str = "min"


@dataclass
class TrainConfig:
    """Keys of conf/train.yaml; each group is checked against the signature of what it builds."""

    paths: Any = MISSING
    recipe: str = MISSING
    task: Any = MISSING
    samples: Any = MISSING
    model: Any = None
    encoder: str | None = None
    teacher: Any = None
    detector: Any = None
    prompt_sampler: Any = None
    cache: Any = MISSING
    dataset: Any = MISSING
    optimizer: Any = MISSING
    trainer: Any = MISSING
    logger: Any = None
    experiment: Any = None
    validation_images: NonNegativeInt = 0
    max_broken: Share = 0.01
    batch_size: Count = 1
    num_workers: NonNegativeInt = 0
    seed: Seed = 0
    ema: Annotated[float, Range(0, below=1)] | None = None
    compile: bool = False
    channels_last: bool = False
    objective: str | None = None
    best: BestConfig = field(default_factory=BestConfig)
    picture_steps: Count | None = None
    checkpoint_minutes: Annotated[float, Range(above=0, most=MINUTES_OF_A_YEAR)] = 15.0
    resume: str | None = "auto"
    requeue: bool = True
    output_dir: str = MISSING


def register() -> None:
    """Make the schemas known to Hydra, and this package to the jobs of a sweep, which unpickle them elsewhere."""
    here = str(Path(__file__).parents[2])
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != here]
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *others])
    OmegaConf.register_new_resolver("weights", _weights, replace=True)
    ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig)
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)


def _weights(folder: str, name: str) -> str:
    """Find a weight file of conf/ where ``find_weights`` does; if it is missing, the check of files names its place."""
    try:
        return str(find_weights(name, folder))
    except FileNotFoundError:
        return str(Path(folder) / name)


def find_recipe(cfg: DictConfig, function: str, program: str) -> ModuleType:
    """Import the recipe that the task names: a module of ``mobilesamv2.recipes``, or any other by its dotted name.

    Args:
        cfg: the composed configuration.
        function: what a recipe of this program has, ``build`` or ``evaluate``.
        program: its name, for errors.

    Raises:
        ValueError: if there is no such module, it is of the other program, or it lacks what a recipe has.
    """
    if OmegaConf.is_missing(cfg, "recipe"):
        raise ValueError(f"{program} requires a task: task=NAME, one of conf/task, or an experiment.")
    name = cfg.recipe if "." in cfg.recipe else f"{__package__}.{cfg.recipe}"
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ValueError(
            f"recipe must be a module of mobilesamv2.recipes or a dotted name, got {cfg.recipe}."
        ) from error
    if not hasattr(module, function):
        other = "evaluate.py" if function == "build" else "train.py"
        raise ValueError(f"{program} does not run the recipe {cfg.recipe}; {other} does.")
    for name in ("NEEDS", "OPTIONS", *(["READS"] if function == "build" else [])):
        if not hasattr(module, name):
            raise ValueError(f"The recipe {cfg.recipe} must have {name}, as mobilesamv2/recipes/__init__.py describes.")
    return module


KEYS_READ_APART = {"teacher": ("cache", "precision", "levels"), "cache": ("pixels",)}
"""Keys that are taken out of a group before what it names is built."""


def require_settings(cfg: DictConfig, groups: Sequence[str], options: Mapping[str, Any]) -> None:
    """Check that every group that a recipe needs is chosen, and each key is one of what its group builds, of its type.

    Args:
        cfg: the composed configuration.
        groups: that the recipe needs.
        options: keys of the task that the recipe itself reads, with their types.

    Raises:
        ValueError: if one is missing, unknown or of another type; the sentence names the key and what it takes.
    """
    for group in (*groups, "cache") if "teacher" in groups else groups:
        if group == "cache" and cfg.teacher.get("cache") == "off":
            continue
        value = None if group not in cfg or OmegaConf.is_missing(cfg, group) else cfg[group]
        # a teacher has keys of its embeddings in any case
        if group == "teacher" and (not isinstance(value, DictConfig) or "_target_" not in value):
            raise ValueError("This task requires a teacher: name one, model@teacher=sam_vit_h for example.")
        if value is None and (CONF / group).is_dir():
            raise ValueError(f"{group} must be chosen for this run: {group}=NAME, one of conf/{group}.")
        if not isinstance(value, DictConfig):
            raise ValueError(f"{group} must keep its keys for this run: set one of them, {group}.KEY=VALUE.")
    program: Any = OmegaConf.get_type(cfg)
    types = annotated_types(program)
    known = [field.name for field in fields(program)] if is_dataclass(program) else list(map(str, cfg))
    for group in map(str, cfg):
        if group not in known:
            raise ValueError(f"There is no key {group}.{did_you_mean(group, known, '{}')} Nothing would read +{group}.")
        if not OmegaConf.is_missing(cfg, group):
            require_range(group, cfg[group], types.get(group, Any))
            _check_node(group, cfg[group], options if group == "task" else {})


def _check_node(name: str, node: Any, options: Mapping[str, Any]) -> None:
    """Check a group, or a node or list in one."""
    if isinstance(node, ListConfig):
        for i in range(len(node)):
            _check_node(f"{name}[{i}]", node._get_node(i), {})
    if not isinstance(node, DictConfig):
        return
    hints = _hints(get_object(node["_target_"])) | dict(options) if "_target_" in node else {}
    for key in map(str, node):
        place = f"{name}.{key}"
        if OmegaConf.is_missing(node, key):
            raise ValueError(f"{place} has no value yet: {place}=VALUE.")
        if hints and not key.startswith("_") and key not in KEYS_READ_APART.get(name, ()):
            target = node["_target_"].rsplit(".", 1)[1]
            if key not in hints and "kwargs" not in hints:
                near = did_you_mean(key, hints, f"{name}.{{}}")
                raise ValueError(f"There is no {place}{f'.{near}' if near else ';'} {target} has {', '.join(hints)}.")
            _check_value(place, node[key], target, hints.get(key, Any))
        _check_node(place, node[key], {})


def _check_value(place: str, value: Any, target: str, hint: Any) -> None:
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if not _fits(value, hint):
        wanted = re.sub(r"(pathlib|collections\.abc|typing)\.", "", inspect.formatannotation(_without_ranges(hint)))
        raise ValueError(f"{place} must be {wanted} for {target}, got {'null' if value is None else repr(value)}.")
    require_range(place, value, hint)


def _hints(target: Any) -> dict[str, Any]:
    """Return the types of a class's or function's parameters, by name."""
    hints = annotated_types(target) | library_ranges(target)
    return {name: hints.get(name, Any) for name in inspect.signature(target).parameters}


SCALARS = (bool, int, float, str, Path, NoneType)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value of YAML is of a type; of a class's, if it is a node that builds one."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return _fits(value, args[0])
    if origin in (Union, UnionType):
        return any(_fits(value, arg) for arg in args)
    if isinstance(value, dict):
        plain = (*SCALARS, list, tuple, Sequence, Literal)
        return (origin or hint) in (dict, Mapping) or ("_target_" in value and (origin or hint) not in plain)
    if origin is Literal:  # which of them it is, the class itself says best
        return any(isinstance(value, type(arg)) for arg in args)
    if value is None or isinstance(value, bool):
        return hint in (type(value), None)
    if hint in (int, float):
        return isinstance(value, int) or (hint is float and isinstance(value, float))
    if hint is Path:
        return isinstance(value, str)
    if origin in (list, tuple, Sequence):
        if not isinstance(value, list):
            return False
        kinds = args if origin is tuple and Ellipsis not in args else args[:1] * len(value)
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    return not inspect.isclass(hint) or isinstance(value, hint)


def _without_ranges(hint: Any) -> Any:
    """Return a type as a user reads it."""
    origin, args = get_origin(hint), tuple(map(_without_ranges, get_args(hint)))
    if origin is Annotated:
        return args[0]
    if origin in (Union, UnionType):
        return reduce(or_, args)
    return GenericAlias(origin, args) if origin in (list, tuple, Sequence) else hint
