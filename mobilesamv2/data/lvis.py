"""LVIS: COCO's layout, with images of COCO's train2017 and val2017 folders."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
from PIL import Image

from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.masks import boxes_from_rles
from mobilesamv2.structures import GroundTruth
from mobilesamv2.whole_files import whole_file, write_whole


class LvisDataset(CocoDataset):
    """LVIS v1 and v0.5, and any file in its layout.

    LVIS v1 val lies half in train2017; ``coco_url`` says where an image is. ``images`` may be the folder that holds
    ``train2017`` and ``val2017``, or one that holds the images themselves.
    """

    published = (
        "LVIS v1 val is published at https://dl.fbaipublicfiles.com/LVIS/lvis_v1_val.json.zip, to be unzipped, and "
        "its images at http://images.cocodataset.org/zips/val2017.zip and "
        "http://images.cocodataset.org/zips/train2017.zip, to be unzipped side by side."
    )

    def paths(self, record: dict[str, Any]) -> list[Path]:
        """Where the image of a record may lie, the likeliest first."""
        if self.images is None:
            return []
        candidates = [self.images / record["file_name"]] if "file_name" in record else []
        if "coco_url" in record:
            inside = Path(urlparse(record["coco_url"]).path)
            candidates = [self.images / inside.parent.name / inside.name, self.images / inside.name, *candidates]
        return candidates


def write_lvis(samples: Iterable[tuple[np.ndarray, GroundTruth]], folder: Path) -> None:
    """Writes images with their objects in LVIS's layout: ``annotations.json`` and, losslessly, ``images/ID.png``.

    Objects have one category; its frequency, which lvis-api wants of each, is "f".

    Args:
        samples: RGB uint8 images and their objects.
        folder: where to; created if need be.
    """
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for image, truth in samples:
        height, width = truth.size
        name = f"{truth.image_id}.png"
        with whole_file(folder / "images" / name) as partial:
            Image.fromarray(image).save(partial, "PNG")
        images.append({"id": truth.image_id, "height": height, "width": width, "file_name": name} | _NOTHING_SAID)
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
    write_whole(folder / "annotations.json", json.dumps(content))


_NOTHING_SAID: dict[str, Any] = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
"""Of categories that an image is known to lack, or to be annotated in part with."""
