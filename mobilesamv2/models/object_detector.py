"""Object-aware prompt detector: a class-agnostic YOLO from ultralytics (AGPL-3.0), which is imported only when used."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilesamv2.files import check_archive, torch_save_atomic
from mobilesamv2.model_zoo import WEIGHT_FILES, require_weights
from mobilesamv2.models.ultralytics_import import ultralytics_module
from mobilesamv2.models.yolo_architectures import HEADS, require_object_detector, unknown_architecture
from mobilesamv2.ranges import Count, require_range
from mobilesamv2.transforms import check_image

logger = logging.getLogger(__name__)

NO_TIME_LIMIT = 3600.0
"""Seconds per image for NMS; on a slow machine ultralytics' own limit would silently drop boxes."""

DEFAULT_SIZE = 1024
"""Longest side of the input, pixels, of published files, as in the demos of MobileSAMv2 and FastSAM, and of files that
state no size."""

NAMES = {0: "object"}
"""Name of the only class, which ultralytics shows with the boxes."""


class ObjectDetector(nn.Module):
    """Class-agnostic object detector.

    Args:
        model: an ultralytics detection or segmentation model.
        image_size: longest side of the detector's input, pixels.

    Raises:
        ValueError: if ``image_size`` is below 1.
    """

    def __init__(self, model: nn.Module, image_size: int = DEFAULT_SIZE) -> None:
        super().__init__()
        require_range("image_size", image_size, Count)
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
        """Detect the objects of an image.

        Args:
            image: RGB uint8 (H, W, 3).
            confidence: boxes with a lower confidence are dropped.
            nms_iou: of two boxes with a higher IoU, only the more confident one is kept.
            max_boxes: at most this number of boxes, the most confident.
            snap: edges nearer than this to the border of the detector's input move onto it, pixels; 0 disables it.

        Returns:
            Boxes (N, 4) xyxy, pixels of the image, and their confidence (N,), sorted by confidence, on the CPU.

        Source: MobileSAMv2's released demo, which snaps in the frame of the detector's padded input, as is done here.
        The demo passes its detector an image with red and blue swapped; here it is RGB, as in ultralytics' training.
        """
        (detected,) = self.detect_batch([image], confidence=confidence, nms_iou=nms_iou, max_boxes=max_boxes, snap=snap)
        return detected

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
        """Detect the objects of several images in one forward pass, as ``YOLO.predict`` does for a list of images.

        Images of equal size are padded as little as a single image; images of different sizes are all padded to a
        square, which moves their boxes by fractions of a pixel.

        Args:
            images: each RGB uint8 (H, W, 3), of any size.
            confidence: boxes with a lower confidence are dropped.
            nms_iou: of two boxes with a higher IoU, only the more confident one is kept.
            max_boxes: at most this number of boxes per image, the most confident.
            snap: edges nearer than this to the border of the detector's input move onto it, pixels; 0 disables it.

        Returns:
            For each image what ``detect`` returns.
        """
        if not images:
            return []
        pixels = self.letterbox(images)
        height, width = pixels.shape[2:]
        results = []
        for image, detections in zip(images, self.boxes(pixels, confidence, nms_iou, max_boxes), strict=True):
            boxes_xyxy = snap_to_border(detections[:, :4], (height, width), snap)
            boxes_xyxy = unletterbox(boxes_xyxy, (height, width), (image.shape[0], image.shape[1]))
            results.append((boxes_xyxy.cpu(), detections[:, 4].cpu()))
        return results

    def letterbox(self, images: Sequence[np.ndarray]) -> Tensor:
        """Resize images and pad them with grey.

        Args:
            images: each RGB uint8 (H, W, 3), of any size; if all have equal size, they are padded only to a multiple
                of the model's stride.

        Returns:
            The model's input, (B, 3, h, w) in [0, 1], on its device.

        Raises:
            ValueError: if an image is not a uint8 array of shape (H, W, 3).
        """
        checked = [check_image(image) for image in images]
        letterbox = ultralytics_module("data.augment").LetterBox(
            self.image_size,
            auto=len({image.shape for image in checked}) == 1,
            stride=int(self.model.stride.max()),  # pyright: ignore
        )
        padded = np.stack([letterbox(image=image) for image in checked]).transpose(0, 3, 1, 2)
        device = next(self.model.parameters()).device
        return torch.from_numpy(np.ascontiguousarray(padded)).to(device).float() / 255

    def boxes(self, pixels: Tensor, confidence: float, nms_iou: float, max_boxes: int) -> list[Tensor]:
        """Predict the boxes of each image.

        Args:
            pixels: (B, 3, h, w) RGB in [0, 1].
            confidence: boxes with a lower confidence are dropped.
            nms_iou: of two boxes with a higher IoU, only the more confident one is kept.
            max_boxes: at most this number of boxes per image, the most confident.

        Returns:
            For each image what ``nms`` returns.
        """
        predictions, _ = self.forward_raw(pixels, max_boxes)
        return self.nms(predictions, confidence, nms_iou, max_boxes)

    def forward_raw(self, pixels: Tensor, max_boxes: int) -> tuple[Tensor, Tensor | None]:
        """Run the network without NMS.

        Args:
            pixels: (B, 3, h, w) RGB in [0, 1].
            max_boxes: at most this number of boxes per image from an end-to-end head; other heads ignore it.

        Returns:
            The predictions that ``nms`` reads, and the prototypes (B, C, h/4, w/4) of a segmentation head, else None.
        """
        weights = next(self.model.parameters())
        if self.end2end:
            # the head's own default is 300
            self.model.model[-1].max_det = max_boxes  # pyright: ignore
        with torch.autocast(weights.device.type, enabled=False):  # half precision would round boxes to several pixels
            predictions = self.model(pixels.to(weights.dtype))
        prototypes = None
        while not isinstance(predictions, Tensor):  # heads nest their additional outputs to different depths
            predictions, extra = predictions[:2]
            prototypes = extra.float() if isinstance(extra, Tensor) else prototypes
        return predictions.float(), prototypes

    def nms(
        self, predictions: Tensor, confidence: float, nms_iou: float, max_boxes: int, class_agnostic: bool = False
    ) -> list[Tensor]:
        """Apply non-maximum suppression; an end-to-end head needs none, and its boxes are only filtered.

        Args:
            predictions: from ``forward_raw``.
            confidence: boxes whose most likely class has a lower confidence are dropped.
            nms_iou: of two boxes with a higher IoU, only the more confident one is kept.
            max_boxes: at most this number of boxes per image, the most confident.
            class_agnostic: suppress across classes too.

        Returns:
            (N, 6 or more) for each image: xyxy in pixels of the input, confidence, class, mask coefficients; sorted by
            confidence.
        """
        return ultralytics_module("utils.nms").non_max_suppression(
            predictions,
            conf_thres=confidence,
            iou_thres=nms_iou,
            agnostic=class_agnostic,
            max_det=max_boxes,
            nc=len(self.model.names),  # pyright: ignore
            max_time_img=NO_TIME_LIMIT,
            end2end=self.end2end,
        )

    def fuse_(self) -> ObjectDetector:
        """Fuse batch norms into the convolutions in place, as ``YOLO.predict`` does; return the detector itself."""
        self.model.fuse(verbose=False)  # pyright: ignore
        return self

    @property
    def architecture(self) -> str:
        """Return ultralytics' name of the model, ``yolov8x-seg`` for example."""
        return Path(self.model.yaml["yaml_file"]).stem  # pyright: ignore

    @property
    def end2end(self) -> bool:
        """Return whether the head predicts final boxes, so that NMS is skipped."""
        return bool(getattr(self.model, "end2end", False))


def unletterbox(boxes_xyxy: Tensor, input_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Convert boxes from pixels of a model's input to pixels of the image, clipped to its border, in place.

    Args:
        boxes_xyxy: (N, 4), pixels of the input.
        input_size: (height, width) of the input, pixels.
        image_size: (H, W) of the image, pixels.
    """
    return ultralytics_module("utils.ops").scale_boxes(input_size, boxes_xyxy, image_size)


def snap_to_border(boxes_xyxy: Tensor, size: tuple[int, int], distance: float) -> Tensor:
    """Move each edge that is nearer than ``distance`` to the border onto the border.

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
    image_size: Count | None = None,
    one_class: bool = False,
) -> ObjectDetector:
    """Build a detector, in eval mode on the CPU.

    Args:
        architecture: name of an ultralytics model, ``yolov8n``, ``yolov8x-seg`` or ``yolo11s`` for example, built with
            one class and random weights; ignored with a checkpoint, which contains its own architecture.
        checkpoint: an ultralytics ``.pt``, MobileSAMv2's ``ObjectAwareModel.pt`` included. It is unpickled safely: no
            code runs except the model classes known from ultralytics and torch.
        image_size: longest side of the detector's input, pixels. None is the one that the checkpoint was trained with,
            as the file says; ``DEFAULT_SIZE`` without a checkpoint, if the file does not say, and for a file of a
            published name.
        one_class: convert a checkpoint of several classes to the only class "object"; layers whose shape depends on the
            number of classes are re-initialized, and listed in the log.

    Raises:
        FileNotFoundError: if `checkpoint` does not exist.
        ValueError: if ultralytics has no such detector, the name leaves its size open, or `checkpoint` is not a
            supported ultralytics model with finite weights.
    """
    if checkpoint is None:
        return ObjectDetector(_build(architecture), DEFAULT_SIZE if image_size is None else image_size).eval()
    model, image_size = _load(Path(checkpoint), image_size)
    if one_class and len(model.names) > 1:  # pyright: ignore[reportArgumentType]
        model = _to_one_class(model, Path(checkpoint))
    return ObjectDetector(model, image_size).eval()


def save_detector(detector: ObjectDetector, path: str | Path, half: bool = False) -> None:
    """Save a detector with the size of its input, as an ultralytics ``.pt``.

    ``ultralytics.YOLO(path)`` and ``build_detector`` load it.

    Args:
        detector: the detector.
        path: of the file.
        half: half precision on disk, as ultralytics saves its own; both load it into single precision.
    """
    model: Any = copy.deepcopy(detector.model).cpu().eval()
    if half:
        model.half()
    model.criterion = None  # set by training
    model.task = "segment" if hasattr(list(model.model.children())[-1], "proto") else "detect"
    model.args = {"imgsz": detector.image_size, "task": model.task}
    torch_save_atomic({"model": model, "train_args": model.args}, path)


def mask_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters for masks only, of prototypes and coefficients; none for a detection model."""
    head: Any = list(model.model.children())[-1]  # pyright: ignore
    parts = (getattr(head, name, None) for name in ("proto", "cv4", "one2one_cv4"))
    return [parameter for part in parts if part is not None for parameter in part.parameters()]


def _build(architecture: str) -> nn.Module:
    """Build an ultralytics model of one class, with random weights."""
    tasks = ultralytics_module("nn.tasks")
    descriptions = Path(str(ultralytics_module("cfg").__file__)).parent / "models"
    try:
        description = tasks.yaml_model_load(f"{architecture}.yaml")
    except FileNotFoundError as error:
        raise ValueError(unknown_architecture(architecture, descriptions)) from error
    require_object_detector(architecture, description, descriptions)
    has_masks = description["head"][-1][2].startswith("Segment")
    model_class = tasks.SegmentationModel if has_masks else tasks.DetectionModel
    model = model_class(f"{architecture}.yaml", nc=1, verbose=False)
    model.names = dict(NAMES)
    return model


def _load(path: Path, image_size: int | None) -> tuple[nn.Module, int]:
    """Load the model from an ultralytics checkpoint, and the size of the input that suits it."""
    require_weights(path)  # ultralytics would try to download a missing file
    tasks = ultralytics_module("nn.tasks")
    try:
        check_archive(path)
        content, _ = tasks.torch_safe_load(str(path), safe_only=True)
    except Exception as error:  # a damaged file raises any of a dozen types, as in checkpoints.py
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not an ultralytics checkpoint that can be loaded safely: {reason}") from error
    model: Any = content.get("ema") or content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, nn.Module) or not hasattr(model, "names"):
        raise ValueError(f"{path} must contain an ultralytics model, got none.")
    if not all(torch.isfinite(value).all() for value in model.state_dict().values()):
        raise ValueError(f"{path} contains NaN or infinity in its weights: the run that wrote it had diverged.")
    head: Any = list(model.model.children())[-1]  # pyright: ignore
    if hasattr(head, "cv4") and not hasattr(head, "proto"):
        # ObjectAwareModel.pt has a segmentation head without prototypes; it predicts boxes as a detection head does
        head.__class__ = ultralytics_module("nn.modules.head").Detect
        model.__class__ = tasks.DetectionModel
    _check_head(model, str(path))
    head.end2end = False  # use NMS, as YOLO.predict does by default; an end-to-end head returns at most 300 boxes
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".dfl." not in name)  # ultralytics' published weights are frozen
    return model.float(), _trained_size(content, path) if image_size is None else image_size


def _trained_size(content: dict[str, Any], path: Path) -> int:
    """Return the size of the input that a checkpoint was trained with; of a published one, that of its demo."""
    arguments = content.get("train_args")
    if path.name in WEIGHT_FILES or not isinstance(arguments, dict):
        return DEFAULT_SIZE
    size = arguments.get("imgsz") or DEFAULT_SIZE
    longest = max(size) if isinstance(size, list | tuple) and size else size
    if not isinstance(longest, int | float) or longest < 1 or longest % 1:
        raise ValueError(
            f"imgsz in the train_args of {path} must be a number of pixels, got {size!r}: set detector.image_size=N."
        )
    return int(longest)


def _check_head(model: nn.Module, name: str) -> None:
    """Check that the head of a model is one of ``HEADS``."""
    head = type(list(model.model.children())[-1]).__name__  # pyright: ignore
    if head not in HEADS:
        raise ValueError(f"The head of {name} must be one of {', '.join(HEADS)}, got {head}.")


def _to_one_class(model: Any, path: Path) -> nn.Module:
    """Build a model of one class with all tensors of another one whose shapes match."""
    new = type(model)(copy.deepcopy(model.yaml), nc=1, verbose=False)
    new.load(model, verbose=False)
    new.names = dict(NAMES)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    reinitialized = [name for name, value in new.state_dict().items() if shapes.get(name) != value.shape]
    logger.warning(
        "%s has %d classes and is converted to a detector of one class: %d of %d tensors are re-initialized: %s",
        path,
        len(model.names),
        len(reinitialized),
        len(new.state_dict()),
        ", ".join(reinitialized),
    )
    return new
