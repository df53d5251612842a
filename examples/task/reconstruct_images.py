"""Masked image modelling: pretraining of an image encoder without annotations."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from mobilesamv2.data.samples import Sample
from mobilesamv2.models.sam import Sam
from mobilesamv2.structures import EMBEDDING_STRIDE
from mobilesamv2.tasks.schedule import OptimizerFactory, cosine_schedule


class ReconstructImages(pl.LightningModule):
    """Train an image encoder to predict the pixels of cells that are hidden from it.

    Args:
        sam: the model whose image encoder is trained; the rest of it is frozen.
        optimizer: builds the optimizer from the parameter groups.
        warmup_images: images of the learning rate's warm-up.
        hidden: share of the cells of 16 x 16 pixels that are hidden, above 0 and below 1.

    Raises:
        ValueError: if ``hidden`` is out of its range.

    Source: SimMIM, section 3. Deviation: a hidden cell becomes the mean colour, not a learned token.
    """

    def __init__(self, sam: Sam, optimizer: OptimizerFactory, warmup_images: int = 0, hidden: float = 0.6) -> None:
        super().__init__()
        if not 0 < hidden < 1:
            raise ValueError(f"hidden must be above 0 and below 1, got {hidden}.")
        self.sam = sam.requires_grad_(False)
        self.sam.image_encoder.requires_grad_(True)
        self.head = nn.Conv2d(sam.prompt_encoder.embed_dim, 3 * EMBEDDING_STRIDE**2, 1)
        self._optimizer = optimizer
        self._warmup_images = warmup_images
        self._hidden = hidden

    @property
    def backbone(self) -> nn.Module:
        """Return the network that compilation and memory layout apply to."""
        return self.sam.image_encoder

    @override
    def on_fit_start(self) -> None:
        self.sam.image_encoder.train()  # build_sam builds in eval mode

    @override
    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        loss = self._error(batch["pixels"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["pixels"]))
        return loss

    @override
    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        loss = self._error(batch["pixels"], torch.Generator().manual_seed(batch_idx))  # the same cells in every epoch
        self.log("val/loss", loss, prog_bar=True, batch_size=len(batch["pixels"]), sync_dist=True)

    @override
    def configure_optimizers(self) -> Any:
        return cosine_schedule(self.trainer, self, self._optimizer, self._warmup_images)

    def _error(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the mean absolute error of the hidden pixels of (B, 3, S, S) images."""
        grid = pixels.shape[-1] // EMBEDDING_STRIDE
        cells = torch.rand(len(pixels), 1, grid, grid, generator=generator) < self._hidden
        hidden = F.interpolate(cells.float(), scale_factor=EMBEDDING_STRIDE).to(pixels)  # (B, 1, S, S)
        embedding = self.sam.image_encoder(pixels * (1 - hidden))  # (B, C, S/16, S/16)
        predicted = F.pixel_shuffle(self.head(embedding), EMBEDDING_STRIDE)  # (B, 3, S, S)
        return F.l1_loss(predicted * hidden, pixels * hidden, reduction="sum") / (3 * hidden.sum()).clamp(min=1)
