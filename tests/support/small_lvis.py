"""A data set of three photos in LVIS's layout."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_small_lvis(folder: Path, photo: np.ndarray) -> Path:
    """Two photos with three objects, one photo without any; the annotations are ``lvis.json``."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in (1, 2, 3):
        Image.fromarray(np.roll(photo, 10 * i, axis=1)).save(folder / "images" / f"{i}.png")
        images.append({"id": i, "height": 90, "width": 130, "file_name": f"{i}.png"})
    for i, (image_id, x) in enumerate([(1, 10.0), (1, 60.0), (3, 30.0)]):
        polygon = [x, 10.0, x + 40, 10.0, x + 40, 60.0, x, 60.0]
        annotations.append({"id": i, "image_id": image_id, "category_id": 1, "segmentation": [polygon], "area": 2000.0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "frequency": "r"}]}
    (folder / "lvis.json").write_text(json.dumps(content))
    return folder
