"""SAM's mask decoder: N prompts on one image to low-res logits and predicted IoU.

Parameter names are those of the released files, and the masks are SAM's up to rounding; the transformer says what it
computes in another order. Beyond that:

- Predicted IoU needs the tokens alone. Only what its threshold keeps is upscaled.
- Prompts go through in chunks, so that memory goes with a chunk and not with N.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from mobilesamv2.models.two_way_transformer import ImageSide, TwoWayTransformer

NUM_MULTIMASKS = 3
"""Masks that SAM gives for an ambiguous prompt, beside the single one."""

CPU_CELLS, DEVICE_CELLS = 2**13, 2**18
"""Image cells of the prompts that are decoded at a time: 2 prompts of full size on a CPU, 64 elsewhere."""

UPSCALED_CPU_CELLS = 2**10
"""Image cells that a CPU upscales at a time. The largest tensor has 2 KiB a cell at full size, and fits a cache."""


class Decoded(NamedTuple):
    """Masks of N prompts, those that were kept.

    Attributes:
        logits: (D, S/4, S/4), low-res, in the order of ``kept``.
        predicted_iou: (N, M), of the rejected ones too.
        kept: (D,) int64, where a kept mask lies among all N * M.
    """

    logits: Tensor
    predicted_iou: Tensor
    kept: Tensor


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        widths: of the input, each hidden layer and the output.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(..., first width) to (..., last width)."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class MaskDecoder(nn.Module):
    """Predicts one or three masks for each prompt, and their IoU.

    Args:
        embed_dim: C.
        num_heads: attention heads.
        mlp_dim: hidden width of the transformer's MLPs.

    Source: SAM, appendix A, and its released code.
    """

    def __init__(self, embed_dim: int = 256, num_heads: int = 8, mlp_dim: int = 2048) -> None:
        super().__init__()
        num_masks = NUM_MULTIMASKS + 1
        self.transformer = TwoWayTransformer(2, embed_dim, num_heads, mlp_dim)
        self.iou_token = nn.Embedding(1, embed_dim)
        self.mask_tokens = nn.Embedding(num_masks, embed_dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(embed_dim, embed_dim // 4, 2, stride=2),
            LayerNorm2d(embed_dim // 4, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(embed_dim // 4, embed_dim // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(embed_dim, embed_dim, embed_dim, embed_dim // 8) for _ in range(num_masks)
        )
        self.iou_prediction_head = MLP(embed_dim, embed_dim, embed_dim, num_masks)

    def forward(
        self, image_embedding: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Decodes N prompts on one image.

        Args:
            image_embedding: (1, C, S/16, S/16), or (N, C, S/16, S/16) where the prompts are on several images.
            image_pe: (1, C, S/16, S/16), the prompt encoder's ``image_positions``.
            sparse: (N, ., C).
            dense: (N or 1, C, S/16, S/16).
            multimask: three masks for an ambiguous prompt instead of one.

        Returns:
            low-res logits (N, M, S/4, S/4) and predicted IoU (N, M).
        """
        logits, predicted_iou, _ = self.decode(self.of_image(image_embedding, image_pe, dense), sparse, multimask)
        return logits.unflatten(0, predicted_iou.shape), predicted_iou

    def of_image(self, image_embedding: Tensor, image_pe: Tensor, dense: Tensor) -> ImageSide:
        """What is the same for all prompts on an image; the arguments are those of ``forward``."""
        image = (image_embedding + dense).flatten(2).transpose(1, 2)  # (N or 1, cells, C)
        grid = (image_embedding.shape[2], image_embedding.shape[3])
        return self.transformer.of_image(image.contiguous(), image_pe.flatten(2).transpose(1, 2), grid)

    def decode(
        self,
        side: ImageSide,
        sparse: Tensor,
        multimask: bool,
        iou_above: float | None = None,
        chunk: int | None = None,
    ) -> Decoded:
        """Decodes N prompts, and upscales the masks that their predicted IoU lets pass.

        Args:
            side: of ``of_image``.
            sparse: (N, ., C).
            multimask: three masks for an ambiguous prompt instead of one.
            iou_above: a mask is kept above it; None keeps all.
            chunk: prompts at a time; None: what suits the device.
        """
        if chunk is None:
            at_a_time = CPU_CELLS if sparse.device.type == "cpu" else DEVICE_CELLS
            chunk = max(1, at_a_time // side.image.shape[1])
        parts = list(self._decode_chunks(side, sparse, multimask, iou_above, chunk))
        num_masks = NUM_MULTIMASKS if multimask else 1
        return Decoded(
            logits=torch.cat([part.logits for part in parts]),
            predicted_iou=torch.cat([part.predicted_iou for part in parts]),
            kept=torch.cat([part.kept + i * chunk * num_masks for i, part in enumerate(parts)]),
        )

    def decode_at_once(self, side: ImageSide, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """All four masks of N prompts on one image, in one piece, which no number of prompts changes: for export.

        Args:
            side: of ``of_image``, of one image.
            sparse: (N, ., C).

        Returns:
            low-res logits (N, 4, S/4, S/4) and predicted IoU (N, 4): the single mask, then the three.
        """
        tokens, image = self.transformer(self._with_output_tokens(sparse), side.image, side)
        weights = self._hypernetworks(tokens, slice(None))
        return _as_maps(self._upscale_cells(image, weights), side.grid), self.iou_prediction_head(tokens[:, 0])

    def _decode_chunks(
        self, side: ImageSide, sparse: Tensor, multimask: bool, iou_above: float | None, chunk: int
    ) -> Iterator[Decoded]:
        kept = slice(1, None) if multimask else slice(0, 1)
        images = side.image.split(chunk) if len(side.image) > 1 else None
        for i, prompts in enumerate(sparse.split(chunk)):
            own = side.image if images is None else images[i]
            tokens, image = self.transformer(self._with_output_tokens(prompts), own, side)
            predicted_iou = self.iou_prediction_head(tokens[:, 0])[:, kept]  # (N, M)
            weights = self._hypernetworks(tokens, kept)  # (N, M, C/8)
            masks = torch.arange(predicted_iou.numel(), device=sparse.device)
            if iou_above is None:
                logits = self._upscale(image, weights, side.grid).flatten(0, 1)
            else:
                passes = predicted_iou.float() > iou_above
                some = passes.any(1)
                logits = self._upscale(image[some], weights[some], side.grid)[passes[some]]
                masks = masks[passes.flatten()]
            yield Decoded(logits, predicted_iou, masks)

    def _hypernetworks(self, tokens: Tensor, kept: slice) -> Tensor:
        """Tokens (N, ., C) to the weights (N, M, C/8) of the masks."""
        which = range(len(self.output_hypernetworks_mlps))[kept]
        return torch.stack([self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in which], dim=1)

    def _with_output_tokens(self, sparse: Tensor) -> Tensor:
        """Prompts (N, ., C) to tokens (N, ., C): that of the IoU, those of the masks, the prompts."""
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        return torch.cat([output_tokens.expand(sparse.shape[0], -1, -1), sparse], dim=1)

    def _upscale(self, image: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
        """Image (N, cells, C) and weights (N, M, C/8) to logits (N, M, S/4, S/4)."""
        at_a_time = UPSCALED_CPU_CELLS if image.device.type == "cpu" else DEVICE_CELLS
        parts = image.split(max(1, at_a_time // max(1, len(image))), dim=1)
        return _as_maps(torch.cat([self._upscale_cells(cells, weights) for cells in parts], dim=2), grid)

    def _upscale_cells(self, cells: Tensor, weights: Tensor) -> Tensor:
        """Some cells (N, ., C) of the image to their logits (N, M, . * 16).

        The transposed convolutions do not overlap: each cell becomes 2 x 2, each of these 2 x 2 again, channels last.
        """
        first, norm, _, second, _ = self.output_upscaling
        assert isinstance(first, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        assert isinstance(second, nn.ConvTranspose2d)
        x = _each_to_four(cells, first)  # (N, ., 4, C/4)
        x = F.gelu(F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
        x = F.gelu(_each_to_four(x, second))  # (N, ., 4, 4, C/8)
        return weights @ x.flatten(1, 3).mT


def _as_maps(logits: Tensor, grid: tuple[int, int]) -> Tensor:
    """Logits (N, M, cells * 16), cell by cell, to (N, M, S/4, S/4)."""
    logits = logits.unflatten(2, (*grid, 2, 2, 2, 2))  # (N, M, y, x, y/2, x/2, y/4, x/4)
    return logits.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(5, 7).flatten(2, 4)


def _each_to_four(x: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """A transposed convolution of kernel and stride 2, channels last: (..., C) to (..., 4, width), row by row."""
    assert conv.bias is not None
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 * width, C)
    return F.linear(x, weight, conv.bias.repeat(4)).unflatten(-1, (4, -1))
