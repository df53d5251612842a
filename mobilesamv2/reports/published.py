"""Values that papers and projects publish, kept as CSV in benchmarks/expected, beside the ones measured here."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import Any

from mobilesamv2.model_zoo import MODEL_FILES, WEIGHT_FILES, checkpoint_files

_PACKAGED = Path(__file__).parents[1] / "expected"

EXPECTED = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "benchmarks" / "expected"
"""The folder of published values: in the installed package, or in a clone."""

DETECTOR = "ObjectAwareModel.pt"
"""MobileSAMv2's, with whose boxes its values are measured."""

NUM_IMAGES = {"instances_val2017.json": 5000, "lvis_v1_val.json": 19809}
"""Of the annotation files that published values are of."""


@dataclass(frozen=True)
class Published:
    """A published value.

    Attributes:
        model: name in ``list_models``, whose published weight file it is of.
        protocol: name in conf/protocol.
        annotations: name of the annotation file.
        images: number of them; None for all of the file.
        metric: name in results.json.
        value: percent, or clicks for ``NoC``, as it is published.
        source: whose value it is: a paper with its arXiv number, or a repository's README.
        table: in the source.
        note: what the source says of the protocol.
    """

    model: str
    protocol: str
    annotations: str
    images: int | None
    metric: str
    value: float
    source: str
    table: str
    note: str

    def is_of(self, num_images: int | None) -> bool:
        """Return whether it is of so many images."""
        return num_images is not None and num_images == (self.images or NUM_IMAGES.get(self.annotations))


@dataclass(frozen=True)
class Comparison:
    """A published value beside the measured one.

    Attributes:
        published: the value.
        inside: whether it lies in the measured interval; None where there is no interval, or other images.
        num_images: that were measured.
    """

    published: Published
    inside: bool | None
    num_images: int | None

    def __str__(self) -> str:
        """Return the value with its source and whether it lies in the interval, for a table."""
        place = {True: "inside", False: "outside", None: "no interval"}[self.inside]
        if not self.published.is_of(self.num_images):
            place = f"not comparable, {self.num_images} images here"
        images = None if self.published.images is None else f"{self.published.images} images"
        parts = [self.published.source, self.published.table, images, self.published.note]
        return f"{self.published.value:g} ({', '.join(filter(None, parts))}: {place})"


def read_published(folder: Path = EXPECTED) -> list[Published]:
    """Read all published values of a folder.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if a file has other columns, or a line can't be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} of published values.")
    return [value for path in sorted(folder.glob("*.csv")) for value in _read(path)]


def _read(path: Path) -> list[Published]:
    columns = [field.name for field in fields(Published)]
    values = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            if reader.fieldnames != columns:
                raise ValueError(f"its columns must be {', '.join(columns)}, got {reader.fieldnames}")
            for row in reader:
                values.append(_published(row))
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            raise ValueError(f"Line {reader.line_num} of {path} can't be read: {error}.") from error
    return values


def _published(row: Mapping[str, str]) -> Published:
    for name in ("model", "protocol", "annotations", "metric", "source", "table"):
        if not row[name]:
            raise ValueError(f"{name} is empty")
    value = float(row["value"])
    if not (math.isfinite(value) and 0 <= value <= 100):
        raise ValueError(f"value must be a percentage, got {row['value']}")
    return Published(**dict(row) | {"value": value, "images": int(row["images"]) if row["images"] else None})  # pyright: ignore


def comparisons(
    result: Mapping[str, Any], protocol: str, metric: str, published: Sequence[Published]
) -> list[Comparison]:
    """Return the published values of a metric of a result, of the same weights, protocol and annotations.

    A model with other weights than the published file has none, random ones included, nor has one with another input,
    or a detector other than MobileSAMv2's, of whose boxes the published values are. On another number of images a value
    has no verdict.

    Args:
        result: the content of a results.json.
        protocol: its name.
        metric: its name.
        published: of ``read_published``.
    """
    run, record = result["run"], result["protocol"]
    model, annotations = run.get("model") or {}, PurePath(str(record.get("annotations"))).name.removesuffix(".gz")
    detector = run.get("detector")
    own_detector = detector is not None and [PurePath(file).name for file in checkpoint_files(detector)] != [DETECTOR]
    if not has_published_weights(model) or own_detector:
        return []
    interval, known = (result["interval"] or {}).get(metric), (model.get("name"), protocol, annotations, metric)
    unit, num_images = 1 if metric.startswith("NoC") else 100, record.get("num_images")

    def inside(value: Published) -> bool | None:
        if interval is None or not value.is_of(num_images):
            return None
        return interval[0] <= value.value / unit <= interval[1]

    return [
        Comparison(each, inside(each), num_images)
        for each in published
        if (each.model, each.protocol, each.annotations, each.metric) == known
    ]


def has_published_weights(model: Mapping[str, Any]) -> bool:
    """Return whether a model has the weights that are published under its name, by its record in a result."""
    files, hashes = checkpoint_files(model), model.get("sha256") or []
    names = MODEL_FILES.get(str(model.get("name")), ())
    is_changed = any(model.get(key) for key in ("allow_partial", "image_size", "onnx_encoder"))
    if not files or tuple(PurePath(file).name for file in files) != names or is_changed:
        return False
    if len(hashes) != len(names):  # a record without its hashes proves nothing
        return False
    return all(WEIGHT_FILES[name].sha256 in (None, found) for name, found in zip(names, hashes, strict=True))
