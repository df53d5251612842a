"""What differs today from what a run records, for ``mobilesamv2 rerun``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from mobilesamv2.data.base import ImageDataset
from mobilesamv2.data.json_files import read_json
from mobilesamv2.recipes.evaluation import hash_of, image_list_record
from mobilesamv2.recipes.records import config_record, environment
from mobilesamv2.recipes.run import compose_run
from mobilesamv2.recipes.run_folder import RECORD, run_identity

UNKNOWN = "Whether the files are the same can't be found out"


def differences_of_code(then: Mapping[str, Any]) -> list[str]:
    """Return a line for each version, the commit and the code that differs today, and one if the code had changes.

    Args:
        then: what ``environment`` returned when the run was made.
    """
    now = environment(then.get("seed", 0))
    versions: Any = then.get("versions") or {}
    then_and_now = {name: (versions[name], now["versions"][name]) for name in sorted(now["versions"].keys() & versions)}
    then_and_now |= {name: (then[name], now[name]) for name in ("commit", "code_sha256") if name in then}
    lines = list(_lines(then_and_now))
    if then.get("is_clean") is False:
        lines.append(f"mobilesamv2/ or conf/ had changes that commit {then.get('commit')} lacks")
    return lines


def differences_of_files(
    folder: Path, program: str, overrides: Sequence[str], config_dir: Path | None = None
) -> list[str]:
    """Return a line for each hash that differs today: of weights, annotations and the list of images.

    It builds the data set to find out.

    Args:
        folder: of the run.
        program: that made it, ``train`` or ``evaluate``.
        overrides: of the run that is to be made.
        config_dir: of ``--config-dir``.
    """
    try:
        if program == "train":
            then = _recorded(folder / RECORD, "identity")
            cfg = compose_run(program, overrides, config_dir)
            now = run_identity(cfg, instantiate(cfg.dataset, _convert_="all"))
            hashes = {key: (then[key], now[key]) for key in sorted(then.keys() & now) if "SHA-256" in key}
        else:
            protocol, networks = (_recorded(folder / "results.json", key) for key in ("protocol", "run"))
            hashes = _hashes_of_evaluation(protocol, networks, compose_run(program, overrides, config_dir))
    except InstantiationException as error:
        return [f"{UNKNOWN}: {error.__cause__ or error}"]
    except (OSError, ValueError) as error:
        return [f"{UNKNOWN}: {error}"]
    return list(_lines(hashes))


def _recorded(path: Path, key: str) -> dict[str, Any]:
    """Return an object of a JSON file."""
    content = read_json(path)
    values = content.get(key) if isinstance(content, dict) else None
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not record them.")
    return values


def _hashes_of_evaluation(
    protocol: Mapping[str, Any], networks: Mapping[str, Any], cfg: DictConfig
) -> dict[str, tuple[Any, Any]]:
    """Return the hashes of files then and now, by their names in ``results.json``."""
    dataset: ImageDataset = instantiate(cfg.dataset, _convert_="all")
    now = image_list_record(dataset, range(len(dataset)))
    if protocol.get("skip_images_without_results"):  # the list is of those with results
        del now["image_list_sha256"]
    files = {"predictions": cfg.predictions, "boxes": cfg.task.get("boxes"), "onnx_encoder": cfg.onnx_encoder}
    now |= {f"{name}_sha256": hash_of(Path(file)) for name, file in files.items() if file}
    model = networks.get("model")
    then = {**(model if isinstance(model, dict) else {}), **protocol}
    hashes = {key: (then[key], now[key]) for key in sorted(then.keys() & now) if key.endswith("_sha256")}
    for name, network in networks.items():
        if isinstance(network, dict) and "sha256" in network and cfg.get(name) is not None:
            hashes[f"{name}.sha256"] = network["sha256"], (config_record(cfg[name]) or {}).get("sha256")
    return hashes


def _lines(then_and_now: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
    for name, (old, new) in then_and_now.items():
        if old != new:
            yield f"{name} was {_shown(old)} and is {_shown(new)}"


def _shown(value: Any) -> str:
    """Return a value, or several, as words."""
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
