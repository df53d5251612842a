"""SAM-HQ: a further token whose mask, of finer features, is added to SAM's.

The finer features depend on the image alone. They travel in the image embedding (B, 3C, S/16, S/16): a cell has SAM's C
channels, and the 4 x 4 pixels of the features with C/8.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from mobilesamv2.models.image_encoder import ImageEncoder, sam_vit, tiny_vit
from mobilesamv2.models.mask_decoder import MLP, Decoded, MaskDecoder
from mobilesamv2.models.sam import Sam
from mobilesamv2.models.transformer import ImageContext

Maps = Callable[[Any, Tensor], tuple[Tensor, Tensor]]
"""Maps a backbone and images to the neck's input and an earlier map, both at S/16."""


class HqImageEncoder(ImageEncoder):
    """Image encoder with SAM-HQ's finer features of an early map and of the image embedding.

    Args:
        encoder: gives backbone and neck.
        early_channels: channels of the early map.
        out_channels: C.
        maps: computes the neck's input and the early map.
    """

    def __init__(self, encoder: ImageEncoder, early_channels: int, out_channels: int, maps: Maps) -> None:
        super().__init__(encoder.backbone, encoder.neck)
        self.maps = maps
        self.compress_vit_feat = _upscaling(early_channels, out_channels, out_channels // 8)
        self.embedding_encoder = _upscaling(out_channels, out_channels // 4, out_channels // 8)

    @override
    def forward(self, images: Tensor) -> Tensor:
        last, early = self.maps(self.backbone, images)
        embedding = self.neck(last)
        fine = self.embedding_encoder(embedding) + self.compress_vit_feat(early)  # (B, C/8, S/4, S/4)
        return torch.cat([embedding, F.pixel_unshuffle(fine, 4)], dim=1)


class HqMaskDecoder(MaskDecoder):
    """SAM's mask decoder with SAM-HQ's token; it returns one mask, the best of three where several are asked for.

    Args:
        embed_dim: C.
        num_heads: attention heads.
        mlp_dim: hidden width of the transformer's MLPs.

    Source: SAM-HQ's released code with ``hq_token_only=False``.
    """

    num_multimasks = 1

    def __init__(self, embed_dim: int = 256, num_heads: int = 8, mlp_dim: int = 2048) -> None:
        super().__init__(embed_dim, num_heads, mlp_dim)
        self.hf_token = nn.Embedding(1, embed_dim)
        self.hf_mlp = MLP(embed_dim, embed_dim, embed_dim, embed_dim // 8)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(embed_dim // 8, embed_dim // 4, 3, padding=1),
            LayerNorm2d(embed_dim // 4, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(embed_dim // 4, embed_dim // 8, 3, padding=1),
        )

    @override
    def precompute_image(
        self, image_embedding: Tensor, image_pe: Tensor, dense: Tensor, shared: bool | None = None
    ) -> ImageContext:
        width = self.iou_token.embedding_dim
        embedding, fine = image_embedding.split([width, 2 * width], dim=1)
        return super().precompute_image(embedding, image_pe, dense, shared)._replace(fine=F.pixel_shuffle(fine, 4))

    @override
    def _output_tokens(self) -> Tensor:
        return torch.cat([super()._output_tokens(), self.hf_token.weight])

    @override
    def _decode_tokens(
        self, tokens: Tensor, context: ImageContext, multimask_output: bool, pred_iou_thresh: float | None
    ) -> Decoded:
        predicted_iou = self._predict_iou(tokens)  # (N, 4)
        best = predicted_iou[:, 1:].argmax(1) + 1 if multimask_output else predicted_iou.new_zeros(len(tokens)).long()
        prompts = torch.arange(len(tokens), device=tokens.device)
        iou = predicted_iou[prompts, best]
        keep = slice(None) if pred_iou_thresh is None else iou.float() > pred_iou_thresh
        weights = self._hypernetworks(tokens, slice(None))[prompts, best]  # (N, C/8)
        of_hq = self.hf_mlp(tokens[:, self.iou_index + 1 + len(self.output_hypernetworks_mlps)])
        assert context.fine is not None
        fine = context.fine if len(context.fine) == 1 else context.fine[keep]
        upscaled = self.output_upscaling(context.image[keep].mT.unflatten(2, context.grid))  # (D, C/8, S/4, S/4)
        finer = self.embedding_maskfeature(upscaled) + fine
        logits = _weighted(weights[keep], upscaled) + _weighted(of_hq[keep], finer)
        return Decoded(logits, iou[:, None], prompts[keep])


class SamHq(Sam):
    """SAM-HQ; arguments as for ``Sam``, with an ``HqImageEncoder``."""

    @property
    @override
    def level_channels(self) -> tuple[int, ...]:
        width = self.prompt_encoder.embed_dim
        return width, 2 * width

    @override
    def _build_mask_decoder(self, embed_dim: int, num_heads: int, mlp_dim: int) -> MaskDecoder:
        return HqMaskDecoder(embed_dim, num_heads, mlp_dim)


def sam_hq_vit(variant: str, *, image_size: int, out_channels: int, **overrides: Any) -> ImageEncoder:
    """Build SAM-HQ's image encoder of a SAM ViT; its early map is that of the first block with global attention.

    Args:
        variant: timm's name, ``samvit_base_patch16`` for example.
        image_size: S, pixels.
        out_channels: C.
        overrides: of ``sam_vit``.
    """
    encoder = sam_vit(variant, image_size=image_size, out_channels=out_channels, **overrides)
    first = next(i for i, block in enumerate(encoder.backbone.blocks) if not block.window_size)
    return HqImageEncoder(encoder, encoder.backbone.embed_dim, out_channels, partial(_vit_maps, first))


def sam_hq_tiny_vit(variant: str, *, image_size: int, out_channels: int) -> ImageEncoder:
    """Build Light HQ-SAM's image encoder, a TinyViT; its early map is the first at stride 16.

    Args:
        variant: timm's name, ``tiny_vit_5m_224`` for example.
        image_size: S, pixels.
        out_channels: C.
    """
    encoder = tiny_vit(variant, image_size=image_size, out_channels=out_channels)
    early_channels = int(encoder.backbone.stages[2].downsample.conv3.conv.out_channels)
    return HqImageEncoder(encoder, early_channels, out_channels, _tiny_vit_maps)


ENCODERS_OF_SAM_HQ: dict[str, Callable[..., ImageEncoder]] = {
    **{f"sam_hq_vit_{size[0]}": partial(sam_hq_vit, f"samvit_{size}_patch16") for size in ("base", "large", "huge")},
    "sam_hq_vit_tiny": partial(sam_hq_tiny_vit, "tiny_vit_5m_224"),
}
"""Image encoders of SAM-HQ by name; no other has the finer features that its mask decoder reads."""


def _vit_maps(block: int, backbone: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    last, (early,) = backbone.forward_intermediates(images, indices=[block])
    return last, early


def _tiny_vit_maps(backbone: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    x = backbone.patch_embed(images)
    for stage in backbone.stages[:2]:
        x = stage(x)
    third = backbone.stages[2]
    early = third.downsample(x)
    x = third.blocks(early.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return backbone.stages[3](x), early


def _upscaling(in_channels: int, width: int, out_channels: int) -> nn.Sequential:
    """Build two transposed convolutions, to four times the side."""
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, width, 2, stride=2),
        LayerNorm2d(width, eps=1e-6),
        nn.GELU(),
        nn.ConvTranspose2d(width, out_channels, 2, stride=2),
    )


def _weighted(weights: Tensor, maps: Tensor) -> Tensor:
    """Sum the channels of maps (D, C, h, w) with weights (D, C)."""
    return torch.einsum("dc,dchw->dhw", weights, maps)
