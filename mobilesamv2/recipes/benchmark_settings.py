"""Whether the result of a benchmark's cell is still one of today's settings, of those that it depends on."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from mobilesamv2.data.json_files import read_json
from mobilesamv2.identity import require_same_identity
from mobilesamv2.recipes.run_folder import flat

FREE_SETTINGS = (
    "output_dir", "num_workers", "batch_size", "compile", "logger*", "hydra*", "paths.*", "trainer.accelerator",
    "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.enable_*", "protocol.source",
    "protocol.silent", "dataset.index_folder",
)  # fmt: skip
"""Settings that may differ from those that a cell was evaluated with: they change no metric beyond the order of
summation."""

FILES = (
    "model.checkpoint", "model.backbone_checkpoint", "teacher.checkpoint", "teacher.backbone_checkpoint",
    "detector.checkpoint", "onnx_encoder", "predictions", "task.boxes", "dataset.annotations", "dataset.images",
    "dataset.tars", "dataset.folder", "dataset.image_list",
)  # fmt: skip
"""Settings that name files, which count by their content: see ``changed_inputs``. One that is not there counts by its
name."""

OF_EVERY_RECIPE = (
    "recipe", "encoder", "onnx_encoder", "predictions", "seed", "protocol.*", "task.*", "dataset.*",
    "trainer.precision",
)  # fmt: skip
"""Settings of conf/ that decide a result whatever evaluates, beside the networks that took part."""

IMAGE_SIZE = "detector.image_size"
"""It was written into conf/, and null stands for that of the weights."""


def require_same_settings(folder: Path, overrides: Sequence[str], cfg: DictConfig, way_out: str) -> None:
    """Check that a result was made with the settings that a run would have today.

    What its overrides say is compared, and what the files of conf/ say to what took part in it; keys of another version
    alone don't count.

    Args:
        folder: of the evaluation.
        overrides: of a run.
        cfg: the configuration that they compose.
        way_out: what to do instead, a sentence.

    Raises:
        ValueError: if it was made with others, or its records can't be read.
    """
    parts, built_size = _parts(folder, way_out)
    unread = [f"{name}*" for name in ("detector", "prompt_sampler") if name not in parts]
    then, now = (_counting(each) for each in (_recorded(folder, "overrides.yaml", way_out), overrides))
    then, now = ({key: each[key] for key in each if not _is_one_of(key, unread)} for each in (then, now))
    require_same_identity(then, now, folder, way_out)

    records = _recorded(folder, "config.yaml", way_out), OmegaConf.to_container(cfg)
    then, now = (dict(flat(record)) for record in records)
    if built_size is not None and IMAGE_SIZE in then:
        then[IMAGE_SIZE] = built_size
    compared = (*OF_EVERY_RECIPE, *(f"{name}.*" for name in parts))
    keys = [key for key in then.keys() & now.keys() if _is_one_of(key, compared) and not _is_one_of(key, FREE_SETTINGS)]
    keys = [key for key in keys if not _is_same(key, then[key], now[key], cfg)]
    require_same_identity({key: then[key] for key in keys}, {key: now[key] for key in keys}, folder, way_out)


def _parts(folder: Path, way_out: str) -> tuple[list[str], int | None]:
    """Return the groups of conf/ that took part in a result, and the size of the detector's input as it was built."""
    try:
        result = read_json(folder / "results.json")
        run, sampler = result["run"], result["protocol"].get("sampler")
        parts = [name for name in ("model", "teacher", "detector") if run.get(name) is not None]
        if sampler not in (None, "prompt-free"):  # a results file's is not known, and FastSAM has none
            parts.append("prompt_sampler")
        return parts, run["detector"].get("image_size") if "detector" in parts else None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{folder / 'results.json'} is damaged ({error!r}). {way_out}") from error
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')}. {way_out}") from error


def _recorded(folder: Path, name: str, way_out: str) -> Any:
    """Return a record of Hydra's: the overrides that a folder was evaluated with, or what they composed."""
    path = folder / ".hydra" / name
    try:
        content = yaml.safe_load(path.read_bytes())
        return dict(content) if name == "config.yaml" else [str(each) for each in content]
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path}, the record of {folder}, can't be read: {error!r}. {way_out}") from error


def _counting(overrides: Sequence[str]) -> dict[str, str]:
    """Return the overrides that decide the metrics, by key; files are compared as they are composed."""
    pairs = (each.lstrip("+~").partition("=")[::2] for each in overrides)
    return {key: value for key, value in pairs if not _is_one_of(key, (*FREE_SETTINGS, *FILES))}


def _is_one_of(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def _is_same(key: str, then: Any, now: Any, cfg: DictConfig) -> bool:
    """Return whether two values of a setting, as conf/ has them, are one."""
    if then == now:
        return True
    if key == IMAGE_SIZE:
        return None in (then, now)
    if key not in FILES or None in (then, now) or len(_listed(then)) != len(_listed(now)):
        return False
    return all(Path(str(file)).exists() for file in _listed(OmegaConf.select(cfg, key)))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | ListConfig) else [value]
