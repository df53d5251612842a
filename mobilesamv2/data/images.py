"""Decoding photos."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image


def read_rgb(file: Path | IO[bytes], name: str) -> np.ndarray:
    """A photo of any mode as RGB uint8 (H, W, 3).

    Args:
        file: a path or an open file.
        name: what an error calls the photo.

    Raises:
        ValueError: it can't be decoded; the sentence names it.
    """
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ImportError, ValueError, Image.DecompressionBombError) as error:
        # ultralytics, once imported, makes Pillow look for a HEIF decoder where it knows no format
        reason = error.__context__ if isinstance(error, ImportError) else error
        raise ValueError(f"{name} can't be decoded: {reason}") from error
