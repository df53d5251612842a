"""Image encoder of plain convolutions."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from mobilesamv2.models.image_encoder import ImageEncoder, sam_neck
from mobilesamv2.models.registration import register_encoder


class PlainConv(nn.Module):
    """Four convolutions of stride 2.

    Args:
        width: channels of the first convolution; each further one has twice as many as the one before.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 8 * width]
        self.trunk = nn.Sequential()
        for before, after in pairwise(widths):
            self.trunk.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
            self.trunk.append(nn.GELU())

    def forward_features(self, images: Tensor) -> Tensor:
        """Compute features (B, 8 * width, S/16, S/16) of (B, 3, S, S) images."""
        return self.trunk(images)


@register_encoder("plain_conv")
def plain_conv(*, image_size: int, out_channels: int, width: int = 8) -> ImageEncoder:
    """Build plain convolutions with SAM's neck.

    Args:
        image_size: S, pixels; any multiple of 16.
        out_channels: C.
        width: channels of the first convolution.
    """
    del image_size
    return ImageEncoder(PlainConv(width), sam_neck(8 * width, out_channels))
