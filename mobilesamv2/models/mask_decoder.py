"""SAM's mask decoder: N prompts on one image to low-res logits and predicted IoU.

Parameter names are those of the released files, and the masks are SAM's up to rounding. What differs is the order of
the arithmetic. The image has thousands of cells and a prompt about seven tokens, hence:

- What is the same for all prompts is computed once, in an ``ImageSide``: positions, and in the first block the image.
- From then on each prompt has an image of its own, X. Projecting it, as in q (X W)^T, is replaced by (q W^T) X^T with
  the few tokens: the same numbers with less than half the work. The same goes for values and for what they put out.
  A box is 7 tokens; it would stop to pay at 17.
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

NUM_MULTIMASKS = 3
"""Masks that SAM gives for an ambiguous prompt, beside the single one."""

CPU_CELLS, DEVICE_CELLS = 2**13, 2**18
"""Image cells of the prompts that are decoded at a time: 2 prompts of full size on a CPU, 64 elsewhere.

The largest tensor, of upscaled cells, has 2 KiB a cell at full size. A CPU is slower with tensors of 32 MiB and more.
"""


class ImageSide(NamedTuple):
    """What an image contributes to every prompt.

    Attributes:
        image: (1 or N, cells, C), the image embedding with the dense prompts.
        blocks: keys, values and queries of each block's cross-attentions.
        final: keys of the last attention.
        grid: height and width in cells.
    """

    image: Tensor
    blocks: list[tuple[Keys, Tensor]]
    final: Keys
    grid: tuple[int, int]


class Keys(NamedTuple):
    """What tokens attend to, the same for all prompts.

    Attributes:
        keys: (heads, cells, C/heads) of the image with its positions, or of the positions alone.
        values: (heads, cells, C/heads) of the image; None where each prompt has its own image.
    """

    keys: Tensor
    values: Tensor | None


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


class Attention(nn.Module):
    """Multi-head attention whose projections may be narrower than its input.

    Args:
        embed_dim: width of the input and output.
        num_heads: heads.
        downsample_rate: how many times narrower queries, keys and values are.
    """

    def __init__(self, embed_dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        inner_dim = embed_dim // downsample_rate
        self.num_heads = num_heads
        self.scale = (inner_dim // num_heads) ** -0.5
        self.q_proj = nn.Linear(embed_dim, inner_dim)
        self.k_proj = nn.Linear(embed_dim, inner_dim)
        self.v_proj = nn.Linear(embed_dim, inner_dim)
        self.out_proj = nn.Linear(inner_dim, embed_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(N, ., C) queries, keys and values to (N, ., C)."""
        q, k, v = (self._split(x) for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v)))
        return self._join(F.scaled_dot_product_attention(q, k, v))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)  # (N, heads, ., C/heads)

    def _join(self, x: Tensor) -> Tensor:
        return self.out_proj(x.transpose(1, 2).flatten(2))  # (N, ., C)

    def _scores(self, tokens: Tensor, shared: Tensor, own: Tensor | None, weight: Tensor) -> Tensor:
        """Products of tokens and cells, before softmax.

        Args:
            tokens: (N, heads, ., C/heads), projected.
            shared: (heads, cells, C/heads), projected, with the bias.
            own: (N, cells, C) that is to be projected and added to ``shared``.
            weight: (inner width, C), the projection.

        Returns:
            (N, heads, ., cells).
        """
        num_prompts, num_tokens = len(tokens), tokens.shape[2]
        scores = tokens.transpose(0, 1).flatten(1, 2) @ shared.mT  # (heads, N * ., cells)
        scores = scores.unflatten(1, (num_prompts, num_tokens)).transpose(0, 1)
        if own is None:
            return scores
        wide = tokens @ weight.unflatten(0, (self.num_heads, -1))  # (N, heads, ., C)
        return (wide.flatten(1, 2) @ own.mT).unflatten(1, (self.num_heads, num_tokens)) + scores


class TokenToImageAttention(Attention):
    """Tokens look at the image."""

    def of_image(self, image: Tensor | None, image_pe: Tensor) -> Keys:
        """What is the same for all prompts, of an image (1, cells, C), or of positions where each has its own."""
        if image is None:
            return Keys(self._split(self.k_proj(image_pe))[0], None)
        return Keys(self._split(self.k_proj(image + image_pe))[0], self._split(self.v_proj(image))[0])

    def forward(self, tokens: Tensor, shared: Keys, own: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(N, ., C) tokens to (N, ., C); ``own`` is (N, cells, C) where each prompt has its own image.

        The bias of k is in the shared keys. It cancels in softmax, and gets its gradient, of zero, all the same.
        """
        q = self._split(self.q_proj(tokens) * self.scale)  # (N, heads, ., C/heads)
        weights = self._scores(q, shared.keys, own, self.k_proj.weight).softmax(-1)  # (N, heads, ., cells)
        if own is None:
            assert shared.values is not None
            seen = weights.transpose(0, 1).flatten(1, 2) @ shared.values  # (heads, N * ., C/heads)
            return self._join(seen.unflatten(1, tokens.shape[:2]).transpose(0, 1))
        seen = (weights.flatten(1, 2) @ own).unflatten(1, (self.num_heads, -1))  # (N, heads, ., C)
        values = seen @ self.v_proj.weight.unflatten(0, (self.num_heads, -1)).mT  # (N, heads, ., C/heads)
        return self._join(values + self.v_proj.bias.view(self.num_heads, 1, -1))


class ImageToTokenAttention(Attention):
    """The image looks at tokens."""

    def of_image(self, image: Tensor | None, image_pe: Tensor) -> Tensor:
        """Queries (heads, cells, C/heads) for all prompts, of positions alone where each has its own image."""
        return self._split(self.q_proj(image_pe if image is None else image + image_pe))[0]

    def forward(self, image: Tensor, queries: Tensor, own: Tensor | None, k: Tensor, v: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Adds to the image (1 or N, cells, C) what it sees in keys and values (N, ., C): (N, cells, C)."""
        k, v = self._split(self.k_proj(k) * self.scale), self._split(self.v_proj(v))  # (N, heads, ., C/heads)
        weights = self._scores(k, queries, own, self.q_proj.weight).softmax(2)  # (N, heads, ., cells)
        # a head's weights sum to 1, so each head can carry its share of the bias
        share = self.out_proj.bias / self.num_heads
        said = v @ self.out_proj.weight.T.unflatten(0, (self.num_heads, -1)) + share  # (N, heads, ., C)
        return torch.baddbmm(image, weights.flatten(1, 2).mT, said.flatten(1, 2))


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


class TokenMLP(nn.Module):
    """The two linear layers inside a block of the transformer."""

    def __init__(self, embed_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(embed_dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ., C) to the same shape."""
        return self.lin2(self.lin1(x).relu())


class TwoWayBlock(nn.Module):
    """Prompt tokens attend to themselves and to the image, then the image attends to them.

    Args:
        embed_dim: C.
        num_heads: heads of every attention.
        mlp_dim: hidden width of the MLP on the tokens.
        is_first: the first block's tokens carry no positions and its self-attention replaces them.
    """

    def __init__(self, embed_dim: int, num_heads: int, mlp_dim: int, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first
        self.self_attn = Attention(embed_dim, num_heads)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.cross_attn_token_to_image = TokenToImageAttention(embed_dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = TokenMLP(embed_dim, mlp_dim)
        self.norm3 = nn.LayerNorm(embed_dim)
        self.norm4 = nn.LayerNorm(embed_dim)
        self.cross_attn_image_to_token = ImageToTokenAttention(embed_dim, num_heads, downsample_rate=2)

    def of_image(self, image: Tensor | None, image_pe: Tensor) -> tuple[Keys, Tensor]:
        """Keys and queries that are the same for all prompts."""
        return (
            self.cross_attn_token_to_image.of_image(image, image_pe),
            self.cross_attn_image_to_token.of_image(image, image_pe),
        )

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, shared: tuple[Keys, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """One round of attention.

        Args:
            tokens: (N, ., C).
            image: (N or 1, cells, C).
            token_pe: (N, ., C), the tokens as they came in.
            shared: of ``of_image``.

        Returns:
            tokens (N, ., C) and image (N, cells, C).
        """
        keys, queries = shared
        own = image if keys.values is None else None
        if self.is_first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_pe
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, keys, own))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image.expand(len(tokens), -1, -1)
        image = self.norm4(self.cross_attn_image_to_token(image, queries, own, tokens + token_pe, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Blocks of two-way attention and a last look of the tokens at the image.

    Args:
        depth: number of blocks.
        embed_dim: C.
        num_heads: heads of every attention.
        mlp_dim: hidden width of the MLPs.
    """

    def __init__(self, depth: int, embed_dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(embed_dim, num_heads, mlp_dim, is_first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = TokenToImageAttention(embed_dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(embed_dim)

    def of_image(self, image: Tensor, image_pe: Tensor, grid: tuple[int, int]) -> ImageSide:
        """What (1 or N, cells, C) and its positions (1, cells, C) contribute to every prompt."""
        only = image if len(image) == 1 else None
        blocks = [
            layer.of_image(only if i == 0 else None, image_pe)  # pyright: ignore[reportCallIssue]
            for i, layer in enumerate(self.layers)
        ]
        return ImageSide(image, blocks, self.final_attn_token_to_image.of_image(None, image_pe), grid)

    def forward(self, tokens: Tensor, image: Tensor, side: ImageSide) -> tuple[Tensor, Tensor]:
        """(N, ., C) and (N or 1, cells, C) to tokens (N, ., C) and image (N, cells, C)."""
        token_pe = tokens
        for layer, shared in zip(self.layers, side.blocks, strict=True):
            tokens, image = layer(tokens, image, token_pe, shared)
        attended = self.final_attn_token_to_image(tokens + token_pe, side.final, image)
        return self.norm_final_attn(tokens + attended), image


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

    def _decode_chunks(
        self, side: ImageSide, sparse: Tensor, multimask: bool, iou_above: float | None, chunk: int
    ) -> Iterator[Decoded]:
        kept = slice(1, None) if multimask else slice(0, 1)
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        images = side.image.split(chunk) if len(side.image) > 1 else None
        for i, prompts in enumerate(sparse.split(chunk)):
            tokens = torch.cat([output_tokens.expand(len(prompts), -1, -1), prompts], dim=1)
            tokens, image = self.transformer(tokens, side.image if images is None else images[i], side)
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

    def _upscale(self, image: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
        """Image (N, cells, C) and weights (N, M, C/8) to logits (N, M, S/4, S/4).

        The transposed convolutions do not overlap: each cell becomes 2 x 2, each of these 2 x 2 again, channels last.
        """
        first, norm, _, second, _ = self.output_upscaling
        assert isinstance(first, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        assert isinstance(second, nn.ConvTranspose2d)
        x = _each_to_four(image, first)  # (N, cells, 4, C/4)
        x = F.gelu(F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
        x = F.gelu(_each_to_four(x, second))  # (N, cells, 4, 4, C/8)
        logits = weights @ x.flatten(1, 3).mT  # (N, M, cells * 16)
        logits = logits.unflatten(2, (*grid, 2, 2, 2, 2))  # (N, M, y, x, y/2, x/2, y/4, x/4)
        return logits.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(5, 7).flatten(2, 4)


def _each_to_four(x: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """A transposed convolution of kernel and stride 2, channels last: (..., C) to (..., 4, width), row by row."""
    assert conv.bias is not None
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 * width, C)
    return F.linear(x, weight, conv.bias.repeat(4)).unflatten(-1, (4, -1))
