"""The keys of conf/ and the types of their values: a mistyped one is an error that names it."""

import inspect
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf


@dataclass
class EvaluateConfig:
    """Keys of conf/evaluate.yaml; each group is checked against the signature of what it builds."""

    paths: Any = MISSING
    model: Any = MISSING
    encoder: Any = None
    onnx_encoder: str | None = None
    detector: Any = None
    prompt_sampler: Any = MISSING
    dataset: Any = MISSING
    trainer: Any = MISSING
    task: Any = None
    optimizer: Any = None
    logger: Any = None
    experiment: Any = None
    predictions: str | None = None
    skip_images_without_results: bool = False
    boxes: str | None = None
    max_boxes: int | None = None
    teacher: Any = None
    save_masks: bool = False
    compile: bool = False
    seed: int = 0
    batch_size: int = 1
    num_workers: int = 1
    output_dir: str = MISSING


@dataclass
class TrainConfig:
    """Keys of conf/train.yaml; each group is checked against the signature of what it builds."""

    paths: Any = MISSING
    task: Any = MISSING
    samples: Any = MISSING
    model: Any = None
    encoder: Any = None
    teacher: Any = None
    detector: Any = None
    prompt_sampler: Any = None
    cache: Any = MISSING
    dataset: Any = MISSING
    optimizer: Any = MISSING
    trainer: Any = MISSING
    logger: Any = None
    experiment: Any = None
    validation_images: int = 0
    max_broken: float = 0.01
    batch_size: int = 1
    num_workers: int = 0
    seed: int = 0
    ema: float | None = None
    compile: bool = False
    channels_last: bool = False
    objective: str | None = None
    checkpoint_minutes: float = 15.0
    resume: str | None = "auto"
    requeue: bool = True
    output_dir: str = MISSING


def register() -> None:
    """Makes the schemas known to Hydra, and this folder to the jobs of a sweep, which unpickle them elsewhere."""
    here = str(Path(__file__).parent)
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != here]
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *others])
    ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig)
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)


OF_TRAINING = ("cache", "precision")
"""Keys that train.py takes out of a teacher before it is built."""


def require_settings(cfg: DictConfig, groups: Sequence[str]) -> None:
    """Nothing, if every group that a program reads is there, and each key is one of what its group builds, of its type.

    Raises:
        ValueError: the sentence names the key, what it is and what is taken.
    """
    for group in groups:
        if OmegaConf.is_missing(cfg, group) or cfg[group] is None:
            raise ValueError(f"{group} is not chosen, and this run reads it: {group}=NAME, one of conf/{group}.")
    for group in map(str, cfg):
        if not OmegaConf.is_missing(cfg, group):
            _check_node(group, cfg[group])


def _check_node(name: str, node: Any) -> None:
    """A group or a node in one."""
    if not isinstance(node, DictConfig):
        return
    hints = _hints(get_object(node["_target_"])) if "_target_" in node else {}
    for key in map(str, node):
        place = f"{name}.{key}"
        if OmegaConf.is_missing(node, key):
            raise ValueError(f"{place} has no value yet: {place}=VALUE.")
        if hints and not key.startswith("_") and not (name == "teacher" and key in OF_TRAINING):
            target = node["_target_"].rsplit(".", 1)[1]
            if key not in hints and "kwargs" not in hints:
                raise ValueError(f"There is no {place}; {target} has {', '.join(hints)}.")
            _check_value(place, node[key], target, hints.get(key, Any))
        _check_node(place, node[key])


def _check_value(place: str, value: Any, target: str, hint: Any) -> None:
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if not _fits(value, hint):
        wanted = re.sub(r"(pathlib|collections\.abc|typing)\.", "", inspect.formatannotation(hint))
        raise ValueError(f"{place} is {'null' if value is None else repr(value)}; {target} takes {wanted}.")


def _hints(target: Any) -> dict[str, Any]:
    """The types of a class's or function's parameters, by name."""
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # others import some types for their type checker alone
        hints = {}
    return {name: hints.get(name, Any) for name in inspect.signature(target).parameters}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of YAML is of a type; of a class's, if it is a node that builds one."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(value, dict):
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, arg) for arg in args)
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
