"""Values of more than 8 bits as RGB of 8 bits: the rule, and one range for all images where it is set."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from mobilesamv2.data.warn_once import WarnOnce

logger = logging.getLogger(__name__)

ValueRange = tuple[float, float]
"""The values that become 0 and 255."""

PERCENTILES = (0.1, 99.9)
"""Of an image's finite values: its darkest and its brightest, without outliers."""

MAX_SAMPLED = 2**22
"""Values that percentiles are computed from; of more, rows and columns are skipped evenly."""

CONVERTED_AT_ONCE = 2**18
"""Values that are converted at once, so that their temporary copies stay small, whatever the size of the image."""

MAX_8_BITS, MAX_16_BITS = 255, 65535

_warn_of_stretching = WarnOnce(logger)


def check_value_range(value_range: Any) -> ValueRange | None:
    """Return a value range, or None for the rule of ``to_rgb``.

    Raises:
        ValueError: if it is not two finite numbers, the lower one first.
    """
    if value_range is None:
        return None
    try:
        low, high = map(float, value_range)
    except (TypeError, ValueError):
        low, high = np.nan, np.nan
    if not -np.inf < low < high < np.inf:
        raise ValueError(f"value_range must be two numbers, the lower one first, or null, got {value_range}.")
    return low, high


def to_rgb(values: np.ndarray, value_range: ValueRange | None = None, name: str = "An image") -> np.ndarray:
    """Convert an image of any numbers to RGB uint8.

    8 bits stay as they are. Of more bits, the darkest and the brightest value of an image (its percentiles 0.1 and
    99.9) decide:

    - they lie in a common range, 0 to 1 (floats only), 0 to 255 or 0 to 65535, and the brightest in its upper three
      quarters: this range becomes 0 to 255;
    - otherwise, as with 12 bits in 16, signed values or a dark image, they themselves become 0 and 255. A warning says
      so once a run.

    Values beyond are clipped; NaN becomes black.

    Args:
        values: (H, W), (H, W, 1), (H, W, 3), or (H, W, 4) whose alpha is dropped.
        value_range: the values that become 0 and 255 in every image of more than 8 bits; None is the rule above.
        name: name of the image in messages.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: if ``values`` has another shape, no numbers, or ``value_range`` is none.
    """
    value_range = check_value_range(value_range)
    values = values[:, :, None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or values.dtype.kind not in "buif" or values.size == 0:
        raise ValueError(
            f"{name} must have shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) and real numbers, got {values.dtype} "
            f"{values.shape}."
        )
    colour = values[:, :, :3]
    if colour.dtype == bool:
        colour = colour.astype(np.uint8) * MAX_8_BITS
    if colour.dtype == np.uint8:
        return np.ascontiguousarray(np.broadcast_to(colour, (*colour.shape[:2], 3)))
    return _stretched(colour, *(value_range or _range_of(colour, name)))


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values (H, W, 1 or 3) as RGB uint8 (H, W, 3), of which ``low`` is 0 and ``high`` 255."""
    height, width, channels = values.shape
    rgb = np.empty((height, width, 3), np.uint8)
    table = None
    if values.dtype.kind in "ui" and values.dtype.itemsize == 2:  # looked up, several times as fast
        table = _scaled(np.arange(2**16, dtype=np.uint16).view(values.dtype.newbyteorder("=")), low, high)
    pixels, converted = values.reshape(-1, channels), rgb.reshape(-1, 3)
    step = CONVERTED_AT_ONCE // channels
    for start in range(0, len(pixels), step):
        part = pixels[start : start + step]
        if table is None:
            converted[start : start + step] = _scaled(part, low, high)
        else:
            converted[start : start + step] = table[part.astype(part.dtype.newbyteorder("="), copy=False).view("u2")]
    return rgb


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values of any shape as uint8, of which ``low`` is 0 and ``high`` 255; NaN is 0."""
    clipped = np.nan_to_num(values.astype(np.float64), nan=low).clip(low, high)
    return ((clipped - low) * (MAX_8_BITS / (high - low))).round().astype(np.uint8)


def _range_of(values: np.ndarray, name: str) -> ValueRange:
    """Return the values (H, W, C) of an image that become 0 and 255 by the rule of ``to_rgb``."""
    step = int(np.ceil(np.sqrt(max(1, values.size / MAX_SAMPLED))))
    sampled = values[::step, ::step].astype(np.float64)
    finite = sampled[np.isfinite(sampled)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = map(float, np.percentile(finite, PERCENTILES))
    for top in (*([1] if values.dtype.kind == "f" else []), MAX_8_BITS, MAX_16_BITS):
        if low >= 0 and top / 4 < high <= top:
            return 0.0, float(top)
    if low == high:  # nearly all of one value
        low, high = float(finite.min()), float(finite.max())
    if low == high:
        return low, low + 1
    _warn_of_stretching(
        f"{name} has values from {finite.min():g} to {finite.max():g}, which no common range fits: {low:g} becomes "
        f"black and {high:g} white, its percentiles {PERCENTILES[0]} and {PERCENTILES[1]}. Further images are treated "
        "likewise, each by its own. value_range sets one range for all (dataset.value_range=[LOW,HIGH], "
        "--value-range LOW HIGH)."
    )
    return low, high
