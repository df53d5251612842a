"""Whether the result of a benchmark's cell is still one of today's weights, annotations, boxes, lists and photos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from mobilesamv2.data.base import ImageDataset
from mobilesamv2.data.json_files import read_json
from mobilesamv2.files import read_arrays, sha256_of
from mobilesamv2.recipes.checks import weight_files
from mobilesamv2.recipes.evaluation import hash_of, image_list_record


def changed_inputs(folder: Path, cfg: DictConfig, with_photos: bool = True) -> Iterator[str]:
    """Yield what the result of a folder was made of and today is another; what is not there any more is not compared.

    Args:
        folder: of the evaluation.
        cfg: the configuration that it would be made with today.
        with_photos: compare every photo that is there.

    Raises:
        ValueError: if its records can't be read, or the data set can't be built though it is there.
    """
    result = read_json(folder / "results.json")
    try:
        yield from _changed_files(result["run"], result["protocol"], cfg)
        dataset = _dataset(OmegaConf.to_yaml(cfg.dataset, resolve=True))
        if dataset is not None:
            yield from _changed_lists(result["protocol"], dataset)
            if with_photos:
                yield from _changed_photos(folder, dataset)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{folder / 'results.json'} is damaged ({error!r})") from error


def _changed_files(run: Mapping[str, Any], protocol: Mapping[str, Any], cfg: DictConfig) -> Iterator[str]:
    """Yield weights, boxes and results files that are other ones, wherever they lie."""
    model: Any = run.get("model") or {}
    files = [
        (cfg.onnx_encoder, model.get("onnx_encoder_sha256")),
        (cfg.predictions, protocol.get("predictions_sha256")),
        (cfg.task.get("boxes"), protocol.get("boxes_sha256")),
    ]
    for name in ("model", "teacher", "detector"):
        if run.get(name) and cfg.get(name) is not None:
            known, now = run[name]["sha256"], weight_files(cfg[name])
            if len(known) != len(now):
                yield f"another number of weight files of {name} ({len(known)}, and now {len(now)})"
            else:
                files += zip(now, known, strict=True)
    for file, sha256 in files:
        if file and sha256 and Path(file).exists() and (found := _hash(str(file))) != sha256:
            yield f"another {file} (SHA-256 {sha256[:12]}, and now {found[:12]})"


def _changed_lists(protocol: Mapping[str, Any], dataset: ImageDataset) -> Iterator[str]:
    """Yield annotations and lists of images that are other ones."""
    now = image_list_record(dataset, range(len(dataset)))
    if protocol.get("annotations_sha256") not in (None, now["annotations_sha256"]):
        yield f"other annotations than {now['annotations']} has now"
    every = not protocol.get("skip_images_without_results")  # else the list is of those with results
    if every and protocol.get("image_list_sha256") not in (None, now["image_list_sha256"]):
        yield "other images than the settings choose now"


def _changed_photos(folder: Path, dataset: ImageDataset) -> Iterator[str]:
    """Yield the first photo that is another one."""
    index_of = {image_id: i for i, image_id in enumerate(dataset.image_ids)}
    for image_id, content_hash in tqdm(_photos(folder), "comparing photos", unit="photo", delay=2, disable=None):
        with suppress(OSError):  # it is gone
            known = content_hash and image_id in index_of
            if known and _content_hash(dataset, index_of[image_id]) != content_hash:
                yield f"another photo of image {image_id}"
                return


def _photos(folder: Path) -> list[tuple[int, str]]:
    """Return the ids of a result's images with the hashes of their photos, by id; earlier versions kept none."""
    photos: list[tuple[int, str]] = []
    for path in (folder / "progress").glob("*.npz"):
        arrays = read_arrays(path, ["image_id", "content_hash"])
        if "content_hash" in arrays:
            photos += zip(arrays["image_id"].tolist(), arrays["content_hash"].tolist(), strict=True)
    return sorted(photos)


def forget() -> None:
    """Forget hashes and data sets, whose annotations may take gigabytes."""
    for kept in (_hash, _content_hash, _dataset):
        kept.cache_clear()


@cache
def _hash(file: str) -> str:
    """Return the hash of a file or of a folder's, once for all cells that share it."""
    return hash_of(Path(file)) if Path(file).is_dir() else sha256_of([file])


@cache
def _content_hash(dataset: ImageDataset, index: int) -> str:
    return dataset.content_hash(index)


@cache
def _dataset(settings: str) -> ImageDataset | None:
    """Build a data set, once for all cells that share it; None if it is gone."""
    try:
        return instantiate(OmegaConf.create(settings), _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise ValueError(str(error.__cause__ or error)) from error
