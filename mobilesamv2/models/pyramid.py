"""SAM 2's image encoder: a trunk with maps at strides 4 to 32 and a neck that hands three of them to the mask decoder.

The three levels travel as one image embedding (B, 4C, S/16, S/16). A cell has the C channels of the level of stride 16,
the 2 x 2 pixels of the level of stride 8 with C/4 channels, and the 4 x 4 pixels of the level of stride 4 with C/8.
Caches, batches and exports thus treat it as any image embedding, and the mask decoder, which upscales cell by cell,
reads it in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilesamv2.models.image_encoder import ImageEncoder

EMBEDDING_WIDTH = 4
"""Channels of a packed embedding in units of C: 1 of stride 16, 4/4 of stride 8, 16/8 of stride 4."""


class Levels(NamedTuple):
    """The three levels that SAM 2's mask decoder reads.

    Attributes:
        stride_16: (B, C, S/16, S/16).
        stride_8: (B, C/4, S/8, S/8).
        stride_4: (B, C/8, S/4, S/4).
    """

    stride_16: Tensor
    stride_8: Tensor
    stride_4: Tensor


def pack_levels(levels: Levels) -> Tensor:
    """Pack the levels into one image embedding (B, 4C, S/16, S/16)."""
    finer = (F.pixel_unshuffle(levels.stride_8, 2), F.pixel_unshuffle(levels.stride_4, 4))
    return torch.cat([levels.stride_16, *finer], dim=1)


def unpack_levels(embedding: Tensor) -> Levels:
    """Unpack an image embedding (B, 4C, S/16, S/16) into its levels."""
    stride_16, stride_8, stride_4 = _split(embedding)
    return Levels(stride_16, F.pixel_shuffle(stride_8, 2), F.pixel_shuffle(stride_4, 4))


def unpack_cells(embedding: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Unpack an image embedding for a decoder that works cell by cell.

    Args:
        embedding: (B, 4C, S/16, S/16).

    Returns:
        the level of stride 16 (B, C, S/16, S/16), and the finer ones (B, cells, 4, C/4) and (B, cells, 4, 4, C/8), the
        pixels of a cell as two steps of 2 x 2, row by row.
    """
    stride_16, stride_8, stride_4 = _split(embedding)
    twos = stride_8.flatten(2).mT.unflatten(2, (-1, 4)).mT  # (B, cells, 4, C/4)
    fours = stride_4.flatten(2).mT.unflatten(2, (-1, 2, 2, 2, 2))  # (B, cells, C/8, y, y/2, x, x/2)
    fours = fours.permute(0, 1, 3, 5, 4, 6, 2).flatten(4, 5).flatten(2, 3)  # (B, cells, 4, 4, C/8)
    return stride_16, (twos.contiguous(), fours.contiguous())


def _split(embedding: Tensor) -> Sequence[Tensor]:
    width = embedding.shape[1] // EMBEDDING_WIDTH
    return embedding.split([width, width, 2 * width], dim=1)


class HieraTrunk(nn.Module):
    """timm's Hiera as SAM 2 has it, four maps at strides 4 to 32.

    Args:
        variant: timm's name, ``sam2_hiera_tiny`` for example.
        overrides: arguments of timm's model other than the variant's.
    """

    def __init__(self, variant: str, **overrides: Any) -> None:
        super().__init__()
        self.variant = variant
        self.body: Any = timm.create_model(variant, features_only=True, **overrides)
        self.channels: list[int] = self.body.feature_info.channels()

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of (B, 3, S, S) images, finest first."""
        return self.body(images)


class PyramidNeck(nn.Module):
    """SAM 2's neck: maps of one width, the coarsest added to the one before it, the finer two narrowed.

    Args:
        in_channels: widths of the trunk's maps, finest first.
        out_channels: C.

    Source: SAM 2's FpnNeck with top-down features at strides 16 and 32 only; ``conv_s0`` and ``conv_s1`` belong to its
    mask decoder and ``no_mem_embed`` to its memory, but for an image all three depend on the image alone.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, out_channels, 1) for width in reversed(in_channels))
        self.conv_s0 = nn.Conv2d(out_channels, out_channels // 8, 1)
        self.conv_s1 = nn.Conv2d(out_channels, out_channels // 4, 1)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, out_channels))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Merge maps at strides 4, 8, 16 and 32 into a packed image embedding (B, 4C, S/16, S/16)."""
        stride_32, stride_16, stride_8, stride_4 = (
            conv(feature) for conv, feature in zip(self.convs, reversed(maps), strict=True)
        )
        top_down = F.interpolate(stride_32.float(), scale_factor=2.0, mode="nearest").to(stride_16.dtype)
        coarse = stride_16 + top_down + self.no_mem_embed[0, 0, :, None, None]
        return pack_levels(Levels(coarse, self.conv_s1(stride_8), self.conv_s0(stride_4)))


def sam2_hiera(variant: str, *, image_size: int, out_channels: int, **overrides: Any) -> ImageEncoder:
    """Build SAM 2's image encoder.

    Args:
        variant: timm's name, ``sam2_hiera_tiny`` for example.
        image_size: S, pixels; a multiple of 32.
        out_channels: C; the image embedding is packed and has 4C channels.
        overrides: arguments of timm's model other than the variant's.
    """
    del image_size  # the positional embedding is resized to any
    trunk = HieraTrunk(variant, **overrides)
    return ImageEncoder(trunk, PyramidNeck(trunk.channels, out_channels))
