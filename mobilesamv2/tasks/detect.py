"""Training of the object-aware prompt detector, with ultralytics' loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from mobilesamv2.data.samples import Sample
from mobilesamv2.models.object_detector import ObjectDetector
from mobilesamv2.tasks.schedule import OptimizerFactory, cosine_schedule

IOUS = (0.5, 0.75)


class DetectObjects(pl.LightningModule):
    """Teaches a detector one class, "object".

    Args:
        detector: the model to train.
        optimizer: makes the optimizer from the parameters.
        warmup_images: images that the learning rate rises over.
        box_gain: weight of the boxes' IoU loss.
        class_gain: weight of the confidence loss.
        dfl_gain: weight of the distribution focal loss of the boxes' edges.
        max_boxes: boxes an image that validation looks at, the most confident.
        batchnorm_momentum: of the running statistics; None keeps ultralytics' .03, too slow for runs of a few hundred
            steps from random weights, whose statistics would lag behind their weights.

    Source: MobileSAMv2, section 4.1; the gains are ultralytics' defaults, the paper's are unpublished.
    """

    def __init__(
        self,
        detector: ObjectDetector,
        optimizer: OptimizerFactory,
        warmup_images: int = 0,
        box_gain: float = 7.5,
        class_gain: float = 0.5,
        dfl_gain: float = 1.5,
        max_boxes: int = 320,
        batchnorm_momentum: float | None = None,
    ) -> None:
        super().__init__()
        self.detector = detector
        if batchnorm_momentum is not None:
            for module in detector.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = batchnorm_momentum
        self._gains = SimpleNamespace(box=box_gain, cls=class_gain, dfl=dfl_gain)
        self._optimizer = optimizer
        self._warmup_images = warmup_images
        self._max_boxes = max_boxes
        self._loss: Any = None

    @property
    def backbone(self) -> nn.Module:
        """The network that compilation and memory layout are for."""
        return self.detector.model  # pyright: ignore[reportReturnType]

    def on_fit_start(self) -> None:
        """The loss looks at the model where it is; Lightning keeps the modes that it finds."""
        model: Any = self.detector.model
        model.args = self._gains
        self._loss = model.init_criterion()
        self.detector.train()

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """Loss of one batch, an image's on average."""
        size = len(batch["img"])
        losses, parts = self._loss(self.detector.model(batch["img"]), batch)  # a vector, times the number of images
        loss = losses.sum() / size
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in parts.items()}, batch_size=size)
        return loss

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """The share of objects with a box of IoU .5 and .75 among the most confident."""
        size = batch["img"].shape[-1]
        found = self.detector.boxes(batch["img"], confidence=0.001, nms_iou=0.9, max_boxes=self._max_boxes)
        for i, boxes in enumerate(found):
            wanted = box_convert(batch["bboxes"][batch["batch_idx"] == i], "cxcywh", "xyxy") * size
            if len(wanted) == 0:
                continue
            best = (
                box_iou(wanted, boxes[:, :4]).amax(1) if len(boxes) else torch.zeros(len(wanted), device=wanted.device)
            )
            # averaged over objects: each image weighs as many as it has
            recalls = {f"val/box_recall_{int(100 * t)}": (best >= t).float().mean() for t in IOUS}
            self.log_dict(recalls, prog_bar=True, batch_size=len(wanted), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """All parameters that ultralytics trains, warm-up and cosine."""
        return cosine_schedule(self.trainer, self.detector, self._optimizer, self._warmup_images)
