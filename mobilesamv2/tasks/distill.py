"""Distillation: the base that its kinds share, and the decoupled kind, which learns the teacher's image embeddings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from mobilesamv2.data.samples import Sample
from mobilesamv2.models.sam import Sam
from mobilesamv2.ranges import NonNegativeInt, Weight
from mobilesamv2.structures import EMBEDDING_STRIDE
from mobilesamv2.tasks.losses import embedding_losses
from mobilesamv2.tasks.sam2_from_sam import is_sam2_of_sam, start_from_sam
from mobilesamv2.tasks.schedule import OptimizerFactory, cosine_schedule
from mobilesamv2.tasks.teacher import LearnsFromTeacher, Teacher

logger = logging.getLogger(__name__)


class Distill(LearnsFromTeacher):
    """A student and its teacher: the base of all kinds of distillation.

    The student's prompt encoder and mask decoder become copies of the teacher's, since its embeddings are to fit them.
    This holds for a student of another input too: its image embedding has another grid, and nothing in the two depends
    on one, since the positions of cells and of prompts are shares of the input's side. A student of another embedding
    width keeps its own two, whose weights have other shapes.

    Args:
        student: the model to train.
        teacher: the model to imitate; samples and prompts are in pixels of its input.
        optimizer: builds the optimizer from the parameter groups.
        warmup_images: images of the learning rate's warm-up.
        train_decoder: train the student's mask decoder too.

    Attributes:
        takes_sam_for_sam2: whether a SAM may teach a SAM 2.
        learns_masks: whether it learns the annotated masks beside its teacher.

    Raises:
        ValueError: if the two are of different families, the teacher leaves out levels of the student, or the cache
            lacks the padding for a student of another input.
    """

    takes_sam_for_sam2 = False
    learns_masks = False

    def __init__(
        self,
        student: Sam,
        teacher: Teacher,
        optimizer: OptimizerFactory,
        warmup_images: NonNegativeInt = 0,
        train_decoder: bool = False,
    ) -> None:
        super().__init__(teacher)
        crosses = self.takes_sam_for_sam2 and is_sam2_of_sam(student, teacher.sam)
        decoders = [sam.mask_decoder.state_dict().keys() for sam in (student, teacher.sam)]
        if (student.resizing is not teacher.sam.resizing or decoders[0] != decoders[1]) and not crosses:
            raise ValueError(
                "The student must be of its teacher's family, SAM, SAM-HQ, SAM 2 or EfficientSAM, got "
                f"{student.name} for {teacher.sam.name}"
                f"{'' if self.takes_sam_for_sam2 else '; task=distill takes a SAM for SAM 2'}."
            )
        self._scale = student.image_size / teacher.sam.image_size
        if self._scale != 1:
            teacher.check_full_embeddings(
                "the embeddings are resampled for a student of another image size. Set cache.store_padding=true."
            )
        _require_levels(student, teacher, crosses)
        if crosses:
            start_from_sam(student, teacher.sam)
        elif student.prompt_encoder.embed_dim == teacher.sam.prompt_encoder.embed_dim:
            student.prompt_encoder.load_state_dict(teacher.sam.prompt_encoder.state_dict())
            student.mask_decoder.load_state_dict(teacher.sam.mask_decoder.state_dict())
            student.thresholds = teacher.sam.thresholds  # they are of the decoder's scores
        _log_differences(student, teacher.sam)
        student.prompt_encoder.requires_grad_(False)
        student.mask_decoder.requires_grad_(train_decoder)
        self.student = student
        self._optimizer = optimizer
        self._warmup_images = warmup_images
        self._train_decoder = train_decoder

    @property
    def backbone(self) -> nn.Module:
        """Return the network that compilation and memory layout apply to."""
        return self.student.image_encoder

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        # Lightning keeps the modes that it finds, and build_sam builds in eval mode.
        self.student.image_encoder.train()
        self.student.mask_decoder.train(self._train_decoder)

    @override
    def configure_optimizers(self) -> Any:
        return cosine_schedule(self.trainer, self, self._optimizer, self._warmup_images)

    def encode(self, batch: Sample) -> Tensor:
        """Return the student's image embeddings (B, C, h, w) of a batch, of its own pixels where its input differs."""
        return self.student.image_encoder(batch["pixels" if self._scale == 1 else "student_pixels"])


class DistillDecoupled(Distill):
    """Decoupled distillation: only the student's image encoder is trained, on the teacher's image embeddings.

    For a student of another input the teacher's embeddings are resampled to the student's grid, by antialiased bilinear
    interpolation. For one of another embedding width a 1 x 1 convolution, which is trained along and then dropped, maps
    the student's embeddings to the teacher's width.

    A SAM 2 may learn from a SAM: the coarsest level of its embedding learns SAM's, see ``start_from_sam``.

    Args:
        student: the model to train.
        teacher: the model to imitate.
        optimizer: builds the optimizer from the parameter groups.
        warmup_images: images of the learning rate's warm-up.
        mse_weight: weight of the mean squared error.
        cosine_weight: weight of one minus the cosine similarity of each cell.
        level_weights: of SAM 2, the weights of its levels at strides 16, 8 and 4, as many as the student has, of SAM-HQ
            those of SAM's embedding and of its finer features; the loss is their weighted mean. None weighs them
            equally. SAM has one level, and takes None only.
        mask_padding: leave out the cells that hold no pixel of the image, as EdgeSAM does.
        init_from_teacher: start from the tensors of the teacher's image encoder that have the same name and shape, for
            a student that is a pruned teacher; else the student keeps the weights that it comes with.

    Raises:
        ValueError: as in ``Distill``; if the weights are not those of the student's levels, if the cache lacks the
            padding and the loss includes it, or if the teacher has no tensor to start from.

    Source: MobileSAM, section 3, which has only the mean squared error, of all cells. The projection is FitNets'.
    """

    takes_sam_for_sam2 = True

    def __init__(
        self,
        student: Sam,
        teacher: Teacher,
        optimizer: OptimizerFactory,
        warmup_images: NonNegativeInt = 0,
        mse_weight: Weight = 1.0,
        cosine_weight: Weight = 0.0,
        level_weights: Sequence[Weight] | None = None,
        mask_padding: bool = False,
        init_from_teacher: bool = False,
    ) -> None:
        super().__init__(student, teacher, optimizer, warmup_images)
        if init_from_teacher:
            _copy_shared_tensors(teacher.sam.image_encoder, student.image_encoder)
        if not mask_padding:
            teacher.check_full_embeddings(
                "the loss includes the padding. Set cache.store_padding=true or task.mask_padding=true."
            )
        widths = student.prompt_encoder.embed_dim, teacher.sam.prompt_encoder.embed_dim
        self.projection = nn.Identity() if widths[0] == widths[1] else nn.Conv2d(*widths, kernel_size=1)
        self._mse_weight, self._cosine_weight = mse_weight, cosine_weight
        # the levels that both have, of a projection all channels
        self._widths = student.level_channels[: len(teacher.level_channels)]
        if len(self._widths) == 1:
            self._widths = (widths[1],)
        self._level_shares = _level_shares(level_weights, student, len(self._widths))
        self._mask_padding = mask_padding

    @override
    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        mse, cosine = self._errors(batch)
        loss = self._mse_weight * mse + self._cosine_weight * cosine
        size = len(batch["pixels"])
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log("train/cosine", 1 - cosine.detach(), batch_size=size)
        return loss

    @override
    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        mse, cosine = self._errors(batch)
        size = len(batch["pixels"])
        loss = self._mse_weight * mse + self._cosine_weight * cosine
        self.log("val/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self.log("val/cosine", 1 - cosine, batch_size=size, sync_dist=True)

    def _errors(self, batch: Sample) -> tuple[Tensor, Tensor]:
        """Return the mean squared error and one minus the cosine similarity, means over the cells that count."""
        student, teacher = self.projection(self.encode(batch)), self.teacher.embedding(batch)
        teacher = resample_embedding(teacher, student.shape[-1])
        resized = (batch["resized"] * self._scale).ceil().long() if self._scale != 1 else batch["resized"]
        valid = valid_cells(resized, student.shape[-1]) if self._mask_padding else None
        # where one of the two lacks finer levels, it has the first channels of the other's embedding
        ours, theirs = (all_levels[:, : sum(self._widths)].split(self._widths, 1) for all_levels in (student, teacher))
        pairs = zip(ours, theirs, strict=True)
        errors = [embedding_losses(*pair, valid) for pair in pairs]
        mse, cosine = zip(*errors, strict=True)
        return self._weighted(mse), self._weighted(cosine)

    def _weighted(self, errors: Sequence[Tensor]) -> Tensor:
        """Return the mean of the levels' errors by their weights."""
        return torch.stack([share * error for share, error in zip(self._level_shares, errors, strict=True)]).sum()


def _level_shares(weights: Sequence[float] | None, student: Sam, number: int) -> list[float]:
    """Return the share of the loss that each level has which a student learns, ``number`` of them."""
    if weights is None:
        return [1 / number] * number
    if len(student.level_channels) == 1 and not student.packs_levels:
        raise ValueError(
            f"task.level_weights must be null for {student.name}: its embedding has one level, got {list(weights)}."
        )
    if len(weights) != number or min(weights) < 0 or not sum(weights):
        raise ValueError(
            f"task.level_weights must be {number} number(s) of at least 0, not all 0, one for each learnt level "
            f"of {student.encoder_name} from stride 16 on, got {list(weights)}."
        )
    return [weight / sum(weights) for weight in weights]


def _require_levels(student: Sam, teacher: Teacher, crosses: bool) -> None:
    """Check that the levels of a student's embedding are its teacher's, or begin with it if that is a SAM's."""
    if len(student.level_channels) > len(teacher.level_channels) and not crosses:
        some = f" with teacher.levels={len(teacher.level_channels)}"
        raise ValueError(
            f"The teacher must have the levels of its student {student.encoder_name}, got {teacher.sam.encoder_name}"
            f"{'' if teacher.has_all_levels else some}, which leaves out the finer ones."
        )
    sizes = [(sam.image_size, sam.prompt_encoder.embed_dim) for sam in (student, teacher.sam)]
    if (student.packs_levels or len(student.level_channels) > 1) and sizes[0] != sizes[1]:
        raise ValueError(
            f"A student of SAM 2 or SAM-HQ must have its teacher's image size and embedding width {sizes[1]}, got "
            f"{sizes[0]}: its finer levels are packed cell by cell."
        )


def _log_differences(student: Sam, teacher: Sam) -> None:
    """State what a student of another size than its teacher's means for the target and the decoder."""
    if student.image_size != teacher.image_size:
        logger.info(
            "The student has an input of %d pixels, the teacher one of %d: it learns from the teacher's output, "
            "resampled to its own grid.",
            *(student.image_size, teacher.image_size),
        )
        if student.prompt_encoder.embed_dim == teacher.prompt_encoder.embed_dim:
            logger.info("The student uses the teacher's prompt encoder and mask decoder, on this grid.")
    if student.prompt_encoder.embed_dim != teacher.prompt_encoder.embed_dim:
        logger.warning(
            "The student's embeddings have %d channels, the teacher's %d: the student can't use the teacher's prompt "
            "encoder and mask decoder and keeps its own. Train them by task=distill_coupled or task=finetune_decoder.",
            *(student.prompt_encoder.embed_dim, teacher.prompt_encoder.embed_dim),
        )


def resample_embedding(embedding: Tensor, grid: int) -> Tensor:
    """Resample image embeddings (B, C, h, h) to (B, C, grid, grid), antialiased; unchanged if they have this grid."""
    if embedding.shape[-1] == grid:
        return embedding
    return F.interpolate(embedding, size=(grid, grid), mode="bilinear", align_corners=False, antialias=True)


def _copy_shared_tensors(teacher: nn.Module, student: nn.Module) -> None:
    """Copy the tensors that both encoders have under the same name and in the same shape."""
    theirs = {_own_name(key): value for key, value in teacher.state_dict().items()}
    ours = student.state_dict()
    shared = {
        key: theirs[_own_name(key)]
        for key, value in ours.items()
        if _own_name(key) in theirs and theirs[_own_name(key)].shape == value.shape
    }
    if not any(value.ndim > 1 for value in shared.values()):
        raise ValueError("task.init_from_teacher must be false: student and teacher have no tensor in common.")
    student.load_state_dict(ours | shared)
    logger.info("%d of the student's %d encoder tensors start as the teacher's", len(shared), len(ours))


def _own_name(key: str) -> str:
    """Return a tensor's name without the wrapper in which timm puts a backbone that it prunes."""
    return key.replace("backbone.body.model.", "backbone.body.")


def valid_cells(resized: Tensor, grid: int, stride: int = EMBEDDING_STRIDE) -> Tensor:
    """Return (B, grid, grid) bool: the cells of a map, by default the image embedding, that hold a pixel of the image.

    Args:
        resized: (B, 2) height and width of the images in the model's input, pixels.
        grid: side of the map, cells.
        stride: side of a cell, pixels of the model's input.
    """
    inside = torch.arange(grid, device=resized.device) * stride < resized[..., None]  # (B, 2, grid)
    return inside[:, 0, :, None] & inside[:, 1, None, :]
