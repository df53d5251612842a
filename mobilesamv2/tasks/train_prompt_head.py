"""Training of a prompt head on the image embeddings of a frozen model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from mobilesamv2.data.samples import Sample
from mobilesamv2.metrics.box_recall import DEFAULT_KS, BoxRecall, count_boxes
from mobilesamv2.models.prompt_head import PromptHead
from mobilesamv2.ranges import Count, NonNegativeInt, Positive
from mobilesamv2.tasks.box_losses import box_losses
from mobilesamv2.tasks.box_report import log_box_recall
from mobilesamv2.tasks.schedule import OptimizerFactory, cosine_schedule
from mobilesamv2.tasks.teacher import LearnsFromTeacher, Teacher


class TrainPromptHead(LearnsFromTeacher):
    """Training of a prompt head on the boxes of all objects; the model whose embeddings it reads stays as it is.

    Args:
        head: the head to train.
        teacher: the model, with the cache of its embeddings.
        optimizer: builds the optimizer from the parameter groups.
        warmup_images: images of the learning rate's warm-up.
        box_weight: weight of the boxes' loss, beside 1 for that of their quality.
        points_per_object: points that learn an object's box, see ``assign_points``.
        ks: box counts per image at which validation measures recall, by confidence; the largest bounds the boxes.

    Raises:
        ValueError: if the cache lacks the padding, which a head sees when it is used.
    """

    def __init__(
        self,
        head: PromptHead,
        teacher: Teacher,
        optimizer: OptimizerFactory,
        warmup_images: NonNegativeInt = 0,
        box_weight: Positive = 4.0,
        points_per_object: Count = 10,
        ks: Sequence[Count] = DEFAULT_KS,
    ) -> None:
        super().__init__(teacher)
        teacher.check_all_levels("the head reads all of them when it is used.")
        teacher.check_full_embeddings("the head sees the padding when it is used. Set cache.store_padding=true.")
        self.head = head
        self.recall = BoxRecall(ks)
        self._optimizer = optimizer
        self._warmup_images = warmup_images
        self._box_weight = box_weight
        self._points_per_object = points_per_object

    @property
    def backbone(self) -> nn.Module:
        """Return the network that compilation and memory layout apply to."""
        return self.head

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.head.train()  # Lightning keeps the modes that it finds

    @override
    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        predictions = self.head(self.teacher.embedding(batch))
        quality, boxes = box_losses(predictions, batch["boxes_xyxy"], self._points_per_object)
        loss = quality + self._box_weight * boxes
        size = len(batch["pixels"])
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log_dict({"train/quality_loss": quality, "train/box_loss": boxes}, batch_size=size)
        return loss

    @override
    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        resized = [(height, width) for height, width in batch["resized"].tolist()]
        ks = self.recall.ks
        found = self.head.boxes(
            self.teacher.embedding(batch), resized, confidence=0.001, nms_iou=0.9, max_boxes=max(ks)
        )
        for (boxes, scores), truths, areas in zip(found, batch["boxes_xyxy"], batch["areas"], strict=True):
            self.recall.update(count_boxes(boxes, scores, truths, areas, ks))

    @override
    def on_validation_epoch_end(self) -> None:
        log_box_recall(self, self.recall)

    @override
    def configure_optimizers(self) -> Any:
        return cosine_schedule(self.trainer, self.head, self._optimizer, self._warmup_images)
