"""The models and the detector that all visitors of the interactive demo share."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mobilesamv2.app.everything import SAMPLERS, Settings, segment_everything
from mobilesamv2.app.session import Photo, Session, open_photo
from mobilesamv2.data.pixel_values import ValueRange, check_value_range
from mobilesamv2.data.synthetic.render import render_scene
from mobilesamv2.extras import missing_library
from mobilesamv2.model_zoo import PACKAGE_WEIGHTS, find_named, find_weights
from mobilesamv2.models.sam import Sam
from mobilesamv2.pretrained import load_model, toy_note
from mobilesamv2.prompt_heads import load_detector
from mobilesamv2.prompts.object_aware import Detector, EmbeddingDetector
from mobilesamv2.prompts.sampler import PromptSampler

DETECTOR_FILE = "ObjectAwareModel.pt"
"""MobileSAMv2's detector, looked up in the folders of weights."""

DETECTOR_CONFIDENCE = 0.4
"""Lowest confidence of its boxes, as in MobileSAMv2's demo."""

SHIPPED_DETECTOR = "mini_detector.pt"
"""Used where there is no other; it knows synthetic scenes only."""

SHIPPED_DETECTOR_SIZE = 384
"""Pixels; its copies of earlier versions do not state it."""

SHIPPED_DETECTOR_CONFIDENCE = 0.1
"""Lowest confidence of its boxes, which are useful from a lower one on."""

ASSETS = Path(__file__).parent / "assets"

EXAMPLES = {"cat": ASSETS / "chelsea.jpg", "coffee": ASSETS / "coffee.jpg"}
"""Photos by Stefan van der Walt and Rachel Michetti (CC0), by way of scikit-image's sample images."""


@dataclass(frozen=True)
class DemoApp:
    """What visitors share.

    Attributes:
        models: by name, in eval mode; the first one is used unless a visitor chooses another.
        detector: for object-aware prompts; None if there is none.
        about: description of models and detector, a few lines.
        confidence: initial threshold for the confidence of the detector's boxes.
        value_range: the values that become 0 and 255 in photos of more than 8 bits; None is the rule of ``to_rgb``.
        lock: held while a mask is predicted for a visitor's points; the preview under a pointer is left out meanwhile.
    """

    models: Mapping[str, Sam]
    detector: Detector | EmbeddingDetector | None
    about: str
    confidence: float = DETECTOR_CONFIDENCE
    value_range: ValueRange | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def model(self) -> str:
        """Return the name of the first model."""
        return next(iter(self.models))

    @property
    def samplers(self) -> dict[str, str]:
        """Return the titles of the prompt samplers that can be chosen, by name."""
        return {name: title for name, title in SAMPLERS.items() if self.detector or name != "object_aware"}

    def build_sampler(self, settings: Settings) -> PromptSampler:
        """Build the prompt sampler that a visitor chose.

        Raises:
            ValueError: if it requires a detector and there is none, or one that reads another model's embedding.
        """
        is_head = self.detector is not None and not hasattr(self.detector, "detect")
        if settings.sampler == "object_aware" and is_head and settings.model != self.model:
            raise ValueError(f"The prompt head reads the embeddings of {self.model}: choose that model for its boxes.")
        return settings.build_sampler(self.detector)

    def open(self, path: str | Path) -> Session:
        """Open a photo and encode it with the first model.

        Raises:
            ValueError: as ``open_photo``.
        """
        return self._encoded(open_photo(path, self.value_range))

    def open_scene(self, seed: int) -> Session:
        """Draw a synthetic scene and encode it with the first model."""
        scene = synthetic_scene(seed)
        return self._encoded(Photo(scene, (scene.shape[0], scene.shape[1])))

    def _encoded(self, photo: Photo) -> Session:
        session = Session(self.models, photo)
        session.encode(self.model)
        return session


def open_demo(
    model: str | None,
    weights: Path,
    detector: Path | None = None,
    *,
    compare: Sequence[str] = (),
    detector_size: int | None = None,
    confidence: float | None = None,
    device: str = "cpu",
    value_range: ValueRange | None = None,
    checkpoint: Sequence[Path] = (),
    download: Mapping[str, bool] | None = None,
) -> DemoApp:
    """Load the demo's models and run them once, so that the first measured times are not longer than later ones.

    Args:
        model: a name that ``load_pretrained`` accepts; None is ``mobile_sam``, or ``mini_conv`` if there is no file of
            ``mobile_sam``.
        weights: folder of published files; see ``load_pretrained``.
        detector: an ultralytics ``.pt``, or the safetensors file of a prompt head of the first model, as ``find_named``
            takes it; None is ``ObjectAwareModel.pt`` of ``weights``, or the detector that ships.
        compare: names of further models, to compare with.
        detector_size: longest side of the detector's input, pixels; None as in ``build_detector``.
        confidence: initial threshold for the confidence of the detector's boxes; None is what suits the detector.
        device: device of models and detector.
        value_range: see ``DemoApp``.
        checkpoint: weight files of the model, as in ``load_model``.
        download: whether missing weights of a name are downloaded; of those that are left out they are not.

    Raises:
        FileNotFoundError: if a file that was named does not exist.
        ValueError: if there are no weights under a name, a name is given twice, a file does not fit, or
            ``value_range`` is none.
    """
    first = model or (None if checkpoint else default_model(weights))
    allowed = download or {}
    loaded = [(first, load_model(first, checkpoint, weights, bool(first) and allowed.get(first, False)))]
    loaded += [(name, load_model(name, (), weights, allowed.get(name, False))) for name in compare]
    models: dict[str, Sam] = {}
    about: list[str] = []
    for given, sam in loaded:
        name = (sam.name or "model") if given is None else Path(given).stem if Path(given).exists() else given
        if name in models:
            raise ValueError(f"--compare must name other models than --model, each once, got {name} twice.")
        models[name] = sam.for_inference().to(device)
        about.append(f"{name}: image encoder {sam.encoder_name}, input of {sam.image_size} pixels, on {device}.")
        about += [note for note in [toy_note(sam, weights)] if note and note not in about]
    built, note, default_confidence = _find_detector(detector, loaded[0][1], weights, detector_size, device)
    demo = DemoApp(
        models,
        built,
        "\n".join([*about, note]),
        default_confidence if confidence is None else confidence,
        check_value_range(value_range),
    )
    _warm_up(demo)
    return demo


def default_model(weights: Path) -> str:
    """Return the model used when none is named."""
    try:
        find_weights("mobile_sam.pt", weights)
    except FileNotFoundError:
        return "mini_conv"
    return "mobile_sam"


def synthetic_scene(seed: int) -> np.ndarray:
    """Render a scene to try the demo without a photo at hand, RGB uint8 (384, 512, 3)."""
    return render_scene(seed, (384, 512))[0]


def _find_detector(
    named: Path | None, sam: Sam, weights: Path, size: int | None, device: str
) -> tuple[Detector | EmbeddingDetector | None, str, float]:
    """Return the detector, a note about it, and the confidence that suits it."""
    if named is not None:
        file = find_named(named, weights)
    else:
        try:
            file = find_weights(DETECTOR_FILE, weights)
        except FileNotFoundError:
            file = PACKAGE_WEIGHTS / SHIPPED_DETECTOR
    is_shipped = file.name == SHIPPED_DETECTOR
    confidence = SHIPPED_DETECTOR_CONFIDENCE if is_shipped else DETECTOR_CONFIDENCE
    try:
        detector = load_detector(file, sam, SHIPPED_DETECTOR_SIZE if size is None and is_shipped else size).to(device)
    except ImportError as error:
        if named is not None:
            raise
        return None, f"There is no detector. {missing_library(error)}", confidence
    note = f"Detector: {file.name}"
    if file.resolve().parent == PACKAGE_WEIGHTS.resolve():
        note += f", which ships and knows synthetic scenes only; for photographs get {DETECTOR_FILE} or --detector FILE"
    return detector, f"{note}.", confidence


def _warm_up(demo: DemoApp) -> None:
    scene = synthetic_scene(0)
    for name, sam in demo.models.items():
        segment_everything(sam, Settings(name, "grid", points_per_side=8).build_sampler(None), scene)
    if demo.detector is not None:
        sampler = demo.build_sampler(Settings(demo.model, "object_aware", confidence=demo.confidence))
        segment_everything(demo.models[demo.model], sampler, scene)
