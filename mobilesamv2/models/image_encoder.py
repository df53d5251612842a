"""Image encoders: a timm backbone and a neck, (B, 3, S, S) images to (B, C, S/16, S/16) image embeddings."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import GELUTanh, LayerNorm2d
from timm.models.efficientvit_mit import ConvNormAct, FusedMBConv, LiteMLA, ResidualBlock
from torch import Tensor, nn
from torch.nn import functional as F

from mobilesamv2.models.timm_backbone import TimmBackbone
from mobilesamv2.models.timm_models import create_timm_model
from mobilesamv2.structures import EMBEDDING_STRIDE


class ImageEncoder(nn.Module):
    """Backbone followed by a neck.

    Args:
        backbone: its ``forward_features`` maps images to the neck's input.
        neck: returns the image embedding.
        input_side: side of the images, pixels, where it is not S: images are resized to it instead.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module, input_side: int | None = None) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.neck = neck
        self.input_side = input_side

    def forward(self, images: Tensor) -> Tensor:
        """Encode (B, 3, S, S) normalised images as (B, C, S/16, S/16) image embeddings.

        Raises:
            ValueError: if the encoder takes images of another side than these, see ``input_side``.
        """
        if self.input_side is not None and images.shape[-1] != self.input_side:
            raise ValueError(
                f"This image encoder takes images of {self.input_side} x {self.input_side} pixels, got "
                f"{images.shape[-1]} a side. SegAny and SegEvery resize to it; training and export do not."
            )
        return self.neck(self.backbone.forward_features(images))


def sam_neck(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build SAM's neck: 1 x 1 and 3 x 3 convolution, each followed by a layer norm over channels."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels, eps=1e-6),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels, eps=1e-6),
    )


def sam_vit(
    variant: str,
    *,
    image_size: int,
    out_channels: int,
    embed_dim: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    global_attn_indexes: tuple[int, ...] | None = None,
    mlp_dim: int | None = None,
) -> ImageEncoder:
    """Build SAM's own ViT.

    Args:
        variant: timm's name, ``samvit_base_patch16`` for example.
        image_size: S, pixels.
        out_channels: C.
        embed_dim: width of the ViT; None keeps the variant's, here and below.
        depth: number of blocks.
        num_heads: attention heads of a block.
        global_attn_indexes: blocks with global attention instead of windows of 14 x 14.
        mlp_dim: hidden width of the MLPs; None is 4 times the width of the ViT.

    Source: SAM. Other widths are SlimSAM's, whose pruning leaves the number of heads.
    """
    overrides: dict[str, Any] = {
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "global_attn_indexes": global_attn_indexes,
        "mlp_ratio": None if mlp_dim is None or embed_dim is None else mlp_dim / embed_dim,
    }
    backbone: Any = create_timm_model(
        variant,
        img_size=image_size,
        num_classes=0,
        global_pool="",
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        **{name: value for name, value in overrides.items() if value is not None},
    )
    # timm's model includes the neck; here the neck is separate from the backbone, as for every other encoder
    backbone.neck = nn.Identity()
    backbone.input_size = image_size
    return ImageEncoder(backbone, sam_neck(int(backbone.embed_dim), out_channels))


def tiny_vit(
    variant: str,
    *,
    image_size: int,
    out_channels: int,
    embed_dims: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    num_heads: Sequence[int] | None = None,
) -> ImageEncoder:
    """Build MobileSAM's TinyViT, whose last downsampling keeps the resolution: the final stride is 16.

    Args:
        variant: timm's name, ``tiny_vit_5m_224`` for example.
        image_size: S, pixels; TinyViT itself accepts any.
        out_channels: C.
        embed_dims: widths of the four stages; None keeps the variant's, here and below.
        depths: blocks of the four stages.
        num_heads: attention heads of the four stages.

    Source: MobileSAM, section 3. Drop path is 0 for every size, as in the released 5M model.
    """
    del image_size
    overrides: dict[str, Any] = {"embed_dims": embed_dims, "depths": depths, "num_heads": num_heads}
    backbone: Any = create_timm_model(
        variant,
        num_classes=0,
        drop_path_rate=0.0,
        **{name: value for name, value in overrides.items() if value is not None},
    )
    backbone.stages[3].downsample.conv2.conv.stride = (1, 1)
    channels = int(backbone.num_features)
    backbone.head = nn.Identity()
    return ImageEncoder(backbone, sam_neck(channels, out_channels))


class EfficientViTBackbone(nn.Module):
    """EfficientViT-L that returns features at strides 32, 16 and 8 of an image of half the side.

    Args:
        variant: timm's name.
        depths: blocks of the stem and the four stages; None keeps the variant's.
        halve: halve the images, which are of half the side already otherwise.
    """

    def __init__(self, variant: str, depths: tuple[int, ...] | None, halve: bool = True) -> None:
        super().__init__()
        self.halve = halve
        self.variant = variant
        overrides: dict[str, Any] = {} if depths is None else {"depths": depths}
        self.body: Any = create_timm_model(variant, features_only=True, out_indices=(1, 2, 3), **overrides)
        for module in self.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-6  # timm has 1e-7
            elif isinstance(module, LiteMLA):
                module.eps = 1e-15  # timm has 1e-5
        self.channels: list[int] = self.body.feature_info.channels()[::-1]

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Compute three feature maps of (B, 3, S, S) images, or half as large ones, coarsest first."""
        if self.halve:
            images = F.interpolate(images, scale_factor=0.5, mode="bilinear", align_corners=False)
        return self.body(images)[::-1]


class EfficientViTNeck(nn.Module):
    """EfficientViT-SAM's neck: three maps resized to one grid, summed, and refined by residual convolutions.

    Args:
        in_channels: widths of the maps.
        grid: side of the image embedding, cells.
        out_channels: C.
        depth: number of residual blocks.
        expand_ratio: factor by which they are wider inside.
    """

    def __init__(
        self, in_channels: Sequence[int], grid: int, out_channels: int, depth: int, expand_ratio: int = 1
    ) -> None:
        super().__init__()
        norm: Any = partial(nn.BatchNorm2d, eps=1e-6)
        self.grid = grid
        self.inputs = nn.ModuleList(
            ConvNormAct(width, out_channels, 1, norm_layer=norm, act_layer=None) for width in in_channels
        )
        self.middle = nn.Sequential(
            *(
                ResidualBlock(
                    FusedMBConv(
                        out_channels,
                        out_channels,
                        expand_ratio=expand_ratio,
                        norm_layer=norm,
                        act_layer=(GELUTanh, None),
                    ),
                    nn.Identity(),
                )
                for _ in range(depth)
            )
        )
        self.output = nn.Conv2d(out_channels, out_channels, 1)
        self.norm = LayerNorm2d(out_channels, eps=1e-6)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Merge three maps (B, ., ., .) into (B, C, grid, grid)."""
        size = (self.grid, self.grid)
        maps = [
            F.interpolate(project(feature), size=size, mode="bicubic", align_corners=False)
            for project, feature in zip(self.inputs, features, strict=True)
        ]
        return self.norm(self.output(self.middle(torch.stack(maps).sum(0))))


def efficientvit_sam(
    variant: str,
    *,
    image_size: int,
    out_channels: int,
    neck_depth: int,
    depths: tuple[int, ...] | None = None,
    halve: bool = True,
) -> ImageEncoder:
    """Build the image encoder of EfficientViT-SAM L, which sees an image of half the side.

    Args:
        variant: timm's name, ``efficientvit_l2`` for example.
        image_size: S, pixels.
        out_channels: C.
        neck_depth: residual blocks of the neck.
        depths: blocks of the stem and the four stages; None keeps the variant's.
        halve: halve the model's input, as MobileSAMv2 does; otherwise a photo is resized to half the side at once, as
            in MIT's code. The two images differ, and so do the embeddings.

    Source: EfficientViT-SAM, section 3.
    """
    backbone = EfficientViTBackbone(variant, depths, halve)
    neck = EfficientViTNeck(backbone.channels, image_size // EMBEDDING_STRIDE, out_channels, neck_depth)
    return ImageEncoder(backbone, neck, None if halve else image_size // 2)


def residual_neck(in_channels: int, out_channels: int, width: int, depth: int) -> nn.Sequential:
    """Build SAM's neck with residual convolutions at the embedding's stride between its two convolutions.

    Args:
        in_channels: channels of the backbone's maps.
        out_channels: C.
        width: channels of the residual blocks.
        depth: number of residual blocks.
    """
    blocks = (
        ResidualBlock(
            FusedMBConv(width, width, expand_ratio=1, norm_layer=nn.BatchNorm2d, act_layer=(GELUTanh, None)),
            nn.Identity(),
        )
        for _ in range(depth)
    )
    # named, so that necks of unlike depth share the names of what they have in common
    return nn.Sequential(
        OrderedDict(
            project=nn.Conv2d(in_channels, width, 1, bias=False),
            project_norm=LayerNorm2d(width, eps=1e-6),
            blocks=nn.Sequential(*blocks),
            output=nn.Conv2d(width, out_channels, 3, padding=1, bias=False),
            output_norm=LayerNorm2d(out_channels, eps=1e-6),
        )
    )


def timm_encoder(
    variant: str,
    *,
    image_size: int,
    out_channels: int,
    finest_stride: int = EMBEDDING_STRIDE,
    coarsest_stride: int | None = None,
    neck_width: int | None = None,
    neck_depth: int = 0,
) -> ImageEncoder:
    """Build an encoder from any timm backbone.

    Args:
        variant: timm's name of the backbone.
        image_size: S, pixels.
        out_channels: C.
        finest_stride: stride of the finest map that the neck reads, see ``TimmBackbone``.
        coarsest_stride: stride of the coarsest map that the neck reads, see ``TimmBackbone``.
        neck_width: channels of a ``residual_neck``; None builds SAM's neck.
        neck_depth: residual blocks of that neck.
    """
    backbone = TimmBackbone(variant, image_size, finest_stride, coarsest_stride)
    if neck_width is None:
        return ImageEncoder(backbone, sam_neck(backbone.channels, out_channels))
    return ImageEncoder(backbone, residual_neck(backbone.channels, out_channels, neck_width, neck_depth))
