"""The object-aware prompt detector: a class-agnostic YOLO of ultralytics (AGPL-3.0), imported only when used."""

from __future__ import annotations

import atexit
import copy
import importlib
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilesamv2.released import BROKEN_PICKLE, require_released
from mobilesamv2.transforms import check_image
from mobilesamv2.whole_files import save_whole

logger = logging.getLogger(__name__)

NO_TIME_LIMIT = 3600.0
"""Seconds an image; ultralytics' own limit would silently drop the boxes of a slow machine."""

HEADS = ("Detect", "v10Detect", "Segment", "Segment26")
"""Of ultralytics' models, those that are trained by boxes, or boxes and masks, of a fixed set of classes."""

NAMES = {0: "object"}
"""Of the one class, under which ultralytics draws and lists the boxes."""


class ObjectDetector(nn.Module):
    """Finds objects of any class.

    Args:
        model: an ultralytics detection or segmentation model.
        image_size: the longest side of the detector's input, pixels.
    """

    def __init__(self, model: nn.Module, image_size: int = 1024) -> None:
        super().__init__()
        self.model = model
        self.image_size = image_size

    @torch.inference_mode()
    def detect(
        self,
        image: np.ndarray,
        *,
        confidence: float = 0.4,
        nms_iou: float = 0.9,
        max_boxes: int = 320,
        snap: int = 20,
    ) -> tuple[Tensor, Tensor]:
        """Boxes (N, 4) xyxy, pixels of the image, and their confidence (N,), best first, on the CPU.

        Args:
            image: RGB uint8 (H, W, 3).
            confidence: boxes of less are dropped.
            nms_iou: of two boxes that overlap by more, the more confident stays.
            max_boxes: at most so many, the most confident.
            snap: an edge within so many pixels of the border of the detector's input moves onto it; 0 switches it off.

        Source: MobileSAMv2's released demo, which snaps in the frame of the detector's padded input, as is done here.
        The demo hands its detector an image with red and blue exchanged; here it sees RGB, as ultralytics trains.
        """
        (found,) = self.detect_batch([image], confidence=confidence, nms_iou=nms_iou, max_boxes=max_boxes, snap=snap)
        return found

    @torch.inference_mode()
    def detect_batch(
        self,
        images: Sequence[np.ndarray],
        *,
        confidence: float = 0.4,
        nms_iou: float = 0.9,
        max_boxes: int = 320,
        snap: int = 20,
    ) -> list[tuple[Tensor, Tensor]]:
        """``detect`` for several images in one pass of the model, as ``YOLO.predict`` takes a list of them.

        Images of one size are padded as little as a single one is; images of unlike sizes all to a square, which moves
        their boxes by fractions of a pixel.

        Args:
            images: each RGB uint8 (H, W, 3), of any size.
            confidence: boxes of less are dropped.
            nms_iou: of two boxes that overlap by more, the more confident stays.
            max_boxes: at most so many an image, the most confident.
            snap: an edge within so many pixels of the border of the detector's input moves onto it; 0 switches it off.
        """
        if not images:
            return []
        pixels = self.letterbox(images)
        height, width = pixels.shape[2:]
        results = []
        for image, found in zip(images, self.boxes(pixels, confidence, nms_iou, max_boxes), strict=True):
            boxes_xyxy = snap_to_border(found[:, :4], (height, width), snap)
            boxes_xyxy = unletterbox(boxes_xyxy, (height, width), (image.shape[0], image.shape[1]))
            results.append((boxes_xyxy.cpu(), found[:, 4].cpu()))
        return results

    def letterbox(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images as the model's input, (B, 3, h, w) in [0, 1] on its device: resized, and padded with grey.

        Args:
            images: each RGB uint8 (H, W, 3), of any size; of one size they are padded to the model's stride alone.

        Raises:
            ValueError: one is not such an array.
        """
        checked = [check_image(image) for image in images]
        letterbox = ultralytics_module("data.augment").LetterBox(
            self.image_size,
            auto=len({image.shape for image in checked}) == 1,
            stride=int(self.model.stride.max()),  # pyright: ignore
        )
        boxed = np.stack([letterbox(image=image) for image in checked]).transpose(0, 3, 1, 2)
        device = next(self.model.parameters()).device
        return torch.from_numpy(np.ascontiguousarray(boxed)).to(device).float() / 255

    def boxes(self, pixels: Tensor, confidence: float, nms_iou: float, max_boxes: int) -> list[Tensor]:
        """Boxes of each image in pixels of the input: (N, 5 or more) xyxy, confidence, and what the head adds.

        Args:
            pixels: (B, 3, h, w) RGB in [0, 1].
            confidence: boxes of less are dropped.
            nms_iou: of two boxes that overlap by more, the more confident stays.
            max_boxes: at most so many an image, the most confident.
        """
        predictions, _ = self.predict(pixels, max_boxes)
        return self.suppress(predictions, confidence, nms_iou, max_boxes)

    def predict(self, pixels: Tensor, max_boxes: int) -> tuple[Tensor, Tensor | None]:
        """What the network gives, for ``suppress``, and (B, C, h/4, w/4) the prototypes of a head that makes masks.

        Args:
            pixels: (B, 3, h, w) RGB in [0, 1].
            max_boxes: at most so many an image from a head that chooses them itself.
        """
        weights = next(self.model.parameters())
        if self._chooses:  # 300 if it is not told otherwise
            self.model.model[-1].max_det = max_boxes  # pyright: ignore
        with torch.autocast(weights.device.type, enabled=False):  # half precision would round boxes to several pixels
            predictions = self.model(pixels.to(weights.dtype))
        prototypes = None
        while not isinstance(predictions, Tensor):  # with what the head of the model adds, nested to its own depth
            predictions, added = predictions[:2]
            prototypes = added.float() if isinstance(added, Tensor) else prototypes
        return predictions.float(), prototypes

    def suppress(
        self, predictions: Tensor, confidence: float, nms_iou: float, max_boxes: int, class_agnostic: bool = False
    ) -> list[Tensor]:
        """Boxes of each image, best first: (N, 6 or more) xyxy in pixels of the input, confidence, class, coefficients.

        Args:
            predictions: of ``predict``.
            confidence: boxes of less are dropped; it is that of the most likely class.
            nms_iou: of two boxes that overlap by more, the more confident stays.
            max_boxes: at most so many an image, the most confident.
            class_agnostic: boxes of different classes suppress each other too.
        """
        return ultralytics_module("utils.nms").non_max_suppression(
            predictions,
            conf_thres=confidence,
            iou_thres=nms_iou,
            agnostic=class_agnostic,
            max_det=max_boxes,
            nc=len(self.model.names),  # pyright: ignore
            max_time_img=NO_TIME_LIMIT,
            end2end=self._chooses,
        )

    def for_inference(self) -> ObjectDetector:
        """This detector with its batch norms folded into the convolutions, in place, as ``YOLO.predict`` has them."""
        self.model.fuse(verbose=False)  # pyright: ignore
        return self

    @property
    def architecture(self) -> str:
        """Ultralytics' name of the model, ``yolov8x-seg`` for example."""
        return Path(self.model.yaml["yaml_file"]).stem  # pyright: ignore

    @property
    def _chooses(self) -> bool:
        """Whether the head itself chooses the boxes, so that none is suppressed."""
        return bool(getattr(self.model, "end2end", False))


def unletterbox(boxes_xyxy: Tensor, input_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) in pixels of a model's input as boxes in pixels of the image, cut at its border; in place.

    Args:
        boxes_xyxy: (N, 4), pixels of the input.
        input_size: (height, width) of the input, pixels.
        image_size: (H, W) of the image, pixels.
    """
    return ultralytics_module("utils.ops").scale_boxes(input_size, boxes_xyxy, image_size)


def snap_to_border(boxes_xyxy: Tensor, size: tuple[int, int], distance: float) -> Tensor:
    """Moves each edge that lies nearer than ``distance`` to the border onto the border.

    Args:
        boxes_xyxy: (N, 4), pixels of a frame.
        size: (height, width) of the frame, pixels.
        distance: pixels of the frame.

    Returns:
        (N, 4), a new tensor.

    Source: ``adjust_bboxes_to_image_border`` in MobileSAMv2's released demo.
    """
    height, width = size
    x0, y0, x1, y1 = boxes_xyxy.unbind(1)
    return torch.stack(
        [
            torch.where(x0 < distance, 0.0, x0),
            torch.where(y0 < distance, 0.0, y0),
            torch.where(x1 > width - distance, float(width), x1),
            torch.where(y1 > height - distance, float(height), y1),
        ],
        dim=1,
    )


def build_detector(
    architecture: str = "yolov8x",
    checkpoint: str | Path | None = None,
    image_size: int = 1024,
    one_class: bool = False,
) -> ObjectDetector:
    """Builds a detector, in eval mode on the CPU.

    Args:
        architecture: name of an ultralytics model, ``yolov8n``, ``yolov8x-seg`` or ``yolo11s`` for example, built with
            one class and random weights; a checkpoint says itself what it is of, and then this is not read.
        checkpoint: an ultralytics ``.pt``, MobileSAMv2's ``ObjectAwareModel.pt`` included. Nothing in it is executed
            beyond the model classes that ultralytics and torch are known to have.
        image_size: the longest side of the detector's input, pixels.
        one_class: make a checkpoint of several classes one of the class "object"; the layers that tell classes apart
            begin anew, and are named in the log.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: ultralytics has no such model, or the checkpoint is none of its own.
    """
    if checkpoint is None:
        return ObjectDetector(_build(architecture), image_size).eval()
    model = _load(Path(checkpoint))
    if one_class and len(model.names) > 1:  # pyright: ignore[reportArgumentType]
        model = _with_one_class(model, Path(checkpoint))
    return ObjectDetector(model, image_size).eval()


def save_detector(detector: ObjectDetector, path: str | Path) -> None:
    """Writes a detector as an ultralytics ``.pt``, which ``ultralytics.YOLO(path)`` and ``build_detector`` load."""
    model: Any = copy.deepcopy(detector.model).cpu().eval()
    model.criterion = None  # training leaves its loss there
    model.task = "segment" if hasattr(list(model.model.children())[-1], "proto") else "detect"
    model.args = {"imgsz": detector.image_size, "task": model.task}
    save_whole({"model": model, "train_args": model.args}, path)


def mask_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What a model has for masks alone: the prototypes and their coefficients; empty for a detection model."""
    head: Any = list(model.model.children())[-1]  # pyright: ignore
    parts = (getattr(head, name, None) for name in ("proto", "cv4", "one2one_cv4"))
    return [parameter for part in parts if part is not None for parameter in part.parameters()]


def _build(architecture: str) -> nn.Module:
    """An ultralytics model of one class, with random weights."""
    tasks = ultralytics_module("nn.tasks")
    model_class = tasks.SegmentationModel if architecture.endswith("-seg") else tasks.DetectionModel
    try:
        model = model_class(f"{architecture}.yaml", nc=1, verbose=False)
    except FileNotFoundError as error:
        raise ValueError(
            f"ultralytics has no model '{architecture}'; it has yolov8n, yolov8x-seg and yolo11s, say."
        ) from error
    model.names = dict(NAMES)
    return _checked(model, f"ultralytics' {architecture}")


def _load(path: Path) -> nn.Module:
    """The model in an ultralytics checkpoint."""
    require_released(path)  # ultralytics would ask the network for a missing file
    tasks = ultralytics_module("nn.tasks")
    try:
        content, _ = tasks.torch_safe_load(str(path), safe_only=True)
    except BROKEN_PICKLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not an ultralytics checkpoint that can be read safely: {reason}") from error
    model: Any = content.get("ema") or content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, nn.Module) or not hasattr(model, "names"):
        raise ValueError(f"{path} holds no ultralytics model.")
    if not all(torch.isfinite(value).all() for value in model.state_dict().values()):
        raise ValueError(f"{path} holds NaN or infinity among its weights: the run that wrote it had diverged.")
    head: Any = list(model.model.children())[-1]  # pyright: ignore
    if hasattr(head, "cv4") and not hasattr(head, "proto"):
        # ObjectAwareModel.pt has a segmentation head without prototypes; its boxes are a detection head's.
        head.__class__ = ultralytics_module("nn.modules.head").Detect
        model.__class__ = tasks.DetectionModel
    _checked(model, str(path))
    head.end2end = False  # NMS, as YOLO.predict has it by default; a head of its own chooses 300 boxes at most
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".dfl." not in name)  # ultralytics freezes what it publishes
    return model.float()


def _checked(model: nn.Module, name: str) -> nn.Module:
    """The model itself, if its head is one of ``HEADS``."""
    head = type(list(model.model.children())[-1]).__name__  # pyright: ignore
    if head not in HEADS:
        raise ValueError(f"{name} ends in {head}; a detector here ends in {', '.join(HEADS)}.")
    return model


def _with_one_class(model: Any, path: Path) -> nn.Module:
    """A new model of one class with all tensors of another one that fit."""
    new = type(model)(copy.deepcopy(model.yaml), nc=1, verbose=False)
    new.load(model, verbose=False)
    new.names = dict(NAMES)
    earlier = {name: value.shape for name, value in model.state_dict().items()}
    anew = [name for name, value in new.state_dict().items() if earlier.get(name) != value.shape]
    logger.warning(
        "%s tells %d classes apart and becomes a detector of one: %d of %d tensors begin anew: %s",
        path,
        len(model.names),
        len(anew),
        len(new.state_dict()),
        ", ".join(anew),
    )
    return new


def ultralytics_module(module: str) -> Any:
    """A module of ultralytics, imported without its settings file, installer or telemetry.

    It writes a settings file when it is imported: into a folder that ends with the process.
    """
    if "YOLO_CONFIG_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="mobilesamv2-ultralytics-")
        os.environ["YOLO_CONFIG_DIR"] = folder
        atexit.register(_remove, folder, os.getpid())
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    return importlib.import_module(f"ultralytics.{module}")


def _remove(folder: str, process: int) -> None:
    """Removes a folder, in the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
