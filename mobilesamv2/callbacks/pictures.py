"""Pictures of what is trained, on the same validation images throughout a run, in the loggers that show images."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from mobilesamv2.data.base import ImageDataset
from mobilesamv2.masks import tight_boxes
from mobilesamv2.models.object_detector import ObjectDetector
from mobilesamv2.models.sam import Sam
from mobilesamv2.prompt_heads import EncodedDetector
from mobilesamv2.ranges import Count
from mobilesamv2.segany import SegAny
from mobilesamv2.structures import GroundTruth
from mobilesamv2.visualize import overlay, panels

logger = logging.getLogger(__name__)

NAME = "val/predictions"
"""Under which the loggers keep the pictures."""

OBJECTS = 12
"""Largest objects of an image that prompt by their boxes; without any, ``POINTS`` x ``POINTS`` points do."""

POINTS = 3

PANEL_SIDE = 384
"""Pixels of a picture's longer side."""


class PredictionPictures(Callback):
    """Draws predictions beside the annotations every so many steps, where a logger shows images.

    A SAM's are its masks of the largest objects' boxes, in the colours of these, or of a few points where there is no
    object; a detector's its boxes. Nothing is drawn without such a logger: one with ``log_image``, as of Weights &
    Biases, or whose experiment has ``add_image``, as of TensorBoard.

    Args:
        model: what is trained.
        every_n_steps: optimizer steps from one picture to the next.
        images: the number of validation images in a picture, the first ones.
    """

    def __init__(self, model: Sam | ObjectDetector | EncodedDetector, every_n_steps: Count, images: Count = 4) -> None:
        self.model = model
        self.every_n_steps = every_n_steps
        self.images = images
        self._last_step = 0

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._last_step or step % self.every_n_steps or not trainer.is_global_zero:
            return
        self._last_step = step  # several batches may make a step
        loggers = [logger for logger in trainer.loggers if _shows_images(logger)]
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        rows = self._rows(data) if loggers else []
        if rows:
            picture = panels(rows, ("annotated", "predicted"))
            for shown in loggers:
                _log(shown, picture, step)

    @torch.no_grad()
    def _rows(self, data: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the annotated and the predicted panel of each image; the model's modes stay as they are."""
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        rows = []
        try:
            for index in data.validation[: self.images]:
                try:
                    image, truth = _annotated_image(data.samples.samples.images, index)
                except (OSError, ValueError) as error:
                    logger.warning("Left out of the pictures: %s", error)
                    continue
                annotated = overlay(image, truth.rles, objects=range(len(truth.rles)))
                rows.append((_shrink(annotated), _shrink(self._draw(image, truth))))
        finally:
            self.model.train()  # drops what timm's TinyViT caches in eval mode
            for module, training in modes.items():
                module.training = training
        return rows

    def _draw(self, image: np.ndarray, truth: GroundTruth) -> np.ndarray:
        if isinstance(self.model, ObjectDetector | EncodedDetector):
            return _draw_boxes(image, self.model.detect(image)[0])
        segany = SegAny(self.model)
        segany.set_image(image)
        if truth.rles:
            boxes = tight_boxes(truth.rles).float()
            sides = boxes[:, 2:] - boxes[:, :2]
            largest = sides.prod(1).argsort(descending=True, stable=True)[:OBJECTS]
            masks = segany.predict(boxes=boxes[largest], multimask_output=False).masks[:, 0]
            return overlay(image, masks, objects=largest.tolist())
        height, width = truth.size
        shares = (np.arange(POINTS) + 0.5) / POINTS
        points = np.stack(np.meshgrid(shares * width, shares * height), axis=-1).reshape(-1, 1, 2)
        prediction = segany.predict(points=points)
        return overlay(image, prediction.masks[np.arange(len(points)), prediction.predicted_iou.argmax(1)])


def _annotated_image(images: ImageDataset, index: int) -> tuple[np.ndarray, GroundTruth]:
    """Return an image and its objects, none of photos without annotations, which refuse to return any."""
    if images.has_objects:
        return images[index]
    image = images.load_image(index)
    return image, GroundTruth(images.image_ids[index], (image.shape[0], image.shape[1]), [], [], [])


def _shows_images(target: Any) -> bool:
    return hasattr(target, "log_image") or hasattr(target.experiment, "add_image")


def _log(target: Any, picture: Image.Image, step: int) -> None:
    if hasattr(target, "log_image"):
        target.log_image(NAME, [picture], step=step)
    else:
        target.experiment.add_image(NAME, np.asarray(picture), step, dataformats="HWC")


def _shrink(image: np.ndarray) -> np.ndarray:
    """Return an image no larger than a panel."""
    picture = Image.fromarray(image)
    picture.thumbnail((PANEL_SIDE, PANEL_SIDE))
    return np.asarray(picture)


def _draw_boxes(image: np.ndarray, boxes_xyxy: torch.Tensor) -> np.ndarray:
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    for box in boxes_xyxy.tolist():
        pen.rectangle(box, outline=(255, 220, 0), width=max(1, max(image.shape[:2]) // 300))
    return np.asarray(picture)
