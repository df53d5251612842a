"""EfficientSAM: a plain ViT, prompts of a fixed number of tokens, and a mask decoder with details of its own.

It takes foreground points and boxes. What is SAM's, positions, attention to the image, hypernetworks and the prediction
of IoU, is SAM's here too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from mobilesamv2.models.image_encoder import ImageEncoder, sam_neck
from mobilesamv2.models.mask_decoder import MaskDecoder
from mobilesamv2.models.prompt_encoder import PromptEncoder
from mobilesamv2.models.sam import Sam
from mobilesamv2.models.sam_variants import BestOfThreeMaskDecoder
from mobilesamv2.models.transformer import ImageContext, TwoWayBlock
from mobilesamv2.structures import EMBEDDING_STRIDE, PointLabel
from mobilesamv2.transforms import Resizing

PRETRAINING_GRID = 14
"""Side of the grid of positional embeddings, cells: that of 224 pixels."""

MAX_POINTS = 6
"""Tokens of every prompt. Source: ``decoder_max_num_input_points`` of EfficientSAM's released code."""

CORNERS = (2, 3)
"""Labels of a box's upper left and lower right corner, as of ``PromptEncoder.embed_labelled``."""


class PlainViT(nn.Module):
    """timm's ViT without its class token and last norm; positional embeddings of 224 pixels are resampled to the image.

    Args:
        variant: timm's name of the ViT of this width, by which pretrained weights are found.
        width: channels.
        num_heads: attention heads of a block.
        depth: number of blocks.

    Source: EfficientSAM's released code, which resamples without antialiasing, where timm has it.
    """

    def __init__(self, variant: str, width: int, num_heads: int, depth: int = 12) -> None:
        super().__init__()
        self.variant = variant
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, EMBEDDING_STRIDE, stride=EMBEDDING_STRIDE)})
        # the first is the class token's, which the released files have and nothing reads
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + PRETRAINING_GRID**2, width))
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.Sequential(*(Block(width, num_heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)))

    def forward_features(self, images: Tensor) -> Tensor:
        """Compute the map (B, width, S/16, S/16) of (B, 3, S, S) images."""
        x = self.patch_embed["proj"](images)
        grid = x.shape[2:]
        positions = self.pos_embed[:, 1:].mT.unflatten(2, (PRETRAINING_GRID, PRETRAINING_GRID))
        x = x + F.interpolate(positions, size=grid, mode="bicubic", align_corners=False)
        return self.blocks(x.flatten(2).mT).mT.unflatten(2, grid)


class FixedLengthPromptEncoder(PromptEncoder):
    """Encoder of foreground points and boxes as ``MAX_POINTS`` tokens, padded by points at (-1, -1).

    Args:
        embed_dim: C.
        image_size: S, pixels.
        grid: side of the image embedding, cells.

    Source: EfficientSAM's released code. Deviations: that leaves out points beyond the sixth, and gives a background
    point its position alone, which no training has given a meaning; both are refused here.
    """

    takes_masks = False
    takes_background = False
    max_points = MAX_POINTS

    @override
    def _build_embeddings(self, embed_dim: int, mask_channels: int) -> None:
        self.invalid_points = nn.Embedding(1, embed_dim)
        self.point_embeddings = nn.Embedding(1, embed_dim)
        self.bbox_top_left_embeddings = nn.Embedding(1, embed_dim)
        self.bbox_bottom_right_embeddings = nn.Embedding(1, embed_dim)

    @override
    def forward(
        self,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes_xyxy: Tensor | None = None,
        mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed N prompts; arguments and results as for ``PromptEncoder``.

        Raises:
            ValueError: if a prompt has a mask, a background point, or more than ``MAX_POINTS`` points.
        """
        if mask_input is not None:
            raise ValueError("EfficientSAM takes no mask as a prompt, got a mask_input: leave it out, or choose a SAM.")
        weight = self.invalid_points.weight
        dense = weight.new_zeros(1, self.embed_dim, self.grid, self.grid)
        coords, kinds = [], []
        if boxes_xyxy is not None:
            coords.append(boxes_xyxy.reshape(-1, 2, 2))
            kinds.append(torch.tensor(CORNERS, device=boxes_xyxy.device).expand(len(boxes_xyxy), 2))
        if points is not None and labels is not None:
            _require_foreground(labels)
            coords.append(points)
            kinds.append(labels)
        if not coords:
            return self.embed_labelled(weight.new_zeros(1, 0, 2), weight.new_zeros(1, 0)), dense
        points, labels = torch.cat(coords, dim=1), torch.cat(kinds, dim=1)
        if labels.shape[1] > MAX_POINTS and (labels[:, MAX_POINTS:] != PointLabel.PADDING).any():
            raise ValueError(
                f"A prompt of EfficientSAM must have at most {MAX_POINTS} points, of which a box is two, "
                f"got {labels.shape[1]}."
            )
        return self.embed_labelled(points, labels), dense

    @override
    def embed_labelled(self, points: Tensor, labels: Tensor) -> Tensor:
        """Embed points and box corners by their labels alone, (N, MAX_POINTS, C); those beyond are left out."""
        weight = self.invalid_points.weight
        kinds = (self.point_embeddings, self.bbox_top_left_embeddings, self.bbox_bottom_right_embeddings)
        table = torch.cat([weight, torch.zeros_like(weight), *(kind.weight for kind in kinds)])
        padding = points.new_full((len(points), MAX_POINTS, 2), -1.0)
        points = torch.cat([torch.where((labels >= 0)[..., None], points, -1.0), padding], 1)[:, :MAX_POINTS]
        labels = torch.cat([labels, labels.new_full(padding.shape[:2], PointLabel.PADDING)], 1)[:, :MAX_POINTS]
        return self.pe_layer((points + 0.5) / self.image_size) + table[labels.long() + 1]


class PositionedBlock(TwoWayBlock):
    """SAM's block, whose self-attention adds to the tokens with their positions, in the first block without; GELU.

    Source: EfficientSAM's released code.
    """

    activation = staticmethod(F.gelu)

    @override
    def _attend_to_themselves(self, tokens: Tensor, token_pe: Tensor) -> Tensor:
        if not self.is_first:
            tokens = tokens + token_pe
        return tokens + self.self_attn(tokens, tokens, tokens)


class EfficientSamMaskDecoder(BestOfThreeMaskDecoder):
    """SAM's mask decoder with GELU throughout, and a norm over all cells and channels where the image is upscaled.

    Source: EfficientSAM's released code, which decodes three masks for every prompt, and whose examples take the best.
    """

    block = PositionedBlock

    @override
    def _build_upscaling_norm(self, channels: int) -> nn.Module:
        return nn.GroupNorm(1, channels)

    @override
    def _upscale(self, context: ImageContext, weights: Tensor) -> Tensor:
        return self._upscale_at_once(context, weights)  # the norm needs all cells

    @override
    def _upscale_at_once(self, context: ImageContext, weights: Tensor) -> Tensor:
        upscaled = self.output_upscaling(context.image.mT.unflatten(2, context.grid))  # (N, C/8, S/4, S/4)
        return (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])


class EfficientSam(Sam):
    """EfficientSAM; arguments as for ``Sam``."""

    resizing = Resizing.EFFICIENT_SAM

    @override
    def _build_prompt_encoder(self, embed_dim: int) -> PromptEncoder:
        return FixedLengthPromptEncoder(embed_dim, self.image_size, self.image_size // EMBEDDING_STRIDE)

    @override
    def _build_mask_decoder(self, embed_dim: int, num_heads: int, mlp_dim: int) -> MaskDecoder:
        return EfficientSamMaskDecoder(embed_dim, num_heads, mlp_dim)


def efficient_sam_vit(variant: str, width: int, num_heads: int, *, image_size: int, out_channels: int) -> ImageEncoder:
    """Build EfficientSAM's image encoder.

    Args:
        variant: timm's name of the ViT of this width.
        width: channels of the ViT.
        num_heads: attention heads of a block.
        image_size: S, pixels; positional embeddings are resampled to any.
        out_channels: C.
    """
    del image_size
    return ImageEncoder(PlainViT(variant, width, num_heads), sam_neck(width, out_channels))


def _require_foreground(labels: Tensor) -> None:
    """Check that no point is a background one."""
    if not labels.is_meta and (labels == PointLabel.BACKGROUND).any():
        raise ValueError(
            "EfficientSAM takes no background points, got a label 0: use foreground points and a box, or choose a SAM."
        )
