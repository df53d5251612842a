"""Training of the object-aware prompt detector, with ultralytics' loss."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from typing_extensions import override

from mobilesamv2.data.samples import Sample
from mobilesamv2.metrics.box_recall import DEFAULT_KS, BoxRecall, count_boxes
from mobilesamv2.models.object_detector import ObjectDetector, mask_parameters
from mobilesamv2.models.ultralytics_import import ultralytics_module
from mobilesamv2.ranges import Count, NonNegativeInt, Positive, Share, Weight
from mobilesamv2.tasks.box_report import log_box_recall
from mobilesamv2.tasks.schedule import OptimizerFactory, cosine_schedule

logger = logging.getLogger(__name__)

SKIPPED_BOX_STATS = ("boxes_dropped", "boxes_merged")
"""Counts, in each batch, of the boxes that are left out: those of less than a pixel, and duplicates."""

MASK_LOSS_TERMS = ("seg_loss", "sem_loss")
"""Terms of ultralytics' loss that it weights as the boxes' loss; here they have ``mask_gain``."""


class DetectObjects(pl.LightningModule):
    """Training of a detector on one class, "object".

    Args:
        detector: the model to train.
        optimizer: builds the optimizer from the parameter groups.
        warmup_images: images of the learning rate's warm-up.
        masks: supervise with masks too, as in MobileSAMv2's first stage; without, a segmentation head keeps its mask
            branch as it is.
        box_gain: weight of the boxes' IoU loss.
        class_gain: weight of the confidence loss.
        dfl_gain: weight of the distribution focal loss of the boxes' edges, or of their L1 loss for a head without one.
        mask_gain: weight of the masks' loss.
        ks: box counts per image at which validation measures recall, by confidence; the largest bounds the boxes.
        batchnorm_momentum: momentum of the running statistics; None keeps ultralytics' .03, too slow for runs of a few
            hundred steps from random weights, whose statistics would lag behind their weights.
        freeze: the first layers of the model, by ultralytics' numbers, that stay as they are, the running statistics of
            their batch norms too: 10 are the backbone of YOLOv8 up to its pooling.

    Raises:
        ValueError: if the detector has several classes, if its input's side is no multiple of its stride, if masks are
            to supervise a detector that predicts none, if ``box_gain`` is not positive, or if ``freeze`` leaves no
            layer to train.

    Source: MobileSAMv2, section 4.1; the gains are ultralytics' defaults, the paper's are unpublished.
    """

    def __init__(
        self,
        detector: ObjectDetector,
        optimizer: OptimizerFactory,
        warmup_images: NonNegativeInt = 0,
        masks: bool = False,
        box_gain: Positive = 7.5,
        class_gain: Weight = 0.5,
        dfl_gain: Weight = 1.5,
        mask_gain: Weight = 7.5,
        ks: Sequence[Count] = DEFAULT_KS,
        batchnorm_momentum: Share | None = None,
        freeze: NonNegativeInt = 0,
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
        layers: Any = detector.model.model
        if freeze >= len(layers):
            raise ValueError(f"task.freeze must be below the detector's {len(layers)} layers, got {freeze}.")
        self._frozen = list(layers[:freeze])
        for layer in self._frozen:
            layer.requires_grad_(False)
        self._gains = SimpleNamespace(box=box_gain, cls=class_gain, dfl=dfl_gain, overlap_mask=True, epochs=1)
        self._relative_mask_gain = mask_gain / box_gain
        self._masks = masks
        self._optimizer = optimizer
        self._warmup_images = warmup_images
        self._loss: Any = None
        self._total_steps = 1

    @property
    def backbone(self) -> nn.Module:
        """Return the network that compilation and memory layout apply to."""
        return self.detector.model  # pyright: ignore[reportReturnType]

    @override
    def on_fit_start(self) -> None:
        model: Any = self.detector.model
        model.args = self._gains
        # The loss is built here, since it reads the model's device.
        box_model = ultralytics_module("nn.tasks").DetectionModel
        self._loss = model.init_criterion() if self._masks else box_model.init_criterion(model)
        self.detector.train()  # Lightning keeps the modes that it finds
        for layer in self._frozen:
            layer.eval()
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        self._total_steps = max(1, data.total_steps)

    @override
    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        size = len(batch["img"])
        self._shift_to_one_to_one()
        if self._masks:
            # the class of each pixel, which the loss reads where it reads masks
            batch = batch | {"sem_masks": torch.zeros_like(batch["masks"])}
        # ultralytics' loss is a vector of terms, multiplied by the number of images
        losses, parts = self._loss(self.detector.model(_pixels(batch)), batch)
        gains = [self._relative_mask_gain if name in MASK_LOSS_TERMS else 1.0 for name in parts]
        loss = (losses * losses.new_tensor(gains)).sum() / size
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        scaled = {f"train/{name}": value * gain for (name, value), gain in zip(parts.items(), gains, strict=True)}
        self.log_dict(scaled, batch_size=size)
        self.log_dict(
            {f"train/{name}": float(batch[name]) for name in SKIPPED_BOX_STATS},
            on_step=False,
            on_epoch=True,
            reduce_fx="sum",
            sync_dist=True,
        )
        return loss

    def _shift_to_one_to_one(self) -> None:
        """Shift the loss of a head with two branches towards the one-to-one branch as the run proceeds.

        Source: ultralytics' ``E2ELoss``, which does so per epoch; here it is per step.
        """
        loss = self._loss
        if hasattr(loss, "final_o2m"):
            remaining = 1 - self.trainer.global_step / self._total_steps
            loss.o2m = loss.final_o2m + (loss.o2m_copy - loss.final_o2m) * remaining
            loss.o2o = loss.total - loss.o2m

    @override
    def on_train_epoch_end(self) -> None:
        metrics = self.trainer.callback_metrics
        dropped, merged = (int(metrics.get(f"train/{name}", 0)) for name in SKIPPED_BOX_STATS)
        if self.trainer.is_global_zero and dropped + merged:
            logger.info(
                "Epoch %d: %d boxes of less than a pixel dropped, %d duplicates merged.",
                self.current_epoch,
                dropped,
                merged,
            )

    @override
    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        side, ks = batch["img"].shape[-1], self.recall.ks
        predictions = self.detector.boxes(_pixels(batch), confidence=0.001, nms_iou=0.9, max_boxes=max(ks))
        for i, boxes in enumerate(predictions):
            in_image = batch["batch_idx"] == i
            truths = box_convert(batch["bboxes"][in_image], "cxcywh", "xyxy") * side
            self.recall.update(count_boxes(boxes[:, :4], boxes[:, 4], truths, batch["areas"][in_image], ks))

    @override
    def on_validation_epoch_end(self) -> None:
        log_box_recall(self, self.recall)

    @override
    def configure_optimizers(self) -> Any:
        return cosine_schedule(self.trainer, self.detector, self._optimizer, self._warmup_images)


def _pixels(batch: Sample) -> Tensor:
    """Return the images (B, 3, S, S) in [0, 1]."""
    return batch["img"].float() / 255


def _check(detector: ObjectDetector, masks: bool, box_gain: float) -> None:
    model: Any = detector.model
    if len(model.names) > 1:
        raise ValueError(f"The detector must have one class, got {len(model.names)}. Set detector.one_class=true.")
    stride = int(model.stride.max())
    if detector.image_size % stride:
        raise ValueError(
            f"detector.image_size must be a multiple of the model's stride {stride}, got {detector.image_size}."
        )
    if masks and not mask_parameters(model):
        raise ValueError("task.masks=true requires a segmentation head: set detector.architecture=yolov8x-seg, say.")
    if box_gain <= 0:
        raise ValueError(f"task.box_gain must be above 0, got {box_gain}.")
