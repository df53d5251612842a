"""A visitor's photo and the masks of their points and box, without the page that shows them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mobilesamv2.app.everything import AutoMasks
from mobilesamv2.data.images import TooManyPixelsError, read_rgb, readable_suffixes
from mobilesamv2.data.pixel_values import ValueRange
from mobilesamv2.metrics.stage_time import StageTimer
from mobilesamv2.models.sam import Sam
from mobilesamv2.segany import SegAny
from mobilesamv2.transforms import check_image

MAX_SIDE = 1280
"""Pixels; larger photos are shown and segmented at this size, and their masks downloaded at the photo's own."""

MAX_DECODED_PIXELS = 50_000_000
"""Pixels of a photo that the page decodes, a few seconds' work; a file of half a megabyte may expand to far more, and
all visitors would wait for it."""

MAX_DEEP_PIXELS = 25_000_000
"""Pixels of a photo of more than 8 bits per value that the page decodes; they take two to three times as long."""

MAX_POINTS = 100
"""Points of one prompt; the time of the decoder grows with them."""

NO_PHOTO = "Open a photo first, or choose an example. The page closes a photo after an hour, and when many are open."
"""Shown when an action requires a photo."""


class Point(NamedTuple):
    """A click: xy in pixels of the photo as it is shown, on the object or on what is not the object."""

    x: float
    y: float
    foreground: bool = True


class Box(NamedTuple):
    """A box from its upper left to its lower right corner, in pixels of the photo as it is shown."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Interactions:
    """The points and the box that together prompt one mask; without any there is none."""

    points: tuple[Point, ...] = ()
    box: Box | None = None

    def __bool__(self) -> bool:
        return bool(self.points) or self.box is not None


@dataclass(frozen=True)
class Photo:
    """A visitor's photo.

    Attributes:
        image: RGB uint8 (H, W, 3), as it is shown and segmented: the longest side is at most MAX_SIDE.
        size: (H, W) of the file, turned upright; masks are downloaded at this size.
        path: the file, which the page deletes after a while; None if the photo was drawn.
        value_range: the values that become 0 and 255 where the file has more than 8 bits.
    """

    image: np.ndarray
    size: tuple[int, int]
    path: Path | None = None
    value_range: ValueRange | None = None

    @property
    def name(self) -> str:
        """Return the file's name without its suffix."""
        return self.path.stem if self.path else "scene"

    def full_size(self) -> np.ndarray:
        """Return RGB uint8 (H, W, 3) at the size of the file.

        Raises:
            ValueError: if the file is no longer there.
        """
        if self.path is None or self.image.shape[:2] == self.size:
            return self.image
        try:
            return _read(self.path, self.value_range)
        except FileNotFoundError as error:
            raise ValueError(
                "The photo's file was deleted, after an hour or to make room for others: open it again."
            ) from error


class Prediction(NamedTuple):
    """The mask for all interactions together.

    Attributes:
        mask: (H, W) bool, of the photo as it is shown.
        predicted_iou: the model's own estimate.
        ms: time of the mask decoder and of resizing its mask to the photo's size, milliseconds.
        interactions: that it was predicted for.
    """

    mask: np.ndarray
    predicted_iou: float
    ms: float
    interactions: Interactions


@dataclass
class Session:
    """One visitor's photo, encoded once by each model that is used on it.

    Attributes:
        models: by name, in eval mode; sessions share them.
        photo: the photo.
        encoder_ms: milliseconds of each model's image encoder.
        predictions: the last one of each model.
        everything: the last masks of everything in the photo, by the name of their place on the page.
        stop: set when the visitor stops segmenting everything.
    """

    models: Mapping[str, Sam]
    photo: Photo
    encoder_ms: dict[str, float] = field(default_factory=dict)
    predictions: dict[str, Prediction] = field(default_factory=dict)
    everything: dict[str, AutoMasks] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    _encoded: dict[str, SegAny] = field(default_factory=dict)

    def encode(self, model: str) -> SegAny:
        """Return the model with the photo set; the first call encodes it."""
        if model not in self._encoded:
            sam = self.models[model]
            segany, timer = SegAny(sam), StageTimer(sam.device)
            with timer.stage("image_encoder"):
                segany.set_image(self.photo.image)
            self._encoded[model], self.encoder_ms[model] = segany, timer.ms["image_encoder"]
        return self._encoded[model]

    def predict(self, interactions: Interactions, model: str) -> Prediction | None:
        """Predict the mask for all interactions as one prompt; None without any.

        A single point is ambiguous, so the model returns three masks for it, and the one of highest predicted IoU is
        taken.
        """
        if not interactions:
            return None
        segany = self.encode(model)
        timer = StageTimer(segany.sam.device)
        points, box = interactions.points, interactions.box
        with timer.stage("mask_decoder"):
            masks, predicted_iou, _ = segany.predict(
                points=[point[:2] for point in points] or None,
                labels=[int(point.foreground) for point in points] or None,
                boxes=box,
                multimask_output=len(points) == 1 and box is None,
            )
        best = int(predicted_iou[0].argmax())
        return Prediction(masks[0, best], float(predicted_iou[0, best]), timer.ms["mask_decoder"], interactions)

    def decoder_ms(self, model: str) -> float:
        """Return the milliseconds that the mask of a click takes."""
        height, width = self.photo.image.shape[:2]
        prediction = self.predict(Interactions((Point(width / 2, height / 2),)), model)
        return 0.0 if prediction is None else prediction.ms

    def segment(self, interactions: Interactions, models: Sequence[str]) -> dict[str, Prediction]:
        """Predict with each of the models, and keep the predictions for download; empty without interactions."""
        found = {model: self.predict(interactions, model) for model in models}
        self.predictions = {model: prediction for model, prediction in found.items() if prediction is not None}
        return self.predictions


def open_photo(path: str | Path, value_range: ValueRange | None = None) -> Photo:
    """Load a photo, turned as its EXIF orientation says and resized for the page if it is larger than MAX_SIDE.

    Raises:
        ValueError: if it can't be decoded, or has more than ``MAX_DECODED_PIXELS`` or, of more than 8 bits,
            ``MAX_DEEP_PIXELS``; the message names no path, since a visitor reads it.
    """
    try:
        values = _read(Path(path), value_range)
    except TooManyPixelsError as error:
        limit, deep = MAX_DECODED_PIXELS // 1_000_000, MAX_DEEP_PIXELS // 1_000_000
        raise ValueError(
            f"This photo has more than {limit} megapixels, the most that this page decodes ({deep} of more than 8 bits "
            "per colour): resize it first, or use `mobilesamv2 segment`."
        ) from error
    except (ValueError, OSError) as error:
        formats = ", ".join(suffix.removeprefix(".") for suffix in readable_suffixes())
        raise ValueError(f"This photo can't be decoded. Supported formats: {formats}.") from error
    shown = Image.fromarray(values)
    shown.thumbnail((MAX_SIDE, MAX_SIDE))
    return Photo(check_image(np.array(shown)), (values.shape[0], values.shape[1]), Path(path), value_range)


def _read(path: Path, value_range: ValueRange | None) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"There is no photo {path}.")
    return read_rgb(path, "This photo", "always", value_range, MAX_DECODED_PIXELS, max_deep_pixels=MAX_DEEP_PIXELS)


def read_interactions(sent: Any, size: tuple[int, int]) -> Interactions:
    """Read interactions as the page sends them.

    Args:
        sent: ``points``, a list of x, y and whether the point is on the object, and ``box``, x0, y0, x1, y1 of two
            opposite corners, or None; coordinates are fractions of the photo's width and height.
        size: (H, W) of the photo as it is shown, pixels.

    Raises:
        ValueError: if they are anything else, outside the photo, or a box without width or height.
    """
    if not isinstance(sent, Mapping) or not isinstance(sent.get("points", []), list):
        raise ValueError("Interactions must be points and a box.")
    points = sent.get("points", [])
    if len(points) > MAX_POINTS:
        raise ValueError(f"At most {MAX_POINTS} points are taken, got {len(points)}: undo some.")
    height, width = size
    read = []
    for point in points:
        if not isinstance(point, list) or len(point) != 3:
            raise ValueError("A point must be x, y and whether it is on the object.")
        x, y = _fractions(point[:2])
        read.append(Point(x * width, y * height, bool(point[2])))
    corners = sent.get("box")
    if corners is None:
        return Interactions(tuple(read))
    if not isinstance(corners, list) or len(corners) != 4:
        raise ValueError("A box must be x0, y0, x1, y1.")
    x0, y0, x1, y1 = _fractions(corners)
    if x0 == x1 or y0 == y1:
        raise ValueError("A box must have a width and a height: drag from one corner to the opposite one.")
    box = Box(min(x0, x1) * width, min(y0, y1) * height, max(x0, x1) * width, max(y0, y1) * height)
    return Interactions(tuple(read), box)


def _fractions(values: list[Any]) -> list[float]:
    """Return coordinates after a check that each is a number from 0 to 1."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError("Points and boxes must be inside the photo, got a coordinate outside it.")
    return values
