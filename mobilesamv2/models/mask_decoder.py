"""SAM's mask decoder: N prompts on one image to low-res logits and predicted IoU.

Parameter names are those of the released files. The arithmetic is SAM's with two savings that change no mask: what is
the same for every prompt is computed once (the image side of the first layer), and only the masks asked for are
computed.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

NUM_MULTIMASKS = 3
"""Masks that SAM gives for an ambiguous prompt, beside the single one."""


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
        self.q_proj = nn.Linear(embed_dim, inner_dim)
        self.k_proj = nn.Linear(embed_dim, inner_dim)
        self.v_proj = nn.Linear(embed_dim, inner_dim)
        self.out_proj = nn.Linear(inner_dim, embed_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(N or 1, ., C) queries, keys and values to (N, ., C); a leading 1 serves every prompt."""
        heads = (self._split(self.q_proj(q)), self._split(self.k_proj(k)), self._split(self.v_proj(v)))
        num_prompts = max(len(h) for h in heads)
        q, k, v = (h.expand(num_prompts, -1, -1, -1) for h in heads)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (N, heads, ., C/heads)


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
        self.cross_attn_token_to_image = Attention(embed_dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = TokenMLP(embed_dim, mlp_dim)
        self.norm3 = nn.LayerNorm(embed_dim)
        self.norm4 = nn.LayerNorm(embed_dim)
        self.cross_attn_image_to_token = Attention(embed_dim, num_heads, downsample_rate=2)

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """One round of attention.

        Args:
            tokens: (N, ., C).
            image: (N or 1, cells, C).
            token_pe: (N, ., C), the tokens as they came in.
            image_pe: (1, cells, C).

        Returns:
            tokens (N, ., C) and image (N, cells, C).
        """
        if self.is_first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_pe
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        placed_image = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, placed_image, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(placed_image, tokens + token_pe, tokens))
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
        self.final_attn_token_to_image = Attention(embed_dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(embed_dim)

    def forward(self, tokens: Tensor, image: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """(N, ., C), (N or 1, cells, C), (1, cells, C) to tokens (N, ., C) and image (N, cells, C)."""
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
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
        kept = slice(1, None) if multimask else slice(0, 1)
        num_masks = self.mask_tokens.num_embeddings
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        image = (image_embedding + dense).flatten(2).transpose(1, 2)  # (N or 1, cells, C)
        tokens, image = self.transformer(tokens, image, image_pe.flatten(2).transpose(1, 2))
        predicted_iou = self.iou_prediction_head(tokens[:, 0])[:, kept]

        grid = image_embedding.shape[-2:]
        upscaled = self.output_upscaling(image.transpose(1, 2).unflatten(2, grid))  # (N, C/8, S/4, S/4)
        weights = torch.stack(
            [
                self.output_hypernetworks_mlps[i](tokens[:, 1 + i])  # (N, C/8)
                for i in range(num_masks)[kept]
            ],
            dim=1,
        )
        logits = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
        return logits, predicted_iou
