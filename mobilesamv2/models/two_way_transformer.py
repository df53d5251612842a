"""SAM's two-way transformer: prompt tokens and image cells attend to each other.

Parameter names are those of the released files, and the outcome is SAM's up to rounding. What differs is the order of
the arithmetic. The image has thousands of cells and a prompt about seven tokens, hence:

- What is the same for all prompts is computed once, in an ``ImageSide``: positions, and in the first block the image.
- From then on each prompt has an image of its own, X. Projecting it, as in q (X W)^T, is replaced by (q W^T) X^T with
  the few tokens: the same numbers with less than half the work. The same goes for values and for what they put out.
  A box is 7 tokens; it would stop to pay at 17.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        num_prompts, _, num_tokens, _ = tokens.shape
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
        share = self.out_proj.bias * (1 / self.num_heads)  # torch 2.9 can't export the division
        said = v @ self.out_proj.weight.T.unflatten(0, (self.num_heads, -1)) + share  # (N, heads, ., C)
        return torch.baddbmm(image, weights.flatten(1, 2).mT, said.flatten(1, 2))


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
        image = image.expand(tokens.shape[0], -1, -1)
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
