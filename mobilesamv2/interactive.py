"""What the page to play with does, without the page: a photo, gestures on it, and everything in it with its times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mobilesamv2.data.drawing import draw_scene
from mobilesamv2.data.images import read_rgb
from mobilesamv2.metrics.stage_time import STAGES, StageTimer
from mobilesamv2.models.object_detector import build_detector
from mobilesamv2.models.sam import Sam
from mobilesamv2.pretrained import default_grid, load_pretrained
from mobilesamv2.prompts.grid import Grid
from mobilesamv2.prompts.object_aware import Detector, ObjectAware
from mobilesamv2.prompts.sampler import PromptSampler
from mobilesamv2.released import RELEASED
from mobilesamv2.segany import SegAny
from mobilesamv2.segevery import SegEvery
from mobilesamv2.structures import Filters
from mobilesamv2.transforms import check_image
from mobilesamv2.visualize import overlay

LONGEST = 1280
"""Pixels; a longer photo is shrunk to this, since its picture goes to the page anew with every click."""

NO_PHOTO = "Drop a photo first, or have a scene drawn."
"""What is said where there is nothing to point at."""

SAM_FILTERS = Grid().filters
"""Predicted IoU and stability of SAM's mask generator."""

DETECTOR_FILE = "ObjectAwareModel.pt"
"""MobileSAMv2's detector, looked for in the folder of weights."""


class Point(NamedTuple):
    """A click: pixels of the photo, and whether the object is there or is not."""

    x: float
    y: float
    foreground: bool = True


class Box(NamedTuple):
    """A drag, from one corner to the opposite one, pixels of the photo."""

    x0: float
    y0: float
    x1: float
    y1: float


class Answer(NamedTuple):
    """The mask of all gestures together.

    Attributes:
        mask: (H, W) bool.
        predicted_iou: the model's own estimate.
        ms: time of the mask decoder, and of bringing its mask to the photo's size.
    """

    mask: np.ndarray
    predicted_iou: float
    ms: float


class Sitting:
    """One user's photo, encoded once, and the gestures made on it.

    Args:
        sam: the model, in eval mode; several sittings may share it.
        image: RGB uint8 (H, W, 3).

    Raises:
        ValueError: it is not such an array.
    """

    def __init__(self, sam: Sam, image: np.ndarray) -> None:
        self.image = check_image(image)
        self.gestures: list[Point | Box] = []
        self._segany = SegAny(sam)
        self._timer = StageTimer(sam.device)
        with self._timer.stage("image_encoder"):
            self._segany.set_image(image)
        self.encoder_ms = self._timer.ms["image_encoder"]

    def add(self, gesture: Point | Box) -> None:
        """Adds a point to the prompt, or a box, which takes the place of an earlier one.

        Raises:
            ValueError: it lies outside of the photo, or is a box without width or height.
        """
        height, width = self.image.shape[:2]
        corners = [gesture[:2]] if isinstance(gesture, Point) else [gesture[:2], gesture[2:]]
        if not all(0 <= x <= width and 0 <= y <= height for x, y in corners):
            raise ValueError(f"This is outside of the photo, which is {width} x {height} pixels.")
        if isinstance(gesture, Box) and (gesture.x0 == gesture.x1 or gesture.y0 == gesture.y1):
            raise ValueError("A box has a width and a height: drag from one corner to the opposite one.")
        self.gestures.append(gesture)

    def undo(self) -> None:
        """Takes the last gesture back; nothing without any."""
        del self.gestures[-1:]

    def clear(self) -> None:
        """Takes all gestures back."""
        self.gestures.clear()

    @property
    def points(self) -> list[Point]:
        """All points."""
        return [gesture for gesture in self.gestures if isinstance(gesture, Point)]

    @property
    def box(self) -> Box | None:
        """The last box, from its upper left corner to its lower right one."""
        boxes = [gesture for gesture in self.gestures if isinstance(gesture, Box)]
        if not boxes:
            return None
        x0, y0, x1, y1 = boxes[-1]
        return Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))

    def answer(self) -> Answer | None:
        """The mask of all gestures as one prompt; None without any.

        A single point is ambiguous, hence the best of three masks answers it, by predicted IoU.
        """
        if not self.gestures:
            return None
        points, box = self.points, self.box
        self._timer.start_image()
        with self._timer.stage("mask_decoder"):
            masks, predicted_iou, _ = self._segany.predict(
                points=[point[:2] for point in points] or None,
                labels=[int(point.foreground) for point in points] or None,
                boxes=box,
                multimask=len(self.gestures) == 1 and box is None,
            )
        best = int(predicted_iou[0].argmax())
        return Answer(masks[0, best], float(predicted_iou[0, best]), self._timer.ms["mask_decoder"])

    def picture(self, answer: Answer | None) -> np.ndarray:
        """The photo with the mask over it, RGB uint8 (H, W, 3)."""
        if answer is None:
            return self.image
        return overlay(self.image, answer.mask[None])


def add_gesture(
    sitting: Sitting | None,
    start: tuple[float, float],
    end: tuple[float, float] | None = None,
    foreground: bool = True,
) -> Sitting:
    """Adds a click or a drag as a page sends it, and returns the sitting.

    Args:
        sitting: None where there is no photo yet.
        start: xy of a click or of where a drag begins, fractions of the photo's width and height.
        end: where a drag ends; None for a click.
        foreground: whether a click marks the object, or what isn't the object.

    Raises:
        ValueError: there is no photo, or the gesture is none that ``Sitting.add`` takes.
    """
    if sitting is None:
        raise ValueError(NO_PHOTO)
    height, width = sitting.image.shape[:2]
    x, y = start[0] * width, start[1] * height
    sitting.add(Point(x, y, foreground) if end is None else Box(x, y, end[0] * width, end[1] * height))
    return sitting


class Found(NamedTuple):
    """Everything in a photo.

    Attributes:
        picture: RGB uint8 (H, W, 3), the masks over the photo.
        ms: time of each stage.
        prompts: how many the decoder was asked.
        masks: how many are left after filters and NMS.
    """

    picture: np.ndarray
    ms: dict[str, float]
    prompts: int
    masks: int


@dataclass(frozen=True)
class Playground:
    """What all users of the page share.

    Attributes:
        sam: the model, in eval mode.
        detector: for object-aware prompts; None where there is no file of one.
        about: the model in a sentence or two.
        no_detector: why there is none, and how to get one.
        filters: of the grid's masks, to begin with.
    """

    sam: Sam
    detector: Detector | None
    about: str
    no_detector: str = ""
    filters: Filters = SAM_FILTERS

    def sit(self, photo: str | Path) -> Sitting:
        """Reads and encodes a photo, turned upright as its EXIF data says, and shrunk if it is long.

        Raises:
            ValueError: it can't be read.
        """
        try:
            image = Image.fromarray(read_rgb(Path(photo), "This photo", upright=True))
        except ValueError as error:  # which names a path on the server
            raise ValueError("This photo can't be decoded. JPEG, PNG, WebP, TIFF and BMP can.") from error
        image.thumbnail((LONGEST, LONGEST))
        return Sitting(self.sam, np.array(image))

    def by_grid(self, image: np.ndarray, points_per_side: int = 32, filters: Filters | None = None) -> Found:
        """Everything in an RGB uint8 (H, W, 3), by SAM's grid of points; None takes the filters to begin with."""
        chosen = filters or self.filters
        grid = Grid(points_per_side, predicted_iou=chosen.predicted_iou, stability=chosen.stability)
        return _everything(self.sam, grid, image)

    def by_boxes(self, image: np.ndarray, confidence: float = 0.4) -> Found:
        """Everything in an RGB uint8 (H, W, 3), by the detector's boxes.

        Raises:
            ValueError: there is no detector.
        """
        if self.detector is None:
            raise ValueError(self.no_detector)
        return _everything(self.sam, ObjectAware(self.detector, confidence=confidence), image)


def open_playground(
    model: str | None, weights: Path, detector: Path | None, detector_size: int = 1024, device: str = "cpu"
) -> Playground:
    """Loads what the page needs, and runs it once, so that the first times are no longer than later ones.

    Args:
        model: what ``load_pretrained`` takes; None takes ``mobile_sam``, or ``mini_conv_points`` where there is no file
            of that.
        weights: folder of released files.
        detector: an ultralytics ``.pt``; None takes ``ObjectAwareModel.pt`` in ``weights``, or none if it isn't there.
        detector_size: longest side of the detector's input, pixels.
        device: where all of it runs.

    Raises:
        FileNotFoundError: a file that was asked for is not there.
        ValueError: no weights are known by this name, or a file is not what it should be.
    """
    name, note = (model, "") if model else default_model(weights)
    sam = load_pretrained(name, weights).for_inference().to(device)
    about = f"{name}: image encoder {sam.encoder_name}, input of {sam.image_size} pixels, on {device}. {note}".strip()
    file, no_detector = detector or weights / DETECTOR_FILE, ""
    found = None
    if detector or file.is_file():
        found = build_detector(checkpoint=file, image_size=detector_size).to(device)
    else:
        no_detector = (
            f"Object-aware prompts need a detector, and there is no {file}. {DETECTOR_FILE} is published at "
            f"{RELEASED[DETECTOR_FILE].where}; any detector of ultralytics will do: `mobilesamv2 app --detector FILE`"
        )
    playground = Playground(sam, found, about, no_detector, default_grid(sam).filters)
    scene = drawn_scene(0)
    playground.by_grid(scene, points_per_side=8)
    if found is not None:
        playground.by_boxes(scene)
    return playground


def default_model(weights: Path) -> tuple[str, str]:
    """The model to take where none is named, and a sentence about that choice, or an empty one."""
    if (weights / "mobile_sam.pt").is_file():
        return "mobile_sam", ""
    return "mini_conv_points", (
        "It comes with the program, was trained on drawn scenes alone and is weak on photos. A better one, mobile_sam, "
        f"is not in {weights}: `mobilesamv2 download mobile_sam -o {weights}`"
    )


def drawn_scene(seed: int) -> np.ndarray:
    """A scene to play with where no photo is at hand, RGB uint8 (384, 512, 3)."""
    return draw_scene(seed, (384, 512))[0]


def times_table(found: Mapping[str, Found | None]) -> str:
    """Stages in rows and ways in columns, as Markdown.

    Args:
        found: by the name of each way; None, shown as a dash, for one that is not done yet.
    """
    rows: list[tuple[str, list[str]]] = [
        (f"{stage.replace('_', ' ').replace('post', 'post-')}, ms", [_ms(f and f.ms[stage]) for f in found.values()])
        for stage in STAGES
    ]
    rows += [
        ("**all, ms**", [f"**{_ms(f and sum(f.ms.values()))}**" for f in found.values()]),
        ("prompts", [f"{f.prompts:,}" if f else "-" for f in found.values()]),
        ("masks", [f"{f.masks:,}" if f else "-" for f in found.values()]),
    ]
    head = [f"| | {' | '.join(found)} |", f"|---|{'--:|' * len(found)}"]
    table = [*head, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows)]
    empty = [name for name, f in found.items() if f and f.masks == 0]
    return "\n".join(table + [f"\nNo mask is left of {name}: its thresholds may be too high." for name in empty])


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value < 10 else f"{value:,.0f}"


def _everything(sam: Sam, sampler: PromptSampler, image: np.ndarray) -> Found:
    segevery = SegEvery(sam, sampler)
    masks = segevery(image)
    timer = segevery.timer
    return Found(overlay(image, masks.rles), dict(timer.ms), timer.num_prompts, len(masks))
