"""Released SAMs whose mask decoder differs from SAM's by a constant, or in which mask it returns with which score."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from mobilesamv2.models.mask_decoder import Decoded, MaskDecoder, best_of_three, with_single
from mobilesamv2.models.sam import Sam
from mobilesamv2.models.transformer import ImageContext

STABILITY_OFFSET = 1.0
"""Logits by which EdgeSAM moves the mask threshold up and down."""


class StabilityScoredMaskDecoder(MaskDecoder):
    """SAM's mask decoder that scores a mask by its stability instead of its predicted IoU, in eval mode.

    All masks are upscaled, since their scores are known only then.

    Source: EdgeSAM, whose distillation leaves the prediction of IoU untrained; stability is that of the low-res logits.
    """

    @override
    def _decode_tokens(
        self, tokens: Tensor, context: ImageContext, multimask_output: bool, pred_iou_thresh: float | None
    ) -> Decoded:
        if self.training:
            return super()._decode_tokens(tokens, context, multimask_output, pred_iou_thresh)
        logits, _, keep_index = super()._decode_tokens(tokens, context, multimask_output, None)
        scores = _stability(logits)
        predicted_iou = scores.unflatten(0, (len(tokens), -1))
        if pred_iou_thresh is None:
            return Decoded(logits, predicted_iou, keep_index)
        keep = scores.float() > pred_iou_thresh
        return Decoded(logits[keep], predicted_iou, keep_index[keep])

    @override
    def decode_all_masks(self, context: ImageContext, sparse: Tensor) -> tuple[Tensor, Tensor]:
        logits, _ = super().decode_all_masks(context, sparse)
        return logits, _stability(logits.flatten(0, 1)).unflatten(0, logits.shape[:2])


class BestOfThreeMaskDecoder(MaskDecoder):
    """SAM's mask decoder whose single mask is the best of three by predicted IoU, in eval mode.

    Source: TinySAM's released code, which decodes three masks for every prompt and takes the best.
    """

    @override
    def _decode_tokens(
        self, tokens: Tensor, context: ImageContext, multimask_output: bool, pred_iou_thresh: float | None
    ) -> Decoded:
        if multimask_output or self.training:
            return super()._decode_tokens(tokens, context, multimask_output, pred_iou_thresh)
        predicted_iou = self._predict_iou(tokens)  # (N, 4)
        best, prompts = best_of_three(predicted_iou), torch.arange(len(tokens), device=tokens.device)
        iou, weights = predicted_iou[prompts, best], self._hypernetworks(tokens, slice(None))[prompts, best]
        keep = slice(None) if pred_iou_thresh is None else iou.float() > pred_iou_thresh
        logits = self._upscale(context._replace(image=context.image[keep]), weights[keep, None])[:, 0]
        return Decoded(logits, iou[:, None], prompts[keep])

    @override
    def decode_all_masks(self, context: ImageContext, sparse: Tensor) -> tuple[Tensor, Tensor]:
        logits, predicted_iou = super().decode_all_masks(context, sparse)
        return with_single(logits, predicted_iou, best_of_three(predicted_iou))


class EfficientViTSam(Sam):
    """EfficientViT-SAM; arguments as for ``Sam``.

    Source: MIT's released code, which sets the epsilon of every norm to 1e-6, where SAM's transformer has 1e-5.
    """

    @override
    def _build_mask_decoder(self, embed_dim: int, num_heads: int, mlp_dim: int) -> MaskDecoder:
        decoder = super()._build_mask_decoder(embed_dim, num_heads, mlp_dim)
        for module in decoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6
        return decoder


class EdgeSam(Sam):
    """EdgeSAM; arguments as for ``Sam``."""

    @override
    def _build_mask_decoder(self, embed_dim: int, num_heads: int, mlp_dim: int) -> MaskDecoder:
        return StabilityScoredMaskDecoder(embed_dim, num_heads, mlp_dim)


class TinySam(Sam):
    """TinySAM; arguments as for ``Sam``."""

    @override
    def _build_mask_decoder(self, embed_dim: int, num_heads: int, mlp_dim: int) -> MaskDecoder:
        return BestOfThreeMaskDecoder(embed_dim, num_heads, mlp_dim)


def _stability(logits: Tensor) -> Tensor:
    """Return the stability (D,) of low-res logits (D, h, w); 0 for a mask without a pixel, where EdgeSAM has NaN."""
    inner, outer = ((logits > sign * STABILITY_OFFSET).flatten(1).sum(1) for sign in (1, -1))
    return (inner / outer.clamp(min=1)).to(logits.dtype)
