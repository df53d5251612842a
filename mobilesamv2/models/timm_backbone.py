"""Any timm backbone as the first part of an image encoder, for SAM or SAM 2, or the reason why it can't be one."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilesamv2.models.timm_models import create_timm_model
from mobilesamv2.names import did_you_mean
from mobilesamv2.structures import EMBEDDING_STRIDE

logger = logging.getLogger(__name__)

WHAT_FITS = (
    "Convolutional networks with padding (convnext_tiny), ViTs (vit_small_patch16_224, vit_small_patch14_dinov2) and "
    "hierarchical transformers whose windows take any size (swin_tiny_patch4_window7_224, hiera_tiny_224) fit."
)
"""End of each refusal."""

PYRAMID_STRIDES = (4, 8, 16, 32)
"""Strides of the maps of which SAM 2's neck makes its levels."""


class TimmBackbone(nn.Module):
    """Any timm backbone: its maps from one of stride 16 or less to the coarsest, concatenated at S/16.

    Maps of finer strides keep their detail as channels: a cell contains all their pixels within it.

    Where the stride of the maps does not divide S, as patches of 14 pixels do not divide 1024, images are resampled
    first, so that every patch is full and each cell of the embedding is a whole number of them: 896 pixels for 64 cells
    of 14. The embedding covers the whole image, in the frame of any other encoder.

    Args:
        variant: timm's name of the backbone.
        image_size: S, pixels.
        finest_stride: stride of the finest map, at most 16. If the backbone has no map of this stride, its next finer
            one is used.
        coarsest_stride: stride of the coarsest map; later stages are pruned. None keeps all.

    Raises:
        ValueError: if timm has no such backbone, or the backbone has no feature maps, does not take images of this
            size, or does not cover them evenly.
    """

    def __init__(
        self,
        variant: str,
        image_size: int,
        finest_stride: int = EMBEDDING_STRIDE,
        coarsest_stride: int | None = None,
    ) -> None:
        super().__init__()
        require_timm_model(variant)
        self.variant = variant
        plan = _plan(variant, image_size)
        finest = max(i for i, stride in enumerate(plan.strides) if stride <= max(finest_stride, min(plan.strides)))
        used = [i for i, stride in enumerate(plan.strides) if coarsest_stride is None or stride <= coarsest_stride]
        settings: dict[str, Any] = plan.settings | {"out_indices": plan.indices[finest : used[-1] + 1]}
        if coarsest_stride is not None:
            settings["feature_cls"] = "getter"  # prunes later stages
        self.body: Any = create_timm_model(variant, **settings)
        self.input_size = plan.input_size
        if self.input_size != image_size:
            logger.info(
                "timm's %s has maps of stride %d: images are resampled from %d to %d pixels a side",
                *(variant, max(plan.strides), image_size, self.input_size),
            )
        self.grid = image_size // EMBEDDING_STRIDE
        # pixels of a finer map per cell of the embedding, along an axis
        self.unshuffle_factors = [max(1, EMBEDDING_STRIDE // stride) for stride in self.body.feature_info.reduction()]
        widths = self.body.feature_info.channels()
        self.channels = sum(width * factor**2 for width, factor in zip(widths, self.unshuffle_factors, strict=True))
        self.channels_last = _is_channels_last(self.body)

    def forward_features(self, images: Tensor) -> Tensor:
        """Compute the concatenated feature maps (B, channels, S/16, S/16) of (B, 3, S, S) images."""
        if images.shape[-1] != self.input_size:
            side = (self.input_size, self.input_size)
            images = F.interpolate(images, size=side, mode="bilinear", align_corners=False)
        maps = [m.permute(0, 3, 1, 2) if self.channels_last else m for m in self.body(images)]
        maps = [F.pixel_unshuffle(m, factor) for m, factor in zip(maps, self.unshuffle_factors, strict=True)]
        size = (self.grid, self.grid)
        return torch.cat(
            [m if m.shape[-2:] == size else F.interpolate(m, size=size, mode="bilinear") for m in maps], dim=1
        )


def require_timm_model(variant: str) -> None:
    """Check that timm has a model of this name and, where it has a tag of weights after a dot, this tag.

    Raises:
        ValueError: if it has none.
    """
    known = timm.is_model(variant)
    try:
        timm.get_pretrained_cfg(variant)
    except RuntimeError:  # timm's error for an unknown tag
        known = False
    if not known:
        raise ValueError(
            f"variant must be the name of a timm model, got '{variant}'.{did_you_mean(variant, timm.list_models())} "
            f"timm.list_models('*{variant[:5]}*') lists some."
        )


class TimmPyramid(nn.Module):
    """A timm backbone's maps at strides 4, 8, 16 and 32, of which SAM 2's neck makes its levels.

    Each pixel of a map is normalised over its channels, without weights, which the neck's convolutions have anyway:
    maps of convolutional networks have deviations of 3 to 13, and finer levels made of them as they are would outweigh
    the mask decoder's own features, of .6, to which they are added.

    Args:
        variant: timm's name of the backbone.
        image_size: S, pixels; a multiple of 32.
        finest_stride: of the finest map; finer ones are left out.
        overrides: arguments of timm's model other than the variant's.

    Raises:
        ValueError: if timm has no such backbone, or the backbone lacks one of these maps or does not fit otherwise (see
            ``TimmBackbone``).
    """

    def __init__(self, variant: str, image_size: int, finest_stride: int = 4, **overrides: Any) -> None:
        super().__init__()
        require_timm_model(variant)
        self.variant = variant
        plan = _plan(variant, image_size)
        by_stride = dict(zip(plan.strides, plan.indices, strict=True))  # of maps of one stride, the last
        if not by_stride.keys() >= set(PYRAMID_STRIDES):
            raise ValueError(
                f"timm's {variant} can't be an image encoder of SAM 2, whose mask decoder reads maps at strides "
                f"{', '.join(map(str, PYRAMID_STRIDES))}: it has {', '.join(map(str, sorted(by_stride)))}. "
                "TinyViT, RepViT, EfficientViT-L, ConvNeXt, Swin and Hiera fit; plain ViTs don't."
            )
        indices = tuple(by_stride[stride] for stride in PYRAMID_STRIDES if stride >= finest_stride)
        self.body: Any = create_timm_model(variant, **plan.settings, out_indices=indices, **overrides)
        self.channels: list[int] = self.body.feature_info.channels()
        self.channels_last = _is_channels_last(self.body)

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of (B, 3, S, S) images, finest first, each pixel of mean 0 and variance 1."""
        maps = (m if self.channels_last else m.permute(0, 2, 3, 1) for m in self.body(images))
        return [F.layer_norm(m, m.shape[-1:]).permute(0, 3, 1, 2) for m in maps]


class _Plan(NamedTuple):
    """How timm builds a backbone for images of a size.

    Attributes:
        settings: of ``timm.create_model``.
        input_size: side of the images that the backbone takes, pixels.
        strides: of the feature maps that timm offers by default, finest first.
        indices: timm's numbers of these maps.
    """

    settings: dict[str, Any]
    input_size: int
    strides: list[int]
    indices: tuple[int, ...]


def _plan(variant: str, image_size: int) -> _Plan:
    """Find settings with which a backbone maps images of a size to maps that cover them, without memory for weights."""
    if not timm.is_model(variant):
        similar = did_you_mean(variant, timm.list_models())
        raise ValueError(
            f"variant must be the name of a timm model, got '{variant}'.{similar} "
            f"timm.list_models('*{variant[:5]}*') lists some."
        )
    try:
        strides = _without_memory(variant, {}).feature_info.reduction()
    except RuntimeError as error:  # timm's error for a model without feature maps
        raise ValueError(f"variant must be a timm model with feature maps, got '{variant}': {error}") from error
    side = input_side(image_size, strides)
    config = timm.get_pretrained_cfg(variant)
    with_size: list[dict[str, Any]] = [{"img_size": side}, {}]
    reasons: list[str] = []
    for size in with_size if config is not None and config.fixed_input_size else reversed(with_size):
        try:
            body, maps = _try(variant, size, side)
        except Exception as error:  # each backbone has errors of its own for a size that it does not take
            reasons.append((str(error).strip() or type(error).__name__).splitlines()[0].rstrip("."))
            continue
        _require_even(variant, body, maps, side)
        return _Plan({"features_only": True} | size, side, strides, tuple(body.feature_info.out_indices))
    raise ValueError(
        f"timm's {variant} can't be an image encoder for {image_size} x {image_size} pixels: {reasons[0]}. It "
        f"may be made for one size. {WHAT_FITS}"
    )


def _try(variant: str, size: dict[str, Any], side: int) -> tuple[Any, list[Tensor]]:
    """Return a backbone and its maps of one image, without memory, or with it for the few that look at values."""
    body = _without_memory(variant, size)
    try:
        return body, body(torch.zeros(1, 3, side, side, device="meta"))
    except RuntimeError as error:
        if "meta tensors" not in str(error):
            raise
    with torch.device("cpu"), torch.inference_mode():
        return body, create_timm_model(variant, features_only=True, **size).eval()(torch.zeros(1, 3, side, side))


def _without_memory(variant: str, size: dict[str, Any]) -> Any:
    """Build a backbone on the meta device, in eval mode."""
    with torch.device("meta"):
        return create_timm_model(variant, features_only=True, **size).eval()


def _require_even(variant: str, body: Any, maps: list[Tensor], side: int) -> None:
    """Check that each map of a square image has as many cells as its stride gives."""
    for found, stride in zip(maps, body.feature_info.reduction(), strict=True):
        height, width = found.shape[1:3] if _is_channels_last(body) else found.shape[-2:]
        if (height * stride, width * stride) != (side, side):
            raise ValueError(
                f"timm's {variant} can't be an image encoder: its map of stride {stride} has {height} x {width} cells "
                f"for {side} x {side} pixels, not {side / stride:g} a side, so that pixels would be lost or misplaced. "
                f"{WHAT_FITS}"
            )


def _is_channels_last(body: Any) -> bool:
    """Return whether the maps have their channels last, as those of some hierarchical transformers."""
    return str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")


def input_side(image_size: int, strides: list[int]) -> int:
    """Return the side that images are resampled to for maps of some strides: S if all of them divide it.

    Args:
        image_size: S, pixels.
        strides: of the maps, pixels.
    """
    step = math.lcm(*strides)
    if image_size % step == 0:
        return image_size
    if step > EMBEDDING_STRIDE:
        return step * max(1, round(image_size / step))
    return step * round(EMBEDDING_STRIDE / step) * (image_size // EMBEDDING_STRIDE)
