"""Reading what evaluations wrote, results.json and per_image.npz, with a sentence for a file that is not as written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mobilesamv2.data.json_files import is_finite_number, read_json
from mobilesamv2.files import read_arrays
from mobilesamv2.metrics.average_recall import GROUPS, IOU_THRESHOLDS

LARGEST = 1e15
"""No time, size or count of an evaluation is larger; figures can't be drawn of much larger ones."""


def read_result(path: str | Path) -> dict[str, Any]:
    """Return the content of a ``results.json``, given by its own path or its folder's.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is not a result, or a part of it that reports read is not what evaluate.py writes.
    """
    path = Path(path)
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"There is no result {file}; evaluate.py writes one into its output_dir.")
    result = read_json(file)
    if not isinstance(result, dict) or not {"metrics", "interval", "protocol"} <= result.keys():
        raise ValueError(f"{file} must be a results.json of evaluate.py, with metrics, interval and protocol.")
    result = {"ms": None, "cpu_ms": None, "run": {}, "n_gt": {}} | result
    try:
        _check_result(result)
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error} Repeat that evaluation.") from error
    return result


def _check_result(result: dict[str, Any]) -> None:
    """Check the parts that reports read."""
    for name in ("metrics", "protocol", "run", "n_gt"):
        _require(isinstance(result[name], dict), name, "an object", result[name])
    for name in ("interval", "ms", "cpu_ms"):
        _require(result[name] is None or isinstance(result[name], dict), name, "an object or null", result[name])
    for name in ("n_gt", "ms", "cpu_ms"):
        for key, value in (result[name] or {}).items():
            _require(_is_amount(value), f"{name}.{key}", "a number of 0 or more", value)
    for key, value in result["metrics"].items():
        _require(value is None or is_finite_number(value), f"metrics.{key}", "a number or null", value)
    protocol, run = result["protocol"], result["run"]
    for key in ("mean_prompts_decoded", "mean_proposals"):
        value = protocol.get(key)
        _require(value is None or _is_amount(value), f"protocol.{key}", "a number of 0 or more, or null", value)
    for key in ("encoder_cost", "model"):
        _require(run.get(key) is None or isinstance(run[key], dict), f"run.{key}", "an object or null", run.get(key))
    cost = run.get("encoder_cost")
    for key in ("parameters", "macs") if cost else ():
        _require(_is_amount(cost.get(key)), f"run.encoder_cost.{key}", "a number of 0 or more", cost.get(key))
    if "ks" in protocol:
        _check_recall(result)


def _check_recall(result: dict[str, Any]) -> None:
    """Check AR@K, its intervals, and what is counted."""
    protocol, interval = result["protocol"], result["interval"]
    ks = protocol["ks"]
    is_list = isinstance(ks, list) and len(ks) > 0
    _require(is_list and all(type(k) is int and 1 <= k < LARGEST for k in ks), "protocol.ks", "a list of counts", ks)
    _require(interval is not None, "interval", "an object", interval)
    for name in (*(f"AR@{k}" for k in ks), "mAR"):
        for part in ("metrics", "interval"):
            if name not in result[part]:
                raise ValueError(f"{part}.{name} is missing.")
        value, ends = result["metrics"][name], interval[name]
        _require(value is None or _is_share(value), f"metrics.{name}", "between 0 and 1, or null", value)
        is_range = isinstance(ends, list) and len(ends) == 2 and all(map(_is_share, ends)) and ends[0] <= ends[1]
        _require(ends is None or is_range, f"interval.{name}", "[low, high] between 0 and 1, or null", ends)
        _require(ends is None or value is not None, f"metrics.{name}", "a number, as it has an interval", value)
    for name, value in (("protocol.num_images", protocol.get("num_images")), ("n_gt.all", result["n_gt"].get("all"))):
        _require(_is_amount(value), name, "a number of 0 or more", value)


def read_counts(path: str | Path) -> dict[str, np.ndarray]:
    """Return the counts of each image that an evaluation of AR@K wrote beside its ``results.json``.

    Args:
        path: folder of the evaluation, or its ``results.json``.

    Returns:
        ``image_ids`` (images,), ``ks`` (Ks,), ``n_gt`` (images, groups) and ``matches`` (images, groups, Ks,
        thresholds), all int64.

    Raises:
        FileNotFoundError: if there is no ``per_image.npz``.
        ValueError: if it can't be read, or its arrays are of another kind.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    file = folder / "per_image.npz"
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}, which evaluate.py writes beside results.json.")
    arrays = read_arrays(file)
    names = ("image_ids", "ks", "n_gt", "matches")
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"{file} must have the counts of AR@K, missing: {', '.join(missing)}. Repeat that evaluation.")
    images, ks, groups, thresholds = arrays["image_ids"].size, arrays["ks"].size, len(GROUPS), len(IOU_THRESHOLDS)
    shapes = dict(zip(names, ((images,), (ks,), (images, groups), (images, groups, ks, thresholds)), strict=True))
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape or array.dtype.kind != "i" or 0 in shape or (name != "image_ids" and array.min() < 0):
            raise ValueError(
                f"{file} is damaged: {name} must be counts of shape {shape}, got {array.dtype} of shape {array.shape}. "
                "Repeat that evaluation."
            )
    if (arrays["matches"] > arrays["n_gt"][:, :, None, None]).any():
        raise ValueError(f"{file} is damaged: it has more matches than objects. Repeat that evaluation.")
    return {name: arrays[name].astype(np.int64) for name in names}


def _is_amount(value: Any) -> bool:
    return is_finite_number(value) and 0 <= value <= LARGEST


def _is_share(value: Any) -> bool:
    return is_finite_number(value) and 0 <= value <= 1


def _require(holds: bool, place: str, wanted: str, value: Any) -> None:
    if not holds:
        shown = repr(value)
        raise ValueError(f"{place} must be {wanted}, got {shown if len(shown) <= 60 else f'{shown[:60]} ...'}.")
