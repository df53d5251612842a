"""Training of the object-aware prompt detector, with ultralytics' loss."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from mobilesamv2.data.samples import Sample
from mobilesamv2.metrics.box_recall import DEFAULT_KS, BoxRecall, count_boxes
from mobilesamv2.models.object_detector import ObjectDetector, mask_parameters, ultralytics_module
from mobilesamv2.tasks.schedule import OptimizerFactory, cosine_schedule

logger = logging.getLogger(__name__)

LEFT_OUT = ("boxes_dropped", "boxes_merged")
"""What a batch counts of boxes that were left out: of less than a pixel, and duplicates."""

OF_MASKS = ("seg_loss", "sem_loss")
"""Parts of ultralytics' loss that it weighs as the boxes' loss; ``mask_gain`` is for them."""

SHOWN = ("val/box_recall_50", "val/box_recall_75")
"""On the progress bar."""

DEMO_CONFIDENCE = 0.4
"""Threshold of MobileSAMv2's demo."""


class DetectObjects(pl.LightningModule):
    """Teaches a detector one class, "object".

    Args:
        detector: the model to train.
        optimizer: makes the optimizer from the parameters.
        warmup_images: images that the learning rate rises over.
        masks: masks supervise too, as in MobileSAMv2's first stage; a segmentation head that is trained without them
            keeps its mask branch as it is.
        box_gain: weight of the boxes' IoU loss.
        class_gain: weight of the confidence loss.
        dfl_gain: weight of the distribution focal loss of the boxes' edges, or of their L1 loss where a head has none.
        mask_gain: weight of the masks' loss.
        ks: boxes an image that validation looks at, the most confident; the largest bounds them.
        batchnorm_momentum: of the running statistics; None keeps ultralytics' .03, too slow for runs of a few hundred
            steps from random weights, whose statistics would lag behind their weights.

    Raises:
        ValueError: the detector knows several classes, its input's side is no multiple of its stride, or masks are to
            supervise a detector that predicts none.

    Source: MobileSAMv2, section 4.1; the gains are ultralytics' defaults, the paper's are unpublished.
    """

    def __init__(
        self,
        detector: ObjectDetector,
        optimizer: OptimizerFactory,
        warmup_images: int = 0,
        masks: bool = False,
        box_gain: float = 7.5,
        class_gain: float = 0.5,
        dfl_gain: float = 1.5,
        mask_gain: float = 7.5,
        ks: Sequence[int] = DEFAULT_KS,
        batchnorm_momentum: float | None = None,
    ) -> None:
        super().__init__()
        _check(detector, masks, box_gain)
        self.detector = detector
        self.recall = BoxRecall(ks)
        for parameter in [] if masks else mask_parameters(detector.model):
            parameter.requires_grad_(False)
        if batchnorm_momentum is not None:
            for module in detector.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = batchnorm_momentum
        self._gains = SimpleNamespace(box=box_gain, cls=class_gain, dfl=dfl_gain, overlap_mask=True, epochs=1)
        self._of_masks = mask_gain / box_gain
        self._masks = masks
        self._optimizer = optimizer
        self._warmup_images = warmup_images
        self._loss: Any = None
        self._steps = 1

    @property
    def backbone(self) -> nn.Module:
        """The network that compilation and memory layout are for."""
        return self.detector.model  # pyright: ignore[reportReturnType]

    def on_fit_start(self) -> None:
        """The loss looks at the model where it is; Lightning keeps the modes that it finds."""
        model: Any = self.detector.model
        model.args = self._gains
        of_boxes = ultralytics_module("nn.tasks").DetectionModel
        self._loss = model.init_criterion() if self._masks else of_boxes.init_criterion(model)
        self.detector.train()
        self._steps = max(1, int(self.trainer.estimated_stepping_batches))

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """Loss of one batch, an image's on average."""
        size = len(batch["img"])
        self._shift_to_one_to_one()
        if self._masks:
            batch = batch | {
                "sem_masks": torch.zeros_like(batch["masks"])
            }  # the class of each pixel, read where masks are
        # a vector, times the number of images
        losses, parts = self._loss(self.detector.model(_pixels(batch)), batch)
        gains = [self._of_masks if name in OF_MASKS else 1.0 for name in parts]
        loss = (losses * losses.new_tensor(gains)).sum() / size
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        scaled = {f"train/{name}": value * gain for (name, value), gain in zip(parts.items(), gains, strict=True)}
        self.log_dict(scaled, batch_size=size)
        self.log_dict(
            {f"train/{name}": float(batch[name]) for name in LEFT_OUT},
            on_step=False,
            on_epoch=True,
            reduce_fx="sum",
            sync_dist=True,
        )
        return loss

    def _shift_to_one_to_one(self) -> None:
        """Heads with a second branch, of one box for each object, learn that one more as the run goes on.

        Source: ultralytics' ``E2ELoss``, which does so from epoch to epoch; here it is from step to step.
        """
        loss = self._loss
        if hasattr(loss, "final_o2m"):
            left = 1 - self.trainer.global_step / self._steps
            loss.o2m = loss.final_o2m + (loss.o2m_copy - loss.final_o2m) * left
            loss.o2o = loss.total - loss.o2m

    def on_train_epoch_end(self) -> None:
        """How many boxes were left out."""
        dropped, merged = (int(self.trainer.callback_metrics.get(f"train/{name}", 0)) for name in LEFT_OUT)
        if self.trainer.is_global_zero and dropped + merged:
            logger.info(
                "Epoch %d: %d boxes of less than a pixel dropped, %d duplicates merged.",
                self.current_epoch,
                dropped,
                merged,
            )

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Compares the boxes with those of the objects."""
        side, ks = batch["img"].shape[-1], self.recall.ks
        found = self.detector.boxes(_pixels(batch), confidence=0.001, nms_iou=0.9, max_boxes=max(ks))
        for i, boxes in enumerate(found):
            of_image = batch["batch_idx"] == i
            truths = box_convert(batch["bboxes"][of_image], "cxcywh", "xyxy") * side
            self.recall.update(count_boxes(boxes[:, :4], boxes[:, 4], truths, batch["areas"][of_image], ks))

    def on_validation_epoch_end(self) -> None:
        """Sums over all processes, logs, and writes the calibration into the run's folder."""
        report = self.recall.compute()
        self.recall.reset()
        if self.trainer.sanity_checking:
            return
        values = {f"val/box_{name}": value for name, value in report.values.items()}
        for confidence, boxes, recall in report.calibration:
            if confidence == DEMO_CONFIDENCE:
                at = f"conf_{round(100 * confidence)}"
                values |= {f"val/boxes_{at}": boxes, f"val/box_recall_50_{at}": recall}
        for name, value in values.items():  # the same in all processes
            self.log(name, value, prog_bar=name in SHOWN, sync_dist=True)
        if self.trainer.is_global_zero:
            with (Path(self.trainer.default_root_dir) / "calibration.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(("confidence", "boxes_per_image", "box_recall_50"))
                rows.writerows([f"{value:.6g}" for value in row] for row in report.calibration)

    def configure_optimizers(self) -> Any:
        """All parameters that ultralytics trains, warm-up and cosine."""
        return cosine_schedule(self.trainer, self.detector, self._optimizer, self._warmup_images)


def _pixels(batch: Sample) -> Tensor:
    """(B, 3, S, S) in [0, 1]."""
    return batch["img"].float() / 255


def _check(detector: ObjectDetector, masks: bool, box_gain: float) -> None:
    model: Any = detector.model
    if len(model.names) > 1:
        raise ValueError(
            f"The detector knows {len(model.names)} classes, and is to know one: detector.one_class=true makes it so."
        )
    stride = int(model.stride.max())
    if detector.image_size % stride:
        raise ValueError(
            f"detector.image_size is a multiple of the model's stride {stride}; got {detector.image_size}."
        )
    if masks and not mask_parameters(model):
        raise ValueError("task.masks=true wants a model with a segmentation head: detector.architecture=yolov8x-seg.")
    if box_gain <= 0:
        raise ValueError(f"task.box_gain is above 0; got {box_gain}.")
