"""The object-aware prompt detector: a class-agnostic YOLO of ultralytics (AGPL-3.0), imported only when used."""

from __future__ import annotations

import copy
import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilesamv2.released import require_released
from mobilesamv2.transforms import check_image

NO_TIME_LIMIT = 3600.0
"""Seconds an image; ultralytics' own limit would silently drop the boxes of a slow machine."""


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
        image = check_image(image)
        letterbox = ultralytics_module("data.augment").LetterBox(
            self.image_size,
            auto=True,
            stride=int(self.model.stride.max()),  # pyright: ignore
        )
        boxed = np.ascontiguousarray(letterbox(image=image).transpose(2, 0, 1))
        device = next(self.model.parameters()).device
        pixels = torch.from_numpy(boxed).to(device).float()[None] / 255  # (1, 3, h, w)
        found = self.boxes(pixels, confidence, nms_iou, max_boxes)[0]
        height, width = pixels.shape[2:]
        boxes_xyxy = snap_to_border(found[:, :4], (height, width), snap)
        boxes_xyxy = ultralytics_module("utils.ops").scale_boxes((height, width), boxes_xyxy, image.shape)
        return boxes_xyxy.cpu(), found[:, 4].cpu()

    def boxes(self, pixels: Tensor, confidence: float, nms_iou: float, max_boxes: int) -> list[Tensor]:
        """Boxes of each image in pixels of the input: (N, 5 or more) xyxy, confidence, and what the head adds.

        Args:
            pixels: (B, 3, h, w) RGB in [0, 1].
            confidence: boxes of less are dropped.
            nms_iou: of two boxes that overlap by more, the more confident stays.
            max_boxes: at most so many an image, the most confident.
        """
        weights = next(self.model.parameters())
        with torch.autocast(weights.device.type, enabled=False):  # half precision would round boxes to several pixels
            predictions = self.model(pixels.to(weights.dtype))
        while not isinstance(predictions, Tensor):  # with what the head of the model adds, nested to its own depth
            predictions = predictions[0]
        return ultralytics_module("utils.nms").non_max_suppression(
            predictions.float(),
            conf_thres=confidence,
            iou_thres=nms_iou,
            max_det=max_boxes,
            nc=len(self.model.names),  # pyright: ignore
            max_time_img=NO_TIME_LIMIT,
            end2end=bool(getattr(self.model, "end2end", False)),
        )


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
    architecture: str = "yolov8x", checkpoint: str | Path | None = None, image_size: int = 1024
) -> ObjectDetector:
    """Builds a detector, in eval mode on the CPU.

    Args:
        architecture: name of an ultralytics model, ``yolov8n`` or ``yolov8x-seg`` for example, built with one class and
            random weights; a checkpoint says itself what it is of, and then this is not read.
        checkpoint: an ultralytics ``.pt``, MobileSAMv2's ``ObjectAwareModel.pt`` included. Nothing in it is executed
            beyond the model classes that ultralytics and torch are known to have.
        image_size: the longest side of the detector's input, pixels.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: ultralytics has no such model, or the checkpoint is none of its own.
    """
    if checkpoint is not None:
        return ObjectDetector(_load(Path(checkpoint)), image_size).eval()
    tasks = ultralytics_module("nn.tasks")
    model_class = tasks.SegmentationModel if architecture.endswith("-seg") else tasks.DetectionModel
    try:
        model = model_class(f"{architecture}.yaml", nc=1, verbose=False)
    except FileNotFoundError as error:
        raise ValueError(f"ultralytics has no model '{architecture}'; it has yolov8n and yolov8x-seg, say.") from error
    return ObjectDetector(model, image_size).eval()


def save_detector(detector: ObjectDetector, path: str | Path) -> None:
    """Writes a detector as an ultralytics ``.pt``, which ``ultralytics.YOLO(path)`` and ``build_detector`` load."""
    model: Any = copy.deepcopy(detector.model).cpu().eval()
    model.criterion = None  # training leaves its loss there
    model.task = "segment" if hasattr(list(model.model.children())[-1], "proto") else "detect"
    model.args = {"imgsz": detector.image_size, "task": model.task}
    torch.save({"model": model, "train_args": model.args}, Path(path))


def _load(path: Path) -> nn.Module:
    """The model in an ultralytics checkpoint."""
    require_released(path)  # ultralytics would ask the network for a missing file
    try:
        content, _ = ultralytics_module("nn.tasks").torch_safe_load(str(path), safe_only=True)
    except (TypeError, RuntimeError, OSError, ModuleNotFoundError, AssertionError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is not an ultralytics checkpoint that can be read safely: {reason}") from error
    model = content.get("ema") or content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, nn.Module) or not hasattr(model, "names"):
        raise ValueError(f"{path} holds no ultralytics model.")
    head: Any = list(model.model.children())[-1]  # pyright: ignore
    if hasattr(head, "cv4") and not hasattr(head, "proto"):
        # ObjectAwareModel.pt has a segmentation head without prototypes; its boxes are a detection head's.
        head.__class__ = ultralytics_module("nn.modules.head").Detect
    return model.float()


def ultralytics_module(module: str) -> Any:
    """A module of ultralytics, imported without its settings file, installer or telemetry."""
    os.environ.setdefault("YOLO_CONFIG_DIR", str(Path(tempfile.gettempdir()) / "mobilesamv2-ultralytics"))
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    return importlib.import_module(f"ultralytics.{module}")
