"""SAM 2's image encoders: a trunk with maps at strides 4 to 32 and a neck that hands three of them to the mask decoder.

The three levels travel as one image embedding (B, 4C, S/16, S/16). A cell has the C channels of the level of stride 16,
the 2 x 2 pixels of the level of stride 8 with C/4 channels, and the 4 x 4 pixels of the level of stride 4 with C/8.
Caches, batches and exports thus treat it as any image embedding, and the mask decoder, which upscales cell by cell,
reads it in place. An encoder without the finer levels has their first channels: 2C without stride 4, C with stride 16
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilesamv2.models.image_encoder import ImageEncoder
from mobilesamv2.models.timm_backbone import TimmPyramid
from mobilesamv2.models.timm_models import create_timm_model
from mobilesamv2.structures import EMBEDDING_STRIDE

LEVEL_WIDTHS = (1, 1, 2)
"""Channels of each level in a packed embedding in units of C: 1 of stride 16, 4/4 of stride 8, 16/8 of stride 4."""


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


def pack_levels(levels: Sequence[Tensor]) -> Tensor:
    """Pack ``Levels``, or the first of them, into one image embedding (B, 4C, S/16, S/16), 2C or C."""
    return torch.cat([F.pixel_unshuffle(level, 2**i) for i, level in enumerate(levels)], dim=1)


def unpack_levels(embedding: Tensor) -> Levels:
    """Unpack an image embedding (B, 4C, S/16, S/16) into its levels."""
    width = embedding.shape[1] // sum(LEVEL_WIDTHS)
    levels = embedding.split([width * units for units in LEVEL_WIDTHS], dim=1)
    return Levels(*(F.pixel_shuffle(level, 2**i) for i, level in enumerate(levels)))


def unpack_cells(embedding: Tensor, embed_dim: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Unpack an image embedding for a decoder that works cell by cell.

    Args:
        embedding: (B, 4C, S/16, S/16), or 2C or C channels without the finer levels.
        embed_dim: C.

    Returns:
        the level of stride 16 (B, C, S/16, S/16), and those that there are of the finer ones, (B, cells, 4, C/4) and
        (B, cells, 4, 4, C/8), the pixels of a cell as two steps of 2 x 2, row by row.
    """
    coarse, *finer = embedding.split([embed_dim * units for units in _units(embedding.shape[1], embed_dim)], dim=1)
    unpacked = (_twos, _fours)[: len(finer)]
    return coarse, tuple(unpack(level) for unpack, level in zip(unpacked, finer, strict=True))


def _units(channels: int, embed_dim: int) -> tuple[int, ...]:
    """Return the widths of the levels that an embedding has, in units of C."""
    for number in range(1, len(LEVEL_WIDTHS) + 1):
        if channels == embed_dim * sum(LEVEL_WIDTHS[:number]):
            return LEVEL_WIDTHS[:number]
    raise ValueError(
        f"A packed image embedding must have {embed_dim}, {2 * embed_dim} or {4 * embed_dim} channels, got {channels}."
    )


def _twos(level: Tensor) -> Tensor:
    return level.flatten(2).mT.unflatten(2, (-1, 4)).mT.contiguous()  # (B, cells, 4, C/4)


def _fours(level: Tensor) -> Tensor:
    pixels = level.flatten(2).mT.unflatten(2, (-1, 2, 2, 2, 2))  # (B, cells, C/8, y, y/2, x, x/2)
    return pixels.permute(0, 1, 3, 5, 4, 6, 2).flatten(4, 5).flatten(2, 3).contiguous()  # (B, cells, 4, 4, C/8)


class HieraTrunk(nn.Module):
    """timm's Hiera as SAM 2 has it, four maps at strides 4 to 32.

    Args:
        variant: timm's name, ``sam2_hiera_tiny`` for example.
        overrides: arguments of timm's model other than the variant's.
    """

    def __init__(self, variant: str, **overrides: Any) -> None:
        super().__init__()
        self.variant = variant
        self.body: Any = create_timm_model(variant, features_only=True, **overrides)
        self.channels: list[int] = self.body.feature_info.channels()

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of (B, 3, S, S) images, finest first."""
        return self.body(images)


class PyramidNeck(nn.Module):
    """SAM 2's neck: maps of one width, the coarsest added to the one before it, the finer two narrowed.

    Args:
        in_channels: widths of the trunk's maps from ``finest_stride`` to 32, finest first.
        out_channels: C.
        finest_stride: of the finest level, 4, 8 or 16.

    Source: SAM 2's FpnNeck with top-down features at strides 16 and 32 only; ``conv_s0`` and ``conv_s1`` belong to its
    mask decoder and ``no_mem_embed`` to its memory, but for an image all three depend on the image alone.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, finest_stride: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, out_channels, 1) for width in reversed(in_channels))
        if finest_stride <= 4:
            self.conv_s0 = nn.Conv2d(out_channels, out_channels // 8, 1)
        if finest_stride <= 8:
            self.conv_s1 = nn.Conv2d(out_channels, out_channels // 4, 1)
        number = (EMBEDDING_STRIDE // finest_stride).bit_length()
        self.level_channels = tuple(out_channels * units for units in LEVEL_WIDTHS[:number])
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, out_channels))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Merge maps from the finest stride to 32 into a packed image embedding (B, 4C, S/16, S/16), 2C or C."""
        stride_32, stride_16, *finer = (conv(feature) for conv, feature in zip(self.convs, reversed(maps), strict=True))
        top_down = F.interpolate(stride_32.float(), scale_factor=2.0, mode="nearest").to(stride_16.dtype)
        coarse = stride_16 + top_down + self.no_mem_embed[0, 0, :, None, None]
        narrowed = (narrow(level) for narrow, level in zip(self.narrowing(), finer, strict=True))
        return pack_levels([coarse, *narrowed])

    def narrowing(self) -> list[nn.Conv2d]:
        """Return what each finer level is narrowed by, that of stride 8 first."""
        return [getattr(self, name) for name in ("conv_s1", "conv_s0") if hasattr(self, name)]


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


def timm_pyramid(
    variant: str, *, image_size: int, out_channels: int, finest_stride: int = 4, **overrides: Any
) -> ImageEncoder:
    """Build an image encoder for SAM 2's mask decoder from a timm backbone with maps at strides 4 to 32.

    Args:
        variant: timm's name of the backbone.
        image_size: S, pixels; a multiple of 32.
        out_channels: C; the image embedding is packed and has 4C channels.
        finest_stride: of the finest level: 4, or 8 or 16 for an embedding of 2C or C channels.
        overrides: arguments of timm's model other than the variant's.
    """
    backbone = TimmPyramid(variant, image_size, finest_stride, **overrides)
    return ImageEncoder(backbone, PyramidNeck(backbone.channels, out_channels, finest_stride))
