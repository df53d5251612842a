"""Points, labels, boxes and masks as users pass them, checked and converted to tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobilesamv2.structures import PointLabel, Prompts

LARGEST = 1e9
"""Of coordinates and logits; far beyond those of any image or model, and far below where float32 overflows."""


def check_prompts(
    points: Any, labels: Any, boxes: Any, mask_input: Any, mask_side: int
) -> tuple[Prompts | None, Tensor | None]:
    """Return N prompts, None where there are masks alone, and mask inputs (N, 1, S/4, S/4), None where there are none.

    Args:
        points: (N, P, 2) xy, pixels of the image; (P, 2) is one prompt.
        labels: (N, P), or (P,) for one prompt; None is foreground.
        boxes: (N, 4) xyxy, pixels of the image; (4,) is one box.
        mask_input: (N, S/4, S/4) or (N, 1, S/4, S/4) logits; one mask serves all prompts.
        mask_side: S/4, pixels.

    Raises:
        ValueError: if an argument is no array of finite numbers up to ``LARGEST`` of its shape, arguments disagree, or
            there is none.
    """
    point_tensor = _points(points)
    label_tensor = _labels(labels, point_tensor)
    box_tensor = None if boxes is None else _shaped("boxes", boxes, (None, 4), "(N, 4), or (4,) for one box")
    mask_tensor = _masks(mask_input, mask_side)
    lengths = {
        name: len(tensor)
        for name, tensor in (("points", point_tensor), ("boxes", box_tensor), ("mask_input", mask_tensor))
        if tensor is not None
    }
    if not lengths:
        raise ValueError("Prompts must have points, boxes or mask_input, got none of them.")
    total = lengths.get("points", lengths.get("boxes", lengths.get("mask_input", 0)))
    if mask_tensor is not None and len(mask_tensor) == 1:
        mask_tensor = mask_tensor.expand(total, -1, -1, -1)
        lengths.pop("mask_input")
    if len(set(lengths.values())) > 1:
        found = " and ".join(f"{number} of {name}" for name, number in lengths.items())
        raise ValueError(f"points, boxes and mask_input must be of the same number of prompts, got {found}.")
    if total == 0:
        raise ValueError("Prompts must not be empty, got 0 prompts.")
    if point_tensor is not None and not point_tensor.shape[1] and box_tensor is None and mask_tensor is None:
        shape = tuple(point_tensor.shape)
        raise ValueError(f"Prompts must have at least one point each, a box or a mask, got points of shape {shape}.")
    if point_tensor is None and box_tensor is None:
        return None, mask_tensor
    return Prompts(points=point_tensor, labels=label_tensor, boxes_xyxy=box_tensor), mask_tensor


def _points(points: Any) -> Tensor | None:
    """Return points as (N, P, 2) float64."""
    if points is None:
        return None
    return _shaped("points", points, (None, None, 2), "(N, P, 2), or (P, 2) for one prompt of P points")


def _labels(labels: Any, points: Tensor | None) -> Tensor | None:
    """Return labels as (N, P) int64, one for each of the points (N, P, 2)."""
    if points is None:
        if labels is not None:
            raise ValueError("labels must come with points, got labels and no points.")
        return None
    if labels is None:
        return torch.full(points.shape[:2], PointLabel.FOREGROUND, dtype=torch.int64)
    array = _numbers("labels", labels, or_bool=True)
    tensor = torch.from_numpy(array[None] if array.ndim == 1 else array)
    if tensor.shape != points.shape[:2]:
        raise ValueError(
            f"labels must have one entry per point, got shape {array.shape} for points of shape {tuple(points.shape)}."
        )
    known = torch.tensor(list(PointLabel), dtype=torch.float64)
    if not torch.isin(tensor, known).all():
        strange = sorted(set(tensor[~torch.isin(tensor, known)].tolist()))
        raise ValueError(f"labels must be 1 (foreground), 0 (background) or -1 (padding), got {strange[0]:g}.")
    return tensor.long()


def _masks(mask_input: Any, side: int) -> Tensor | None:
    """Return mask inputs as (N, 1, S/4, S/4) float32."""
    if mask_input is None:
        return None
    array = _numbers("mask_input", mask_input)
    axes = (None, 1, side, side) if array.ndim == 4 else (None, side, side)
    expected = f"(N, {side}, {side}) or (N, 1, {side}, {side}), low-res logits of an earlier prediction"
    return _shaped("mask_input", array, axes, expected).reshape(-1, 1, side, side).float()


def _numbers(name: str, value: Any, or_bool: bool = False) -> np.ndarray:
    """Return an array-like, with tensors on any device in it, as float64."""
    try:
        array = np.asarray(_on_cpu(value))
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; objects that can't become an array
        raise ValueError(
            f"{name} must be an array, a list or a tensor of numbers, all rows of one length, got {_shown(value)}."
        ) from error
    if array.dtype.kind not in ("iufb" if or_bool else "iuf") and array.size:
        raise ValueError(f"{name} must be an array, a list or a tensor of numbers, got {_shown(value)}.")
    return array.astype(np.float64)


def _on_cpu(value: Any) -> Any:
    """Return a value with its tensors as NumPy arrays, in lists and tuples too."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        return (tensor.double() if tensor.is_floating_point() else tensor).numpy()  # NumPy has no bfloat16
    return [_on_cpu(part) for part in value] if isinstance(value, list | tuple) else value


def _shaped(name: str, value: Any, shape: tuple[int | None, ...], expected: str) -> Tensor:
    """Return an array-like of finite numbers as float64; None is any length, and without its first axis it is one."""
    array = _numbers(name, value)
    full = array[None] if array.ndim == len(shape) - 1 else array
    fits = full.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, full.shape, strict=True))
    if not fits:
        raise ValueError(f"{name} must have shape {expected}, got {array.shape}.")
    if not np.isfinite(full).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity.")
    if (np.abs(full) > LARGEST).any():
        raise ValueError(
            f"{name} must be between -{LARGEST:g} and {LARGEST:g}, got {full[np.abs(full) > LARGEST][0]:g}."
        )
    return torch.from_numpy(full)


def _shown(value: Any) -> str:
    """Return a value as a message shows it: shortened, with its type."""
    text = repr(value)
    return f"{text if len(text) <= 60 else f'{text[:57]}...'} of type {type(value).__name__}"
