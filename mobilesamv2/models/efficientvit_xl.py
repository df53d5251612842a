"""The image encoders of EfficientViT-SAM XL0 and XL1, which timm lacks; their blocks are timm's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import GELUTanh
from timm.models.efficientvit_mit import EfficientVitBlock, LiteMLA, ResidualBlock, Stem, build_local_block
from torch import Tensor, nn

from mobilesamv2.models.image_encoder import EfficientViTNeck, ImageEncoder
from mobilesamv2.structures import EMBEDDING_STRIDE

WIDTHS = (32, 64, 128, 256, 512, 1024)
ATTENTION_EXPANSIONS = {3: 4, 4: 6}
"""Stage with attention -> expansion of its blocks; that of its downsampling is 4 times as large."""

HEAD_DIM = 32

_NORM: Any = partial(nn.BatchNorm2d, eps=1e-6)
_ACT: Any = GELUTanh  # timm types it as text alone
_local_block = partial(build_local_block, norm_layer=_NORM, act_layer=_ACT)


class EfficientViTXLBackbone(nn.Module):
    """EfficientViT-L with a fifth stage, which returns features at strides 64, 32 and 16.

    Args:
        depths: blocks of the stem and the five stages, without the downsampling ones.

    Source: MIT's released code, whose names of stages the body has, as timm spells them.
    """

    def __init__(self, depths: Sequence[int]) -> None:
        super().__init__()
        stem = Stem(3, WIDTHS[0], depths[0], _NORM, GELUTanh, block_type="large")
        stages = (_stage(i, depth) for i, depth in enumerate(depths[1:]))
        self.body = nn.ModuleDict(
            {f"stem_{name}": module for name, module in stem.named_children()}
            | {f"stages_{i}": nn.Sequential(OrderedDict(blocks=stage)) for i, stage in enumerate(stages)}
        )
        self.channels = list(WIDTHS[:2:-1])

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Compute three feature maps of (B, 3, S, S) images, coarsest first."""
        x, maps = images, []
        for module in self.body.values():
            x = module(x)
            maps.append(x)
        return maps[:-4:-1]


def efficientvit_sam_xl(depths: Sequence[int], *, image_size: int, out_channels: int, neck_depth: int) -> ImageEncoder:
    """Build the image encoder of EfficientViT-SAM XL.

    Args:
        depths: blocks of the stem and the five stages, without the downsampling ones.
        image_size: S, pixels.
        out_channels: C.
        neck_depth: residual blocks of the neck.

    Source: EfficientViT-SAM, section 3, and MIT's released code.
    """
    backbone = EfficientViTXLBackbone(depths)
    grid = image_size // EMBEDDING_STRIDE
    return ImageEncoder(backbone, EfficientViTNeck(backbone.channels, grid, out_channels, neck_depth, expand_ratio=4))


def _stage(index: int, depth: int) -> nn.Sequential:
    before, width = WIDTHS[index : index + 2]
    expansion = ATTENTION_EXPANSIONS.get(index)
    if expansion is None:
        first = _local_block(before, width, stride=2, expand_ratio=16, block_type="fused")
        rest = [
            ResidualBlock(_local_block(width, width, stride=1, expand_ratio=4, block_type="fused"), nn.Identity())
            for _ in range(depth)
        ]
    else:
        first = _local_block(before, width, stride=2, expand_ratio=4 * expansion, fewer_norm=True)
        rest = [_attention_block(width, expansion) for _ in range(depth)]
    return nn.Sequential(ResidualBlock(first, None), *rest)


def _attention_block(width: int, expansion: int) -> EfficientVitBlock:
    """Build timm's block with attention over windows of 3 x 3 beside single cells, instead of 5 x 5."""
    block = EfficientVitBlock(width, head_dim=HEAD_DIM, expand_ratio=expansion, norm_layer=_NORM, act_layer=GELUTanh)
    attention = LiteMLA(width, width, dim=HEAD_DIM, norm_layer=(None, _NORM), scales=(3,), eps=1e-15)
    block.context_module = ResidualBlock(attention, nn.Identity())
    return block
