"""The image encoders of RepViT-SAM and EdgeSAM: timm's RepViT with what each changes at its last stage."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mobilesamv2.models.image_encoder import ImageEncoder, sam_neck
from mobilesamv2.models.timm_models import create_timm_model


class RepViTBackbone(nn.Module):
    """timm's RepViT whose last downsampling keeps the resolution: the final stride is 16.

    Args:
        variant: timm's name.

    Attributes:
        variant: the same, by which pretrained weights of the body are found.
    """

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant = variant
        self.body = _body(variant)
        self.body.stages[3].downsample.spatial_downsample.c.stride = (1, 1)

    def forward_features(self, images: Tensor) -> Tensor:
        """Compute the map (B, channels, S/16, S/16) of (B, 3, S, S) images."""
        return self.body.forward_features(images)


class EdgeSamBackbone(nn.Module):
    """timm's RepViT whose maps of strides 16 and 32 are projected to one width, resized to one grid and summed.

    Args:
        variant: timm's name.
        width: channels of the sum.

    Attributes:
        variant: as in ``RepViTBackbone``.

    Source: EdgeSAM's released code. Its map of stride 16 is the one that the last downsampling reads, one block later
    than timm's third stage ends.
    """

    def __init__(self, variant: str, width: int) -> None:
        super().__init__()
        self.variant = variant
        self.body = _body(variant)
        middle, last = self.body.embed_dim[2:]
        self.fuse_stage2 = nn.Conv2d(middle, width, 1, bias=False)
        self.fuse_stage3 = nn.Conv2d(last, width, 1, bias=False)

    def forward_features(self, images: Tensor) -> Tensor:
        """Compute the map (B, width, S/16, S/16) of (B, 3, S, S) images."""
        *stages, last = self.body.stages
        x = self.body.stem(images)
        for stage in stages:
            x = stage(x)
        stride_16 = last.downsample.pre_block(x)
        x = last.downsample.channel_downsample(last.downsample.spatial_downsample(stride_16))
        stride_32 = last.blocks(x + last.downsample.ffn(x))
        coarse = F.interpolate(self.fuse_stage3(stride_32), scale_factor=2.0, mode="bicubic", align_corners=False)
        return self.fuse_stage2(stride_16) + coarse


def repvit_sam(variant: str, *, image_size: int, out_channels: int) -> ImageEncoder:
    """Build RepViT-SAM's image encoder.

    Args:
        variant: timm's name, ``repvit_m2_3`` for example.
        image_size: S, pixels; a convolutional network accepts any.
        out_channels: C.
    """
    del image_size
    backbone = RepViTBackbone(variant)
    return ImageEncoder(backbone, sam_neck(backbone.body.embed_dim[-1], out_channels))


def edge_sam(variant: str, *, image_size: int, out_channels: int) -> ImageEncoder:
    """Build EdgeSAM's image encoder; arguments as for ``repvit_sam``."""
    del image_size
    return ImageEncoder(EdgeSamBackbone(variant, out_channels), sam_neck(out_channels, out_channels))


def _body(variant: str) -> Any:
    body = create_timm_model(variant, num_classes=0)
    body.head = nn.Identity()
    return body
