"""Masks that several tests measure."""

import numpy as np
from pycocotools import mask as coco_mask

SIZE = (24, 30)


def rectangle(x: int, y: int, w: int, h: int, size: tuple[int, int] = SIZE) -> dict:
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = coco_mask.encode(mask)
    return {"size": list(size), "counts": rle["counts"].decode()}
