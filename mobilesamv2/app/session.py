"""Interactive demo without its page: a user's image and interactions, and automatic masks with their times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mobilesamv2.data.images import TooManyPixelsError, read_rgb, readable_suffixes
from mobilesamv2.data.pixel_values import ValueRange, check_value_range
from mobilesamv2.data.synthetic.render import render_scene
from mobilesamv2.metrics.stage_time import STAGES, StageTimer
from mobilesamv2.model_zoo import find_weights
from mobilesamv2.models.sam import Sam
from mobilesamv2.pretrained import load_model, toy_note
from mobilesamv2.prompt_heads import load_detector
from mobilesamv2.prompts.grid import Grid
from mobilesamv2.prompts.object_aware import Detector, EmbeddingDetector, ObjectAware
from mobilesamv2.prompts.sampler import PromptSampler
from mobilesamv2.segany import SegAny
from mobilesamv2.segevery import SegEvery
from mobilesamv2.structures import Filters
from mobilesamv2.transforms import check_image
from mobilesamv2.visualize import overlay

MAX_SIDE = 1280
"""Pixels; larger images are resized to this, because an overlay is sent to the page after every interaction."""

MAX_UPLOADED_PIXELS = 50_000_000
"""Pixels of an image that the page decodes, a few seconds' work; a file of half a megabyte may expand to far more, and
all users would wait for it."""

NO_IMAGE = "Upload an image first, or use a synthetic scene."
"""Shown when an action requires an image."""

SAM_FILTERS = Grid().filters
"""Thresholds of SAM's mask generator."""

DETECTOR_FILE = "ObjectAwareModel.pt"
"""MobileSAMv2's detector, looked up in the folders of weights."""


class Point(NamedTuple):
    """A click: xy in pixels of the image, on the object or on what is not the object."""

    x: float
    y: float
    foreground: bool = True


class Box(NamedTuple):
    """A drag: from one corner to the opposite one, in pixels of the image."""

    x0: float
    y0: float
    x1: float
    y1: float


class Prediction(NamedTuple):
    """The mask for all interactions together.

    Attributes:
        mask: (H, W) bool.
        predicted_iou: the model's own estimate.
        ms: time of the mask decoder and of resizing its mask to the image's size, milliseconds.
    """

    mask: np.ndarray
    predicted_iou: float
    ms: float


class Session:
    """One user's image, encoded once, and the interactions on it.

    Args:
        sam: the model, in eval mode; sessions may share it.
        image: RGB uint8 (H, W, 3).

    Raises:
        ValueError: if ``image`` is not a uint8 array of shape (H, W, 3).
    """

    def __init__(self, sam: Sam, image: np.ndarray) -> None:
        self.image = check_image(image)
        self.interactions: list[Point | Box] = []
        self._segany = SegAny(sam)
        self._timer = StageTimer(sam.device)
        with self._timer.stage("image_encoder"):
            self._segany.set_image(image)
        self.encoder_ms = self._timer.ms["image_encoder"]

    def add(self, interaction: Point | Box) -> None:
        """Add a point to the prompt, or a box, which replaces an earlier one.

        Raises:
            ValueError: if it is outside the image, or is a box without width or height.
        """
        height, width = self.image.shape[:2]
        corners = [interaction[:2]] if isinstance(interaction, Point) else [interaction[:2], interaction[2:]]
        if not all(0 <= x <= width and 0 <= y <= height for x, y in corners):
            raise ValueError(f"Points and boxes must be inside the image, which has {width} x {height} pixels.")
        if isinstance(interaction, Box) and (interaction.x0 == interaction.x1 or interaction.y0 == interaction.y1):
            raise ValueError("A box must have a width and a height: drag from one corner to the opposite one.")
        self.interactions.append(interaction)

    def undo(self) -> None:
        """Remove the last interaction, if there is one."""
        del self.interactions[-1:]

    def clear(self) -> None:
        """Remove all interactions."""
        self.interactions.clear()

    @property
    def points(self) -> list[Point]:
        """Return all points."""
        return [interaction for interaction in self.interactions if isinstance(interaction, Point)]

    @property
    def box(self) -> Box | None:
        """Return the last box, from its upper left to its lower right corner; None without one."""
        boxes = [interaction for interaction in self.interactions if isinstance(interaction, Box)]
        if not boxes:
            return None
        x0, y0, x1, y1 = boxes[-1]
        return Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))

    def predict(self) -> Prediction | None:
        """Predict the mask for all interactions as one prompt; None without any.

        A single point is ambiguous, so the model returns three masks for it, and the one of highest predicted IoU is
        taken.
        """
        if not self.interactions:
            return None
        points, box = self.points, self.box
        self._timer.start_image()
        with self._timer.stage("mask_decoder"):
            masks, predicted_iou, _ = self._segany.predict(
                points=[point[:2] for point in points] or None,
                labels=[int(point.foreground) for point in points] or None,
                boxes=box,
                multimask_output=len(self.interactions) == 1 and box is None,
            )
        best = int(predicted_iou[0].argmax())
        return Prediction(masks[0, best], float(predicted_iou[0, best]), self._timer.ms["mask_decoder"])

    def overlay(self, prediction: Prediction | None) -> np.ndarray:
        """Draw the mask over the image, RGB uint8 (H, W, 3)."""
        if prediction is None:
            return self.image
        return overlay(self.image, prediction.mask[None])


def add_interaction(
    session: Session | None,
    start: tuple[float, float],
    end: tuple[float, float] | None = None,
    foreground: bool = True,
) -> Session:
    """Add a click or a drag as the page sends it, and return the session.

    Args:
        session: None if there is no image yet.
        start: xy of a click or of a drag's start, fractions of the image's width and height.
        end: xy of a drag's end; None for a click.
        foreground: whether a click is on the object, or on what is not the object.

    Raises:
        ValueError: if there is no image, or ``Session.add`` refuses the interaction.
    """
    if session is None:
        raise ValueError(NO_IMAGE)
    height, width = session.image.shape[:2]
    x, y = start[0] * width, start[1] * height
    session.add(Point(x, y, foreground) if end is None else Box(x, y, end[0] * width, end[1] * height))
    return session


class AutoMasks(NamedTuple):
    """Result of segmenting everything in an image.

    Attributes:
        overlay: RGB uint8 (H, W, 3), the masks over the image.
        ms: milliseconds of each stage.
        prompts: number of prompts decoded.
        masks: number of masks left after filters and NMS.
    """

    overlay: np.ndarray
    ms: dict[str, float]
    prompts: int
    masks: int


@dataclass(frozen=True)
class DemoApp:
    """Model and detector that all users of the page share.

    Attributes:
        sam: the model, in eval mode.
        detector: for object-aware prompts; None if there is no file of one.
        about: description of the model, a sentence or two.
        no_detector: reason for having no detector, and how to get one.
        filters: initial thresholds for the masks of a grid.
        value_range: the values that become 0 and 255 in images of more than 8 bits; None is the rule of ``to_rgb``.
    """

    sam: Sam
    detector: Detector | EmbeddingDetector | None
    about: str
    no_detector: str = ""
    filters: Filters = SAM_FILTERS
    value_range: ValueRange | None = None

    def open(self, path: str | Path) -> Session:
        """Load and encode an image, rotated as its EXIF orientation says and resized if it is larger than MAX_SIDE.

        Raises:
            ValueError: if it can't be decoded, or has more than ``MAX_UPLOADED_PIXELS``.
        """
        try:
            values = read_rgb(Path(path), "This image", "always", self.value_range, MAX_UPLOADED_PIXELS)
        except TooManyPixelsError as error:
            limit = MAX_UPLOADED_PIXELS // 1_000_000
            raise ValueError(
                f"This image has more than {limit} megapixels, the most that this page decodes: resize it first, or "
                "use `mobilesamv2 segment`."
            ) from error
        except ValueError as error:  # its message contains a path on the server
            formats = ", ".join(suffix.removeprefix(".") for suffix in readable_suffixes())
            raise ValueError(f"This image can't be decoded. Supported formats: {formats}.") from error
        image = Image.fromarray(values)
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        return Session(self.sam, np.array(image))

    def by_grid(self, image: np.ndarray, points_per_side: int = 32, filters: Filters | None = None) -> AutoMasks:
        """Segment everything with SAM's grid of points.

        Args:
            image: RGB uint8 (H, W, 3).
            points_per_side: points per side of the grid.
            filters: thresholds; None is the initial ones.
        """
        thresholds = filters or self.filters
        grid = Grid(
            points_per_side,
            pred_iou_thresh=thresholds.pred_iou_thresh,
            stability_score_thresh=thresholds.stability_score_thresh,
        )
        return _segment_everything(self.sam, grid, image)

    def by_boxes(self, image: np.ndarray, confidence: float = 0.4) -> AutoMasks:
        """Segment everything with the detector's boxes.

        Args:
            image: RGB uint8 (H, W, 3).
            confidence: lowest confidence of a box.

        Raises:
            ValueError: if there is no detector.
        """
        if self.detector is None:
            raise ValueError(self.no_detector)
        return _segment_everything(self.sam, ObjectAware(self.detector, confidence=confidence), image)


def open_demo(
    model: str | None,
    weights: Path,
    detector: Path | None,
    detector_size: int = 1024,
    device: str = "cpu",
    value_range: ValueRange | None = None,
    checkpoint: Sequence[Path] = (),
    download: bool | None = None,
) -> DemoApp:
    """Load the demo's models and run them once, so that the first measured times are not longer than later ones.

    Args:
        model: a name that ``load_pretrained`` accepts; None is ``mobile_sam``, or ``mini_conv`` if there is no file of
            ``mobile_sam``.
        weights: folder of published files; see ``load_pretrained``.
        detector: an ultralytics ``.pt``, or the safetensors file of a prompt head; None is ``ObjectAwareModel.pt`` of
            ``weights``, or no detector if that does not exist.
        detector_size: longest side of the detector's input, pixels.
        device: device of model and detector.
        value_range: see ``DemoApp``.
        checkpoint: weight files of the model, as in ``load_model``.
        download: whether weights of ``model`` that are missing are downloaded; see ``load_pretrained``.

    Raises:
        FileNotFoundError: if a file that was named does not exist.
        ValueError: if there are no weights under this name, a file does not fit, or ``value_range`` is none.
    """
    name = model or (None if checkpoint else default_model(weights))
    loaded = load_model(name, checkpoint, weights, download)
    sam = loaded.for_inference().to(device)
    about = f"{name or sam.name}: image encoder {sam.encoder_name}, input of {sam.image_size} pixels, on {device}."
    about = f"{about} {toy_note(sam, weights)}".strip()
    no_detector = ""
    if detector is None:
        try:
            detector = find_weights(DETECTOR_FILE, weights)
        except FileNotFoundError as error:
            no_detector = (
                f"Object-aware prompts require a detector. {error} "
                "Any ultralytics detector works: `mobilesamv2 app --detector FILE`"
            )
    built = None
    if detector is not None:
        built = load_detector(detector, loaded, detector_size).to(device)
    filters = Grid().for_model(sam.thresholds).filters
    demo = DemoApp(sam, built, about, no_detector, filters, check_value_range(value_range))
    scene = synthetic_scene(0)
    demo.by_grid(scene, points_per_side=8)
    if built is not None:
        demo.by_boxes(scene)
    return demo


def default_model(weights: Path) -> str:
    """Return the model used when none is named."""
    try:
        find_weights("mobile_sam.pt", weights)
    except FileNotFoundError:
        return "mini_conv"
    return "mobile_sam"


def synthetic_scene(seed: int) -> np.ndarray:
    """Render a scene to try the demo without an image at hand, RGB uint8 (384, 512, 3)."""
    return render_scene(seed, (384, 512))[0]


def times_table(results: Mapping[str, AutoMasks | None]) -> str:
    """Format times as a Markdown table: one row per stage, one column per prompt sampler.

    Args:
        results: name of the prompt sampler -> its result; None, shown as a dash, if it has not run yet.
    """
    rows: list[tuple[str, list[str]]] = [
        (f"{stage.replace('_', ' ').replace('post', 'post-')}, ms", [_ms(r and r.ms[stage]) for r in results.values()])
        for stage in STAGES
    ]
    rows += [
        ("**total, ms**", [f"**{_ms(r and sum(r.ms.values()))}**" for r in results.values()]),
        ("prompts", [f"{r.prompts:,}" if r else "-" for r in results.values()]),
        ("masks", [f"{r.masks:,}" if r else "-" for r in results.values()]),
    ]
    head = [f"| | {' | '.join(results)} |", f"|---|{'--:|' * len(results)}"]
    table = [*head, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows)]
    empty = [name for name, result in results.items() if result and result.masks == 0]
    return "\n".join(table + [f"\nNo mask of {name} passed the thresholds; try lower ones." for name in empty])


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value < 10 else f"{value:,.0f}"


def _segment_everything(sam: Sam, sampler: PromptSampler, image: np.ndarray) -> AutoMasks:
    segevery = SegEvery(sam, sampler)
    masks = segevery(image)
    timer = segevery.timer
    return AutoMasks(overlay(image, masks.rles), dict(timer.ms), timer.num_prompts, len(masks))
