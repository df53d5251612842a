"""Image encoders: a timm backbone and a neck, from (B, 3, S, S) to the image embedding (B, C, S/16, S/16)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import GELUTanh, LayerNorm2d
from timm.models.efficientvit_mit import ConvNormAct, FusedMBConv, ResidualBlock
from torch import Tensor, nn
from torch.nn import functional as F

EMBEDDING_STRIDE = 16
"""Pixels of the model's input for each cell of the image embedding."""


class ImageEncoder(nn.Module):
    """A backbone and a neck.

    Args:
        backbone: its ``forward_features`` takes images and gives what the neck takes.
        neck: gives the image embedding.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.neck = neck

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images to (B, C, S/16, S/16) image embeddings."""
        return self.neck(self.backbone.forward_features(images))


def sam_neck(in_channels: int, out_channels: int) -> nn.Sequential:
    """SAM's neck: 1 x 1 and 3 x 3 convolution, each followed by a layer norm over channels."""
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
) -> ImageEncoder:
    """SAM's own ViT.

    Args:
        variant: timm's name, ``samvit_base_patch16`` for example.
        image_size: S, pixels.
        out_channels: C.
        embed_dim: width of the ViT; None keeps the variant's, here and below.
        depth: number of blocks.
        num_heads: attention heads of a block.
        global_attn_indexes: blocks that attend to the whole image instead of windows of 14 x 14.
    """
    changes: dict[str, Any] = {
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "global_attn_indexes": global_attn_indexes,
    }
    backbone: Any = timm.create_model(
        variant,
        img_size=image_size,
        num_classes=0,
        global_pool="",
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        **{name: value for name, value in changes.items() if value is not None},
    )
    # timm keeps the neck inside; ours stands beside the backbone, as for every other encoder.
    backbone.neck = nn.Identity()
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
    """MobileSAM's TinyViT: the last downsampling keeps its resolution, so that the stride ends at 16.

    Args:
        variant: timm's name, ``tiny_vit_5m_224`` for example.
        image_size: S, pixels; TinyViT itself takes any.
        out_channels: C.
        embed_dims: widths of the four stages; None keeps the variant's, here and below.
        depths: blocks of the four stages.
        num_heads: attention heads of the four stages.

    Source: MobileSAM, section 3. Drop path is 0 for every size, as in the released 5M model.
    """
    del image_size
    changes: dict[str, Any] = {"embed_dims": embed_dims, "depths": depths, "num_heads": num_heads}
    backbone: Any = timm.create_model(
        variant,
        num_classes=0,
        drop_path_rate=0.0,
        **{name: value for name, value in changes.items() if value is not None},
    )
    backbone.stages[3].downsample.conv2.conv.stride = (1, 1)
    channels = int(backbone.num_features)
    backbone.head = nn.Identity()
    return ImageEncoder(backbone, sam_neck(channels, out_channels))


class EfficientViTBackbone(nn.Module):
    """Features of EfficientViT-L at strides 32, 16 and 8 of an image of half the side.

    Args:
        variant: timm's name.
        depths: blocks of the stem and the four stages; None keeps the variant's.
    """

    def __init__(self, variant: str, depths: tuple[int, ...] | None) -> None:
        super().__init__()
        changes: dict[str, Any] = {} if depths is None else {"depths": depths}
        self.body: Any = timm.create_model(variant, features_only=True, out_indices=(1, 2, 3), **changes)
        for module in self.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-6  # timm has 1e-7
        self.channels: list[int] = self.body.feature_info.channels()[::-1]

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, S, S) images to three maps, coarsest first."""
        half = F.interpolate(images, scale_factor=0.5, mode="bilinear", align_corners=False)
        return self.body(half)[::-1]


class EfficientViTNeck(nn.Module):
    """EfficientViT-SAM's neck: three maps brought to one grid, summed, and refined by residual convolutions.

    Args:
        in_channels: widths of the maps.
        grid: side of the image embedding, cells.
        out_channels: C.
        depth: number of residual blocks.
    """

    def __init__(self, in_channels: Sequence[int], grid: int, out_channels: int, depth: int) -> None:
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
                        expand_ratio=1,
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
        """Three maps (B, ., ., .) to (B, C, grid, grid)."""
        size = (self.grid, self.grid)
        maps = [
            F.interpolate(project(feature), size=size, mode="bicubic", align_corners=False)
            for project, feature in zip(self.inputs, features, strict=True)
        ]
        return self.norm(self.output(self.middle(torch.stack(maps).sum(0))))


def efficientvit_sam(
    variant: str, *, image_size: int, out_channels: int, neck_depth: int, depths: tuple[int, ...] | None = None
) -> ImageEncoder:
    """EfficientViT-SAM as MobileSAMv2 runs it, on an image of half the side.

    Args:
        variant: timm's name, ``efficientvit_l2`` for example.
        image_size: S, pixels.
        out_channels: C.
        neck_depth: residual blocks of the neck.
        depths: blocks of the stem and the four stages; None keeps the variant's.

    Source: EfficientViT-SAM, section 3; the halving is MobileSAMv2's.
    """
    backbone = EfficientViTBackbone(variant, depths)
    neck = EfficientViTNeck(backbone.channels, image_size // EMBEDDING_STRIDE, out_channels, neck_depth)
    return ImageEncoder(backbone, neck)


class TimmBackbone(nn.Module):
    """Any timm backbone: its maps from one of stride 16 or less to the coarsest, concatenated at S/16.

    Maps of finer strides keep their detail as channels: a cell holds all that they have of it.

    Args:
        variant: timm's name of the backbone.
        image_size: S, pixels.
        finest_stride: of the maps, 16 or less; the coarsest map of no more begins where the backbone has none of it.

    Raises:
        ValueError: timm has no such backbone, or gives no feature maps for it.
    """

    def __init__(self, variant: str, image_size: int, finest_stride: int = EMBEDDING_STRIDE) -> None:
        super().__init__()
        if not timm.is_model(variant):
            raise ValueError(f"timm has no backbone '{variant}'; timm.list_models('*{variant[:5]}*') lists like ones.")
        config = timm.get_pretrained_cfg(variant)
        size: dict[str, Any] = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
        try:
            with torch.device("meta"):
                probe: Any = timm.create_model(variant, features_only=True, **size)
            strides: list[int] = probe.feature_info.reduction()
            finest = max((i for i, stride in enumerate(strides) if stride <= finest_stride), default=0)
            indices = tuple(range(finest, len(strides)))
            self.body: Any = timm.create_model(variant, features_only=True, out_indices=indices, **size)
        except RuntimeError as error:  # how timm refuses feature maps
            raise ValueError(f"timm's '{variant}' gives no feature maps, so it can't be an encoder: {error}") from error
        self.grid = image_size // EMBEDDING_STRIDE
        # pixels of a finer map for each cell of the embedding, along an axis
        self.folds = [max(1, EMBEDDING_STRIDE // stride) for stride in self.body.feature_info.reduction()]
        widths = self.body.feature_info.channels()
        self.channels = sum(width * fold**2 for width, fold in zip(widths, self.folds, strict=True))
        # A hierarchical timm transformer may give its maps channels-last.
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) images to (B, channels, S/16, S/16)."""
        maps = [m.permute(0, 3, 1, 2) if self.channels_last else m for m in self.body(images)]
        maps = [F.pixel_unshuffle(m, fold) for m, fold in zip(maps, self.folds, strict=True)]
        size = (self.grid, self.grid)
        return torch.cat(
            [m if m.shape[-2:] == size else F.interpolate(m, size=size, mode="bilinear") for m in maps], dim=1
        )


def timm_encoder(
    variant: str, *, image_size: int, out_channels: int, finest_stride: int = EMBEDDING_STRIDE
) -> ImageEncoder:
    """Any timm backbone with SAM's neck.

    Args:
        variant: timm's name of the backbone.
        image_size: S, pixels.
        out_channels: C.
        finest_stride: of the maps that the neck sees, see ``TimmBackbone``.
    """
    backbone = TimmBackbone(variant, image_size, finest_stride)
    return ImageEncoder(backbone, sam_neck(backbone.channels, out_channels))
