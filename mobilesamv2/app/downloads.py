"""Files that a visitor downloads: a mask, a cut-out, annotations in COCO's layout, all at the size of their photo."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from mobilesamv2.app.session import Photo, Prediction
from mobilesamv2.masks import areas, boxes_from_rles, encode
from mobilesamv2.structures import RLE, Masks

NO_MASK = "There is no mask yet: click on an object, or draw a box."
"""Shown when a download requires a mask."""

FULLY_OPAQUE = 255


def mask_png(photo: Photo, prediction: Prediction) -> bytes:
    """Return a mask as a PNG of the photo's size, white on black, one bit a pixel."""
    return _png(Image.fromarray(resize_mask(prediction.mask, photo.size)))


def cutout_png(photo: Photo, prediction: Prediction) -> bytes:
    """Return the part of the photo that a mask covers as a PNG, transparent outside it and no larger than its box.

    Raises:
        ValueError: if the mask is empty, or the photo's file is no longer there.
    """
    mask = resize_mask(prediction.mask, photo.size)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise ValueError("The mask is empty, so there is nothing to cut out.")
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha = np.where(mask[box], FULLY_OPAQUE, 0).astype(np.uint8)
    return _png(Image.fromarray(np.dstack([photo.full_size()[box], alpha]), "RGBA"))


def prediction_json(photo: Photo, prediction: Prediction, model: str) -> bytes:
    """Return the mask of a visitor's points and box in COCO's layout, with SAM's keys for the prompt."""
    rle = _encode(resize_mask(prediction.mask, photo.size))
    points, box = prediction.interactions.points, prediction.interactions.box
    annotation: dict[str, Any] = {"segmentation": rle, "predicted_iou": prediction.predicted_iou}
    scale = _scale(photo)
    if points:
        annotation["point_coords"] = (np.array([point[:2] for point in points]) * scale).tolist()
        annotation["point_labels"] = [int(point.foreground) for point in points]
    if box is not None:
        annotation["prompt_box_xyxy"] = (np.array(box) * [*scale, *scale]).tolist()
    has_pixels = bool(prediction.mask.any())
    return _coco(photo, [annotation | {"bbox": _xywh(rle)}] if has_pixels else [], {"model": model})


def masks_json(photo: Photo, masks: Masks, made_by: Mapping[str, Any]) -> bytes:
    """Return all masks of a photo in COCO's layout.

    Args:
        photo: the photo.
        masks: at the size at which it is shown.
        made_by: the model and the settings of its prompt sampler, as plain values.
    """
    if photo.size != masks.size:
        x, y = _scale(photo)
        rles = [_encode(resize_mask(mask, photo.size)) for mask in masks]
        prompts = masks.prompts
        points = None if prompts.points is None else prompts.points * torch.tensor([x, y], dtype=torch.float32)
        boxes = prompts.boxes_xyxy
        boxes = None if boxes is None else boxes * torch.tensor([x, y, x, y], dtype=torch.float32)
        prompts = replace(prompts, points=points, boxes_xyxy=boxes)
        masks = replace(masks, size=photo.size, rles=rles, boxes_xyxy=boxes_from_rles(rles), prompts=prompts)
    return _coco(photo, masks.to_coco(1), made_by)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarge a mask, bool (H, W), to another size (H, W), with smooth edges; no mask becomes empty."""
    if mask.shape == size:
        return mask
    height, width = size
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    smooth = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)) > 127
    return smooth if smooth.any() else np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) > 0


def _scale(photo: Photo) -> tuple[float, float]:
    """Return by how much the file is wider and higher than the photo as it is shown."""
    shown = photo.image.shape
    return photo.size[1] / shown[1], photo.size[0] / shown[0]


def _encode(mask: np.ndarray) -> RLE:
    return encode(torch.from_numpy(np.ascontiguousarray(mask.T))[None])[0]


def _xywh(rle: RLE) -> list[float]:
    x0, y0, x1, y1 = boxes_from_rles([rle])[0].tolist()
    return [x0, y0, x1 - x0 + 1, y1 - y0 + 1]


def _coco(photo: Photo, annotations: Sequence[Mapping[str, Any]], made_by: Mapping[str, Any]) -> bytes:
    height, width = photo.size
    file_name = photo.path.name if photo.path else f"{photo.name}.png"
    sizes = areas([annotation["segmentation"] for annotation in annotations]).tolist()
    numbered = [
        {"id": number, "image_id": 1, "category_id": 1, "area": area, "iscrowd": 0, **annotation}
        for number, (annotation, area) in enumerate(zip(annotations, sizes, strict=True), 1)
    ]
    content = {
        "info": {"description": "Masks of mobilesamv2's page; sizes are of the upright photo.", "made_by": made_by},
        "images": [{"id": 1, "file_name": file_name, "width": width, "height": height}],
        "annotations": numbered,
        "categories": [{"id": 1, "name": "object"}],
    }
    return json.dumps(content).encode()


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def mask_layer(mask: np.ndarray) -> bytes:
    """Return a mask as a PNG to lay over the photo: its pixels half transparent, its outline opaque."""
    padded = np.pad(mask, 2)
    inner = mask.copy()
    for dy, dx in ((0, 2), (4, 2), (2, 0), (2, 4)):
        inner &= padded[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
    layer = Image.fromarray(mask.astype(np.uint8) + (mask & ~inner), "P")
    layer.putpalette([0, 0, 0, 30, 136, 255, 255, 255, 255])
    file = io.BytesIO()
    layer.save(file, "PNG", bits=2, transparency=bytes([0, 128, 235]), compress_level=6)
    return file.getvalue()
