"""SAM's mask decoder: N prompts on one image to low-res logits and predicted IoU.

Parameter names match the released files, and the masks match SAM's up to rounding; ``transformer`` documents what is
computed in another order. Beyond that:

- Predicted IoU depends on the tokens only. Only masks whose predicted IoU exceeds the threshold are upscaled.
- Prompts are decoded in chunks, so that memory grows with the chunk and not with N.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from mobilesamv2.models.transformer import Activation, ImageContext, TwoWayBlock, TwoWayTransformer

NUM_MULTIMASKS = 3
"""Masks that SAM predicts for an ambiguous prompt, besides the single one."""

CPU_CHUNK_CELLS, DEVICE_CHUNK_CELLS = 2**13, 2**18
"""Image cells of a chunk of prompts: at full size 2 prompts on a CPU, 64 on other devices."""

CPU_UPSCALE_CELLS = 2**10
"""Image cells upscaled at once on a CPU. The largest tensor has 2 KiB per cell at full size, and fits a cache."""


class Decoded(NamedTuple):
    """The kept masks of N prompts.

    Attributes:
        logits: (D, S/4, S/4), low-res, in the order of ``keep_index``.
        predicted_iou: (N, M), of all masks, rejected ones included.
        keep_index: (D,) int64, indices of the kept masks among all N * M.
    """

    logits: Tensor
    predicted_iou: Tensor
    keep_index: Tensor


class DecodedStages(NamedTuple):
    """All masks of N prompts, and what the transformer makes of the output tokens.

    Attributes:
        tokens: (N, ., C), the IoU token and the mask tokens, with any that a family has beside them.
        logits: (N, 4, S/4, S/4), low-res: the single mask, then the three.
        predicted_iou: (N, 4).
    """

    tokens: Tensor
    logits: Tensor
    predicted_iou: Tensor


class MLP(nn.Module):
    """Linear layers with an activation between them.

    Args:
        widths: widths of the input, each hidden layer and the output.
        activation: between them.
    """

    def __init__(self, *widths: int, activation: Activation = F.relu) -> None:
        super().__init__()
        self.activation = activation
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., first width) to (..., last width)."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class MaskDecoder(nn.Module):
    """Decoder that predicts one or three masks per prompt, and their IoU.

    Args:
        embed_dim: C.
        num_heads: attention heads.
        mlp_dim: hidden width of the transformer's MLPs.

    Attributes:
        iou_index: index of the IoU token among the output tokens; the mask tokens follow it.
        num_multimasks: masks per prompt where several are asked for.
        block: class of the transformer's blocks, whose activation the MLPs have too.

    Source: SAM, appendix A, and its released code.
    """

    iou_index = 0
    num_multimasks = NUM_MULTIMASKS
    block: type[TwoWayBlock] = TwoWayBlock

    def __init__(self, embed_dim: int = 256, num_heads: int = 8, mlp_dim: int = 2048) -> None:
        super().__init__()
        num_masks = NUM_MULTIMASKS + 1
        self.transformer = TwoWayTransformer(2, embed_dim, num_heads, mlp_dim, self.block)
        self.iou_token = nn.Embedding(1, embed_dim)
        self.mask_tokens = nn.Embedding(num_masks, embed_dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(embed_dim, embed_dim // 4, 2, stride=2),
            self._build_upscaling_norm(embed_dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(embed_dim // 4, embed_dim // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(embed_dim, embed_dim, embed_dim, embed_dim // 8, activation=self.block.activation)
            for _ in range(num_masks)
        )
        self.iou_prediction_head = MLP(embed_dim, embed_dim, embed_dim, num_masks, activation=self.block.activation)

    def _build_upscaling_norm(self, channels: int) -> nn.Module:
        return LayerNorm2d(channels, eps=1e-6)

    def forward(
        self, image_embedding: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        """Decode N prompts on one image.

        Args:
            image_embedding: (1, C, S/16, S/16), or (N, C, S/16, S/16) if the prompts are on several images.
            image_pe: (1, C, S/16, S/16), the prompt encoder's ``image_positions``.
            sparse: (N, ., C).
            dense: (N or 1, C, S/16, S/16).
            multimask_output: return three masks per prompt, for ambiguous prompts, instead of one.

        Returns:
            low-res logits (N, M, S/4, S/4) and predicted IoU (N, M).
        """
        logits, predicted_iou, _ = self.decode(
            self.precompute_image(image_embedding, image_pe, dense), sparse, multimask_output
        )
        return logits.unflatten(0, predicted_iou.shape), predicted_iou

    def precompute_image(
        self, image_embedding: Tensor, image_pe: Tensor, dense: Tensor, shared: bool | None = None
    ) -> ImageContext:
        """Compute what the prompts on an image share.

        Args:
            image_embedding: as of ``forward``.
            image_pe: as of ``forward``.
            dense: as of ``forward``.
            shared: whether an image has several prompts; None where there is one image, for all.
        """
        image = (image_embedding + dense).flatten(2).transpose(1, 2)  # (M, cells, C)
        grid = (image_embedding.shape[2], image_embedding.shape[3])
        shared = len(image) == 1 if shared is None else shared
        return self.transformer.precompute_image(image.contiguous(), image_pe.flatten(2).transpose(1, 2), grid, shared)

    def decode(
        self,
        context: ImageContext,
        sparse: Tensor,
        multimask_output: bool,
        pred_iou_thresh: float | None = None,
    ) -> Decoded:
        """Decode N prompts, and upscale the masks whose predicted IoU exceeds a threshold.

        Args:
            context: from ``precompute_image``.
            sparse: (N, ., C).
            multimask_output: return three masks per prompt, for ambiguous prompts, instead of one.
            pred_iou_thresh: masks with a higher predicted IoU are kept; None keeps all.
        """
        chunk_cells = CPU_CHUNK_CELLS if sparse.device.type == "cpu" else DEVICE_CHUNK_CELLS
        chunk = max(1, chunk_cells // context.image.shape[1])
        parts = list(self._decode_chunks(context, sparse, multimask_output, pred_iou_thresh, chunk))
        num_masks = self.num_multimasks if multimask_output else 1
        return Decoded(
            logits=torch.cat([part.logits for part in parts]),
            predicted_iou=torch.cat([part.predicted_iou for part in parts]),
            keep_index=torch.cat([part.keep_index + i * chunk * num_masks for i, part in enumerate(parts)]),
        )

    def decode_all_masks(self, context: ImageContext, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """Decode all four masks of N prompts without chunks, so that N is dynamic in an exported graph.

        Args:
            context: from ``precompute_image``, of images that N/M prompts each share.
            sparse: (N, ., C).

        Returns:
            low-res logits (N, 4, S/4, S/4) and predicted IoU (N, 4): the single mask, then the three.
        """
        stages = self.decode_stages(context, sparse)
        return stages.logits, stages.predicted_iou

    def decode_stages(self, context: ImageContext, sparse: Tensor) -> DecodedStages:
        """Decode all four masks of N prompts without chunks, whichever of them the family returns as its single one.

        Args:
            context: from ``precompute_image``, of one image or of N.
            sparse: (N, ., C).
        """
        tokens, image = self.transformer(self._with_output_tokens(sparse), context.image, context)
        weights = self._hypernetworks(tokens, slice(None))
        logits = self._upscale_at_once(context._replace(image=image), weights)
        return DecodedStages(tokens[:, : len(self._output_tokens())], logits, self._predict_iou(tokens))

    def _decode_chunks(
        self, context: ImageContext, sparse: Tensor, multimask_output: bool, pred_iou_thresh: float | None, chunk: int
    ) -> Iterator[Decoded]:
        for i, prompts in enumerate(sparse.split(chunk)):
            part = context if len(context.image) == 1 else _prompts_of(context, slice(i * chunk, (i + 1) * chunk))
            tokens, image = self.transformer(self._with_output_tokens(prompts), part.image, part)
            yield self._decode_tokens(tokens, part._replace(image=image), multimask_output, pred_iou_thresh)

    def _decode_tokens(
        self, tokens: Tensor, context: ImageContext, multimask_output: bool, pred_iou_thresh: float | None
    ) -> Decoded:
        """Turn the transformer's tokens (N, ., C) and images, ``context.image`` (N, cells, C), into masks."""
        mask_slice = slice(1, None) if multimask_output else slice(0, 1)
        predicted_iou = self._predict_iou(tokens)[:, mask_slice]  # (N, M)
        weights = self._hypernetworks(tokens, mask_slice)  # (N, M, C/8)
        keep_index = torch.arange(predicted_iou.numel(), device=tokens.device)
        if pred_iou_thresh is None:
            return Decoded(self._upscale(context, weights).flatten(0, 1), predicted_iou, keep_index)
        keep = predicted_iou.float() > pred_iou_thresh
        has_kept = keep.any(1)
        logits = self._upscale(_prompts_of(context, has_kept), weights[has_kept])[keep[has_kept]]
        return Decoded(logits, predicted_iou, keep_index[keep.flatten()])

    def _predict_iou(self, tokens: Tensor) -> Tensor:
        """Predict the IoU (N, 4) of the single mask and the three from tokens (N, ., C)."""
        return self.iou_prediction_head(tokens[:, self.iou_index])

    def _hypernetworks(self, tokens: Tensor, mask_slice: slice) -> Tensor:
        """Map tokens (N, ., C) to the weights (N, M, C/8) of the masks."""
        mask_indices = range(len(self.output_hypernetworks_mlps))[mask_slice]
        first = self.iou_index + 1
        return torch.stack([self.output_hypernetworks_mlps[i](tokens[:, first + i]) for i in mask_indices], dim=1)

    def _output_tokens(self) -> Tensor:
        """Return the IoU token and the mask tokens, (., C)."""
        return torch.cat([self.iou_token.weight, self.mask_tokens.weight])

    def _with_output_tokens(self, sparse: Tensor) -> Tensor:
        """Prepend the output tokens to the prompts: (N, ., C) to (N, ., C)."""
        return torch.cat([self._output_tokens().expand(sparse.shape[0], -1, -1), sparse], dim=1)

    def _upscale(self, context: ImageContext, weights: Tensor) -> Tensor:
        """Upscale images (N, cells, C), and apply the weights (N, M, C/8): logits (N, M, S/4, S/4)."""
        image = context.image
        max_cells = CPU_UPSCALE_CELLS if image.device.type == "cpu" else DEVICE_CHUNK_CELLS
        size = max(1, max_cells // max(1, len(image)))
        parts = []
        for i in range(0, image.shape[1], size):
            cells = slice(i, i + size)
            finer = tuple(level[:, cells] for level in context.finer_levels)
            parts.append(self._upscale_cells(image[:, cells], weights, finer))
        return _unshuffle_logits(torch.cat(parts, dim=2), context.grid)

    def _upscale_at_once(self, context: ImageContext, weights: Tensor) -> Tensor:
        """Do the same as ``_upscale`` without chunks, so that N is dynamic in an exported graph."""
        return _unshuffle_logits(self._upscale_cells(context.image, weights, context.finer_levels), context.grid)

    def _upscale_cells(self, cells: Tensor, weights: Tensor, finer_levels: tuple[Tensor, ...]) -> Tensor:
        """Upscale some cells (N, ., C) of the image to their logits (N, M, . * 16).

        The transposed convolutions do not overlap: each cell becomes 2 x 2, each of these 2 x 2 again, channels last.
        """
        first, norm, _, second, _ = self.output_upscaling
        assert isinstance(first, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        assert isinstance(second, nn.ConvTranspose2d)
        x = _transposed_conv_2x2(cells, first)  # (N, ., 4, C/4)
        if finer_levels:
            x = _with_level(x, finer_levels[0])
        x = F.gelu(F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
        x = _transposed_conv_2x2(x, second)  # (N, ., 4, 4, C/8)
        if len(finer_levels) > 1:
            x = _with_level(x, finer_levels[1])
        return weights @ F.gelu(x).flatten(1, 3).mT


def best_of_three(predicted_iou: Tensor) -> Tensor:
    """Return the index of the best of masks 1 to 3 by predicted IoU (N, 4), (N,) int64."""
    return predicted_iou[:, 1:].argmax(1) + 1


def with_single(logits: Tensor, predicted_iou: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return all masks (N, 4, h, w) and their IoU (N, 4) with those at an index (N,) in place of the single one."""
    prompts = torch.arange(len(logits), device=logits.device)
    return (
        torch.cat([logits[prompts, index][:, None], logits[:, 1:]], dim=1),
        torch.cat([predicted_iou[prompts, index][:, None], predicted_iou[:, 1:]], dim=1),
    )


def _prompts_of(context: ImageContext, prompts: slice | Tensor) -> ImageContext:
    """Return a context of one image for each prompt, cut to some prompts; finer levels that all share stay."""
    finer = tuple(level[prompts] if len(level) > 1 else level for level in context.finer_levels)
    fine = context.fine if context.fine is None or len(context.fine) == 1 else context.fine[prompts]
    return context._replace(image=context.image[prompts], finer_levels=finer, fine=fine)


def _with_level(x: Tensor, level: Tensor) -> Tensor:
    """Add a finer level of M images to N prompts, N/M each: (N, ...) and (M, ...)."""
    if not len(x):
        return x
    return (x.unflatten(0, (len(level), -1)) + level[:, None]).flatten(0, 1)


def _unshuffle_logits(logits: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rearrange logits (N, M, cells * 16), cell by cell, to (N, M, S/4, S/4)."""
    logits = logits.unflatten(2, (*grid, 2, 2, 2, 2))  # (N, M, y, x, y/2, x/2, y/4, x/4)
    return logits.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(5, 7).flatten(2, 4)


def _transposed_conv_2x2(x: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """Apply a transposed convolution of kernel and stride 2, channels last: (..., C) to (..., 4, width), row by row."""
    assert conv.bias is not None
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 * width, C)
    return F.linear(x, weight, conv.bias.repeat(4)).unflatten(-1, (4, -1))
