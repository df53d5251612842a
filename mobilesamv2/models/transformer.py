"""SAM's two-way transformer: prompt tokens and image cells attend to each other.

Parameter names match the released files, and the outputs match SAM's up to rounding. Only the order of the arithmetic
differs. The image has thousands of cells and a prompt about seven tokens, hence:

- Projections that all prompts share are computed once, in an ``ImageContext``: those of the positions, and in the first
  block those of the image.
- After the first block each prompt has its own image features X. Projecting them, as in q (X W)^T, is replaced by
  (q W^T) X^T with the few tokens: the same numbers with less than half the work. Values and output projections are
  reordered likewise. A box is 7 tokens; the reordering stops paying off at 17.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]
"""Function between two layers."""


class ImageContext(NamedTuple):
    """Projections of M images that their prompts share: M is 1 or N, or a number that divides N.

    Image i is that of the prompts i * N / M to (i + 1) * N / M.

    Attributes:
        image: (M, cells, C), the image embedding plus the dense prompt embeddings.
        blocks: keys, values and queries of each block's cross-attentions.
        final: keys of the final attention.
        grid: height and width in cells.
        finer_levels: SAM 2's maps of strides 8 and 4, cell by cell, which the upscaling adds: (M, cells, 4, C/4) and
            (M, cells, 4, 4, C/8), or the first of them; none for SAM.
        fine: SAM-HQ's features (1 or N, C/8, S/4, S/4); None for other models.
    """

    image: Tensor
    blocks: list[tuple[KeyValue, Tensor]]
    final: KeyValue
    grid: tuple[int, int]
    finer_levels: tuple[Tensor, ...] = ()
    fine: Tensor | None = None


class KeyValue(NamedTuple):
    """Keys and values of M images for the tokens' attention, shared by the prompts of each.

    Attributes:
        keys: (M, heads, cells, C/heads) of the images with their positions, or (1, ...) of the positions alone.
        values: (M, heads, cells, C/heads) of the images; None if each prompt has its own image.
    """

    keys: Tensor
    values: Tensor | None


class Attention(nn.Module):
    """Multi-head attention whose projections may be narrower than its input.

    Args:
        embed_dim: width of the input and output.
        num_heads: number of heads.
        downsample_rate: factor by which queries, keys and values are narrower.
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
        """Attend from queries to keys and values, each (N, ., C); return (N, ., C)."""
        q, k, v = (self._split(x) for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v)))
        return self._join(F.scaled_dot_product_attention(q, k, v))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)  # (N, heads, ., C/heads)

    def _join(self, x: Tensor) -> Tensor:
        return self.out_proj(x.transpose(1, 2).flatten(2))  # (N, ., C)

    def _scores(
        self, tokens: Tensor, shared_projection: Tensor, per_prompt_image: Tensor | None, weight: Tensor
    ) -> Tensor:
        """Return the products of tokens and cells, before softmax.

        Args:
            tokens: (N, heads, ., C/heads), projected.
            shared_projection: (M, heads, cells, C/heads), the projected cells that N/M prompts share, with the bias.
            per_prompt_image: (N, cells, C), whose projection by ``weight`` is added to ``shared_projection``.
            weight: (inner width, C), of the projection.

        Returns:
            (N, heads, ., cells).
        """
        num_tokens = tokens.shape[2]
        scores = _by_prompt(_by_image(tokens, len(shared_projection)) @ shared_projection.mT, num_tokens)
        if per_prompt_image is None:
            return scores
        tokens = tokens @ weight.unflatten(0, (self.num_heads, -1))  # (N, heads, ., C)
        return (tokens.flatten(1, 2) @ per_prompt_image.mT).unflatten(1, (self.num_heads, num_tokens)) + scores


class TokenToImageAttention(Attention):
    """Attention of the tokens to the image."""

    def precompute_image(self, image: Tensor | None, image_pe: Tensor) -> KeyValue:
        """Project keys and values once for all prompts of an image.

        Args:
            image: (M, cells, C); None if each prompt has its own image, then only the positions are projected.
            image_pe: (1, cells, C), positional encoding.
        """
        if image is None:
            return KeyValue(self._split(self.k_proj(image_pe)), None)
        return KeyValue(self._split(self.k_proj(image + image_pe)), self._split(self.v_proj(image)))

    def forward(self, tokens: Tensor, shared: KeyValue, per_prompt_image: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Attend from the tokens (N, ., C) to the image; return (N, ., C).

        The shared keys include the bias of k. It cancels in softmax, but still receives its gradient, which is zero.

        Args:
            tokens: (N, ., C).
            shared: from ``precompute_image``.
            per_prompt_image: (N, cells, C) if each prompt has its own image, else None.
        """
        q = self._split(self.q_proj(tokens) * self.scale)  # (N, heads, ., C/heads)
        scores = self._scores(q, shared.keys, per_prompt_image, self.k_proj.weight)
        weights = scores.softmax(-1)  # (N, heads, ., cells)
        if per_prompt_image is None:
            assert shared.values is not None
            attended = _by_image(weights, len(shared.values)) @ shared.values  # (M, heads, N/M * ., C/heads)
            return self._join(_by_prompt(attended, tokens.shape[1]))
        attended = (weights.flatten(1, 2) @ per_prompt_image).unflatten(1, (self.num_heads, -1))  # (N, heads, ., C)
        values = attended @ self.v_proj.weight.unflatten(0, (self.num_heads, -1)).mT  # (N, heads, ., C/heads)
        return self._join(values + self.v_proj.bias.view(self.num_heads, 1, -1))


class ImageToTokenAttention(Attention):
    """Attention of the image to the tokens."""

    def precompute_image(self, image: Tensor | None, image_pe: Tensor) -> Tensor:
        """Project queries (M, heads, cells, C/heads) once for all prompts of an image.

        Args:
            image: (M, cells, C); None if each prompt has its own image, then only the positions are projected.
            image_pe: (1, cells, C), positional encoding.
        """
        return self._split(self.q_proj(image_pe if image is None else image + image_pe))

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, image: Tensor, shared_queries: Tensor, per_prompt_image: Tensor | None, k: Tensor, v: Tensor
    ) -> Tensor:
        """Attend from the image to the tokens and add the result to the image.

        Args:
            image: (N, cells, C).
            shared_queries: (M, heads, cells, C/heads), from ``precompute_image``.
            per_prompt_image: (N, cells, C) if each prompt has its own image, else None.
            k: (N, ., C).
            v: (N, ., C).

        Returns:
            (N, cells, C).
        """
        k, v = self._split(self.k_proj(k) * self.scale), self._split(self.v_proj(v))  # (N, heads, ., C/heads)
        scores = self._scores(k, shared_queries, per_prompt_image, self.q_proj.weight)
        weights = scores.softmax(2)  # (N, heads, ., cells)
        # a head's weights sum to 1, so each head can add its share of the bias
        values = v @ self.out_proj.weight.T.unflatten(0, (self.num_heads, -1))  # (N, heads, ., C)
        # torch 2.9 can't export a parameter over a number, nor in half precision times one
        values = torch.add(values, self.out_proj.bias, alpha=1 / self.num_heads)
        return torch.baddbmm(image, weights.flatten(1, 2).mT, values.flatten(1, 2))


class TokenMLP(nn.Module):
    """Two linear layers on the tokens, with an activation between them."""

    def __init__(self, embed_dim: int, mlp_dim: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.lin1 = nn.Linear(embed_dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, ., C) to the same shape."""
        return self.lin2(self.activation(self.lin1(x)))


class TwoWayBlock(nn.Module):
    """Block in which the tokens attend to themselves and to the image, then the image attends to the tokens.

    Args:
        embed_dim: C.
        num_heads: heads of every attention.
        mlp_dim: hidden width of the MLP on the tokens.
        is_first: the first block adds no positions to its self-attention, whose output replaces the tokens.
    """

    activation: Activation = staticmethod(F.relu)

    def __init__(self, embed_dim: int, num_heads: int, mlp_dim: int, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first
        self.self_attn = Attention(embed_dim, num_heads)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.cross_attn_token_to_image = TokenToImageAttention(embed_dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = TokenMLP(embed_dim, mlp_dim, self.activation)
        self.norm3 = nn.LayerNorm(embed_dim)
        self.norm4 = nn.LayerNorm(embed_dim)
        self.cross_attn_image_to_token = ImageToTokenAttention(embed_dim, num_heads, downsample_rate=2)

    def precompute_image(self, image: Tensor | None, image_pe: Tensor) -> tuple[KeyValue, Tensor]:
        """Project the keys, values and queries that all prompts share; arguments as in the attentions."""
        return (
            self.cross_attn_token_to_image.precompute_image(image, image_pe),
            self.cross_attn_image_to_token.precompute_image(image, image_pe),
        )

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, shared: tuple[KeyValue, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Apply the block.

        Args:
            tokens: (N, ., C).
            image: (M, cells, C), or (N, cells, C) if each prompt has its own.
            token_pe: (N, ., C), the transformer's input tokens.
            shared: from ``precompute_image``.

        Returns:
            tokens (N, ., C) and image (N, cells, C).
        """
        shared_keys, shared_queries = shared
        per_prompt_image = image if shared_keys.values is None else None
        tokens = self.norm1(self._attend_to_themselves(tokens, token_pe))
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, shared_keys, per_prompt_image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        if per_prompt_image is None:
            image = image[:, None].expand(-1, len(tokens) // len(image), -1, -1).flatten(0, 1)
        image = self.cross_attn_image_to_token(image, shared_queries, per_prompt_image, tokens + token_pe, tokens)
        return tokens, self.norm4(image)

    def _attend_to_themselves(self, tokens: Tensor, token_pe: Tensor) -> Tensor:
        """Apply the self-attention of the tokens (N, ., C), before its norm."""
        if self.is_first:
            return self.self_attn(tokens, tokens, tokens)
        tokens_with_pe = tokens + token_pe
        return tokens + self.self_attn(tokens_with_pe, tokens_with_pe, tokens)


class TwoWayTransformer(nn.Module):
    """Blocks of two-way attention and a final attention of the tokens to the image.

    Args:
        depth: number of blocks.
        embed_dim: C.
        num_heads: heads of every attention.
        mlp_dim: hidden width of the MLPs.
        block: class of the blocks.
    """

    def __init__(
        self, depth: int, embed_dim: int, num_heads: int, mlp_dim: int, block: type[TwoWayBlock] = TwoWayBlock
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block(embed_dim, num_heads, mlp_dim, is_first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = TokenToImageAttention(embed_dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(embed_dim)

    def precompute_image(self, image: Tensor, image_pe: Tensor, grid: tuple[int, int], shared: bool) -> ImageContext:
        """Compute the projections that the prompts of an image share.

        Args:
            image: (M, cells, C), the image embedding plus the dense prompt embeddings.
            image_pe: (1, cells, C), positional encoding.
            grid: height and width in cells.
            shared: project the images too, which pays off if an image has several prompts; else M must be N.
        """
        shared_image = image if shared else None
        blocks = [
            layer.precompute_image(shared_image if i == 0 else None, image_pe)  # pyright: ignore[reportCallIssue]
            for i, layer in enumerate(self.layers)
        ]
        return ImageContext(image, blocks, self.final_attn_token_to_image.precompute_image(None, image_pe), grid)

    def forward(self, tokens: Tensor, image: Tensor, context: ImageContext) -> tuple[Tensor, Tensor]:
        """Apply all blocks and the final attention.

        Args:
            tokens: (N, ., C).
            image: (M, cells, C), ``context.image`` or the part of it that belongs to these prompts.
            context: from ``precompute_image``.

        Returns:
            tokens (N, ., C) and image (N, cells, C).
        """
        token_pe = tokens
        for layer, shared in zip(self.layers, context.blocks, strict=True):
            tokens, image = layer(tokens, image, token_pe, shared)
        attended = self.final_attn_token_to_image(tokens + token_pe, context.final, image)
        return self.norm_final_attn(tokens + attended), image


def _by_image(x: Tensor, num_images: int) -> Tensor:
    """Gather the rows of all prompts of an image: (N, heads, ., C) to (M, heads, N/M * ., C)."""
    return x.unflatten(0, (num_images, -1)).transpose(1, 2).flatten(2, 3)


def _by_prompt(x: Tensor, num_rows: int) -> Tensor:
    """Undo ``_by_image``: (M, heads, N/M * ., C) to (N, heads, ., C)."""
    return x.unflatten(2, (-1, num_rows)).transpose(1, 2).flatten(0, 1)
