"""Check somebody else's result before it stands on the leaderboard.

Everything that the folder of an evaluation has twice is compared: metrics and times with the counts of the images,
per_image.npz and results.json with progress/, and the record of the settings with that of each part of the run. The
code must be this one, so that what is computed again is what was computed there; the cost of the encoder is too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilesamv2.evaluation.shards import ImageResult, photos_fingerprint, read_images
from mobilesamv2.files import read_arrays
from mobilesamv2.identity import read_identity
from mobilesamv2.metrics.stage_time import summarize
from mobilesamv2.model_zoo import checkpoint_files, shipped_models
from mobilesamv2.models.cost import encoder_cost
from mobilesamv2.pretrained import MINIATURE_SIDE
from mobilesamv2.registry import build_sam
from mobilesamv2.reports.recompute import Recomputed, recompute
from mobilesamv2.reports.result_files import read_result

TOLERANCE = 1e-9
"""Of a metric that is computed again on another machine."""

WAY_OUT = "Nothing was added."


def check_submission(
    folder: Path,
    code_sha256: str,
    check_protocol: Callable[[Mapping[str, Any]], None],
    annotations: Path | None = None,
) -> dict[str, Any]:
    """Check the folder of an evaluation, and return the content of its results.json.

    Args:
        folder: as ``mobilesamv2 evaluate`` has left it.
        code_sha256: of the code that checks.
        check_protocol: raises a ValueError if what a result records of its protocol is not what its name says.
        annotations: file that AP is computed against; None is the one that the result names.

    Raises:
        FileNotFoundError: if a file of the evaluation is missing.
        ValueError: if the result is refused, with the reason.
    """
    result = read_result(folder)
    try:
        _require_fit(result)
        images, environments = read_images(folder)
        if not images:
            raise ValueError("it has no progress/*.npz, which has the counts of each image")
        for environment in (result["run"], *environments):
            _require_code(environment, code_sha256)
        _check_environment(result["run"], environments)
        _check_identity(result, folder)
        check_protocol(result["protocol"])
        _check_cost(result["run"])
        _check_images(result, images)
        _check_numbers(result, recompute(result, images, folder, annotations), images, folder)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{folder} is refused: results.json lacks what an evaluation writes ({error!r}).") from error
    except ValueError as error:
        raise ValueError(f"{folder} is refused: {str(error).rstrip('.')}. {WAY_OUT}") from error
    return result


def _require_fit(result: Mapping[str, Any]) -> None:
    """Refuse what is no result of a model under a protocol, whatever its numbers."""
    run, protocol = result["run"], result["protocol"]
    model = run.get("model")
    if not isinstance(model, dict):
        raise ValueError("no model was evaluated")
    name, files = model["name"], checkpoint_files(model)
    if not files or len(model["sha256"]) < len(files):
        raise ValueError(f"{name} had random weights: model.checkpoint was null")
    for kind in ("detector", "teacher"):
        if run.get(kind) and not run[kind]["sha256"]:
            raise ValueError(f"its {kind} had random weights: {kind}.checkpoint was null")
    if model.get("allow_partial"):
        raise ValueError(f"{name} may have been random in part: model.allow_partial was true")
    if name in shipped_models() or run["encoder_cost"]["input_side"] <= MINIATURE_SIDE:
        raise ValueError(
            f"{name} is a miniature: the leaderboard is of models with inputs above {MINIATURE_SIDE} pixels"
        )
    if model.get("onnx_encoder"):
        raise ValueError(f"{model['onnx_encoder']} took the place of the image encoder of {name}")
    if not protocol.get("name"):
        raise ValueError("it names no protocol: protocol=NAME, one of conf/protocol")
    if not protocol.get("annotations_sha256"):
        raise ValueError("its annotations have no SHA-256")


def _require_code(environment: Mapping[str, Any], code_sha256: str) -> None:
    """Refuse a part of a run that was made by other code than this one, or does not say by which versions."""
    versions, found = environment.get("versions") or {}, environment.get("code_sha256")
    if not versions.get("mobilesamv2") or not versions.get("torch"):
        raise ValueError("it does not say which versions made it")
    if found != code_sha256:
        where = (
            f"check out its commit, {environment['commit']}," if environment.get("commit") else "install its version"
        )
        raise ValueError(
            f"it was made by other code (code_sha256 {found}, and here {code_sha256}): {where} or repeat it"
        )


def _check_environment(run: Mapping[str, Any], environments: Sequence[Mapping[str, Any]]) -> None:
    """Check that the images were evaluated on the device, and by the versions, that results.json names."""
    for key in ("device", "versions"):
        known = [environment.get(key) for environment in environments]
        if run[key] not in known:
            raise ValueError(f"{key} is {run[key]} in results.json, and no part of progress/ has it, but {known[-1]}")


def _check_cost(run: Mapping[str, Any]) -> None:
    """Check parameters, multiply-accumulates and input of the image encoder, which this code counts again."""
    model, recorded = run["model"], run["encoder_cost"]
    # of the model that was built: its own, or that of its weights
    size = recorded.get("image_size") or model.get("image_size")
    with torch.device("meta"):
        sam = build_sam(model["name"], encoder=model["encoder"], image_size=size)
    again = {**encoder_cost(sam.image_encoder, sam.encoder_side)._asdict(), "input_side": sam.encoder_side}
    for key, value in again.items():
        if recorded[key] != value:
            raise ValueError(
                f"encoder_cost.{key} is {recorded[key]} in results.json, and {model['encoder']} has {value}"
            )


def _check_identity(result: Mapping[str, Any], folder: Path) -> None:
    """Check that the settings in results.json are those that the images were evaluated with."""
    saved = read_identity(folder / "progress" / "identity.json", WAY_OUT)
    run = result["run"]
    known = dict(result["protocol"]) | {"dtype": run["dtype"], "seed": run["seed"]}
    for name, values in run.items():
        known |= {f"{name}.{key}": value for key, value in values.items()} if isinstance(values, dict) else {}
    for key, value in saved.items():
        if key != "save_masks" and known.get(key) != value:
            raise ValueError(f"{key} is {known.get(key)} in results.json and {value} in progress/identity.json")


def _check_images(result: Mapping[str, Any], images: Sequence[ImageResult]) -> None:
    """Check the number of images, and the hashes of their ids and of their content."""
    ids, protocol = [image.image_id for image in images], result["protocol"]
    if protocol["num_images"] != len(ids):
        raise ValueError(f"results.json is of {protocol['num_images']} images, and progress/ has {len(ids)}")
    if hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest() != protocol["image_list_sha256"]:
        raise ValueError("protocol.image_list_sha256 is not the hash of the ids of its images")
    if result["run"]["photos_sha256"] != photos_fingerprint(images):
        raise ValueError("run.photos_sha256 is not the hash of the content of its images")


def _check_numbers(result: Mapping[str, Any], again: Recomputed, images: Sequence[ImageResult], folder: Path) -> None:
    """Check metrics, intervals, objects, times and memory against what the images give."""
    _require_close("metrics", result["metrics"], again.metrics)
    _require_close("interval", result["interval"], again.interval)
    n_gt = np.atleast_1d(np.sum([image.values["n_gt"] for image in images], axis=0)).tolist()
    if list(result["n_gt"].values()) != n_gt:
        raise ValueError(f"n_gt in results.json is {result['n_gt']}, and its images have {n_gt} objects")
    for name in ("ms", "cpu_ms"):
        times = summarize([ms for image in images if (ms := getattr(image, name))])
        _require_close(name, result[name] or {}, {stage: each["median"] for stage, each in times.items()})
    peak = max((image.peak_mib for image in images if image.peak_mib is not None), default=None)
    memory = result["run"].get("peak_memory")
    _require_close("run.peak_memory", {"mib": memory["mib"] if memory else None}, {"mib": peak})
    found = read_arrays(folder / "per_image.npz")
    wanted = {"image_ids": np.array([image.image_id for image in images]), **again.per_image}
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found or name not in wanted or not np.array_equal(found[name], wanted[name]):
            raise ValueError(f"{name} in per_image.npz is not what progress/ has")


def _require_close(name: str, found: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> None:
    """Check that two records of numbers are one, each a number, an interval or None."""
    if (found is None) != (wanted is None) or set(found or ()) != set(wanted or ()):
        raise ValueError(f"{name} in results.json must have {', '.join(wanted or ['nothing'])}")
    for key, value in (wanted or {}).items():
        pair = [np.ravel(np.array(each, dtype=np.float64)) for each in ((found or {})[key], value)]  # None is NaN
        same = pair[0].shape == pair[1].shape and all(
            math.isclose(a, b, abs_tol=TOLERANCE) or (math.isnan(a) and math.isnan(b))
            for a, b in zip(*pair, strict=True)
        )
        if not same:
            raise ValueError(f"{name}.{key} in results.json is {(found or {})[key]}, and its images give {value}")
