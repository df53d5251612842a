"""Named protocols, conf/protocol: a result that carries a name was made by exactly its settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import chain
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf

from mobilesamv2.prompts.sampler import RECORDED_NAMES
from mobilesamv2.recipes import schema
from mobilesamv2.recipes.overrides import group_options

GROUPS = ("task", "prompt_sampler")
"""What a protocol fixes; data, model and machine are the user's."""

FREE = ("task.save_masks",)
"""Settings that change no figure."""

FREE_IF_NULL = ("task.boxes", "task.boundary_dilation_ratio")
"""Settings that a protocol may leave open: boxes are the user's, and boundary IoU is a figure beside the others."""

UNRECORDED = (*FREE, "task.skip_images_without_results")
"""Settings that no result of a model has."""

NAMES = RECORDED_NAMES | {"ious": "noc_ious"}
"""Keys of results.json that differ from the setting's name."""

AGAINST = "model@teacher, whose masks are the truth,"
"""Which teacher it is, is the user's choice; whether there is one is the protocol's."""


def protocol_record(cfg: DictConfig) -> dict[str, str]:
    """Return name, source and gaps of the protocol for a result; nothing without one."""
    named = OmegaConf.to_container(cfg.protocol)
    return {key: value for key, value in named.items() if value is not None} if cfg.protocol.name else {}  # pyright: ignore


def require_protocol(cfg: DictConfig) -> None:
    """Check that a run with the name of a protocol has its settings.

    Raises:
        ValueError: if a setting is another one, or the masks are made elsewhere.
    """
    name = cfg.protocol.name
    if name is None:
        return
    if cfg.predictions:
        raise ValueError(
            f"predictions must not be set with protocol={name}, which says how masks are made: protocol.name=null."
        )
    published = _composed(name)
    fixed, own = (_settings(node) for node in (published, cfg))
    pairs = [(key, value, own.get(key)) for key, value in fixed.items() if value is not None or key not in FREE_IF_NULL]
    pairs += [(key, None, value) for key, value in own.items() if key not in fixed]
    pairs += [(AGAINST, *("annotated objects" if node.teacher is None else "a teacher" for node in (published, cfg)))]
    for key, value, got in pairs:
        if got != value and key not in FREE:
            raise ValueError(
                f"{key} is {_shown(value)} in protocol={name}, got {_shown(got)}. Leave it as it is, or measure "
                "without the protocol's name: protocol.name=null."
            )


def require_recorded_protocol(record: Mapping[str, Any]) -> None:
    """Check that what a result records of its protocol are the settings of that name in conf/protocol.

    Args:
        record: ``protocol`` of results.json.

    Raises:
        ValueError: if a setting is another one, or the protocol is one of somebody's own.
    """
    name = record["name"]
    if name not in group_options("protocol"):
        raise ValueError(f"protocol.name must be one of conf/protocol, got {name}")
    for key, value in _recorded(_composed(name)).items():
        got = record.get(key)
        if (got.partition(",")[0] if key == "against" and isinstance(got, str) else got) != value:
            raise ValueError(f"{key} is {_shown(got)} in results.json and {_shown(value)} in protocol={name}")


def _recorded(cfg: DictConfig) -> dict[str, Any]:
    """Return what a result under a protocol records of its settings."""
    recorded: dict[str, Any] = {}
    if cfg.recipe == "prompts":
        recorded["against"] = "annotated objects" if cfg.teacher is None else "masks of the teacher"
    if cfg.recipe == "segment_everything":
        recorded["sampler"] = str(cfg.prompt_sampler._target_).rpartition(".")[2]
    for path, value in _settings(cfg).items():
        key = path.rpartition(".")[2]
        is_read = path.startswith("task.") or cfg.recipe == "segment_everything"
        is_open = path in FREE_IF_NULL and value is None
        if is_read and not is_open and key != "_target_" and path not in UNRECORDED:
            recorded[NAMES.get(key, key)] = list(value) if isinstance(value, ListConfig) else value
    if not recorded.get("min_mask_region_area"):  # as in ``recorded_settings``
        recorded.pop("min_mask_region_area", None)
    return recorded


def _composed(name: str) -> DictConfig:
    """Return the configuration with nothing but a protocol."""
    knows_folders = GlobalHydra.instance().is_initialized()  # those of --config-dir too
    with nullcontext() if knows_folders else initialize_config_dir(str(schema.CONF), version_base="1.3"):
        try:
            return compose("evaluate", [f"protocol={name}"])
        except MissingConfigException as error:
            raise ValueError(f"protocol.name must be that of its file in conf/protocol, got {name}.") from error


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """Return what a protocol fixes, by dotted names."""
    return dict(chain(*(_leaves(group, OmegaConf.select(cfg, group) or {}) for group in GROUPS)))


def _leaves(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and values of all settings of a node; a list is one value."""
    for key in map(str, node):
        value = node[key]
        if isinstance(value, DictConfig):
            yield from _leaves(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}", value


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
