"""Writers of data sets in the layouts of LVIS and SA-1B."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilesamv2.files import atomic_write, write_text_atomic
from mobilesamv2.masks import boxes_from_rles
from mobilesamv2.structures import GroundTruth


def write_lvis(samples: Iterable[tuple[np.ndarray, GroundTruth]], folder: Path) -> None:
    """Write images with their objects in LVIS's layout: ``annotations.json`` and, losslessly, ``images/ID.png``.

    Objects have one category; its frequency, which lvis-api requires, is "f".

    Args:
        samples: RGB uint8 (H, W, 3) images and their objects.
        folder: output folder, created if missing.

    Raises:
        OSError: if a file can't be written.
    """
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for image, truth in samples:
        height, width = truth.size
        name = f"{truth.image_id}.png"
        with atomic_write(folder / "images" / name) as partial:
            Image.fromarray(image).save(partial, "PNG")
        record = {"id": truth.image_id, "height": height, "width": width, "file_name": name}
        images.append(record | _EMPTY_CATEGORY_LISTS)
        for rle, area in zip(truth.rles, truth.areas, strict=True):
            x0, y0, x1, y1 = boxes_from_rles([rle])[0].tolist()
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": truth.image_id,
                    "category_id": 1,
                    "segmentation": rle,
                    "area": area,
                    "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1],
                }
            )
    category = {"id": 1, "name": "object", "frequency": "f"}
    content = {"images": images, "annotations": objects, "categories": [category]}
    write_text_atomic(folder / "annotations.json", json.dumps(content))


_EMPTY_CATEGORY_LISTS: dict[str, Any] = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
"""No category is known to be absent from an image, or to be annotated only in part."""


def write_sa1b_tar(samples: Iterable[tuple[np.ndarray, GroundTruth]], path: Path) -> None:
    """Write images with their masks as one tar in SA-1B's layout, JPEG quality 95.

    Args:
        samples: RGB uint8 (H, W, 3) images and their objects.
        path: the tar to write.

    Raises:
        OSError: if it can't be written.
    """
    with atomic_write(path) as partial, tarfile.open(partial, "w") as tar:
        for image, truth in samples:
            height, width = truth.size
            name = f"sa_{truth.image_id}"
            record = {"image_id": truth.image_id, "width": width, "height": height, "file_name": f"{name}.jpg"}
            objects = [
                {"id": truth.image_id * 10_000 + i, "segmentation": rle, "area": area, "bbox": _sa1b_box(rle)}
                for i, (rle, area) in enumerate(zip(truth.rles, truth.areas, strict=True))
            ]
            jpeg = io.BytesIO()
            Image.fromarray(image).save(jpeg, "JPEG", quality=95)
            _add_member(tar, f"{name}.jpg", jpeg.getvalue())
            _add_member(tar, f"{name}.json", json.dumps({"image": record, "annotations": objects}).encode())


def _sa1b_box(rle: dict[str, Any]) -> list[float]:
    """Return xywh where width and height reach from the first to the last covered pixel, as in SA-1B."""
    x0, y0, x1, y1 = boxes_from_rles([rle])[0].tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
