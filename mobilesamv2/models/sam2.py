"""SAM 2 and 2.1 on images: a mask decoder that reads three levels of the image, and a square model input.

Memory and video are left out. What differs from SAM is stated by the classes here; everything else is SAM's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from mobilesamv2.models.mask_decoder import MLP, Decoded, MaskDecoder, best_of_three, with_single
from mobilesamv2.models.prompt_encoder import PromptEncoder
from mobilesamv2.models.pyramid import PyramidNeck, unpack_cells
from mobilesamv2.models.sam import Sam
from mobilesamv2.models.transformer import ImageContext
from mobilesamv2.structures import EMBEDDING_STRIDE
from mobilesamv2.transforms import Resizing

STABILITY_DELTA, STABILITY_THRESH = 0.05, 0.98
"""Logits and IoU of the stability below which the best of three masks replaces the single one. Source: SAM 2's code."""

MASK_INPUT_LIMIT = 32.0
"""Logits to which SAM 2's official image predictor clamps the low-res masks that it returns, to be fed back."""


class Sam2MaskDecoder(MaskDecoder):
    """SAM's mask decoder with finer levels of the image, a token for the object's presence, and IoU in [0, 1].

    Where one mask is asked for and it is unstable, the best of three by predicted IoU takes its place, in eval mode.

    Args:
        embed_dim: C.
        num_heads: attention heads.
        mlp_dim: hidden width of the transformer's MLPs.

    Source: SAM 2's released code, with the settings of its configurations. The score of the object's presence, which
    only its video predictor reads, is loaded and saved but not computed.
    """

    iou_index = 1

    def __init__(self, embed_dim: int = 256, num_heads: int = 8, mlp_dim: int = 2048) -> None:
        super().__init__(embed_dim, num_heads, mlp_dim)
        self.obj_score_token = nn.Embedding(1, embed_dim)
        self.pred_obj_score_head = MLP(embed_dim, embed_dim, embed_dim, 1)

    @override
    def precompute_image(
        self, image_embedding: Tensor, image_pe: Tensor, dense: Tensor, shared: bool | None = None
    ) -> ImageContext:
        coarse, finer_levels = unpack_cells(image_embedding, self.iou_token.embedding_dim)
        return super().precompute_image(coarse, image_pe, dense, shared)._replace(finer_levels=finer_levels)

    @override
    def decode_all_masks(self, context: ImageContext, sparse: Tensor) -> tuple[Tensor, Tensor]:
        logits, predicted_iou = super().decode_all_masks(context, sparse)
        single = torch.where(_is_stable(logits[:, 0]), 0, best_of_three(predicted_iou))
        return with_single(logits, predicted_iou, single)

    @override
    def _output_tokens(self) -> Tensor:
        return torch.cat([self.obj_score_token.weight, super()._output_tokens()])

    @override
    def _predict_iou(self, tokens: Tensor) -> Tensor:
        return super()._predict_iou(tokens).sigmoid()

    @override
    def _decode_tokens(
        self, tokens: Tensor, context: ImageContext, multimask_output: bool, pred_iou_thresh: float | None
    ) -> Decoded:
        if multimask_output or self.training:
            return super()._decode_tokens(tokens, context, multimask_output, pred_iou_thresh)
        predicted_iou = self._predict_iou(tokens)  # (N, 4)
        best = best_of_three(predicted_iou)
        prompts = torch.arange(len(tokens), device=tokens.device)
        weights = self._hypernetworks(tokens, slice(None))  # (N, 4, C/8)
        both = self._upscale(context, torch.stack([weights[:, 0], weights[prompts, best]], dim=1))  # (N, 2, S/4, S/4)
        chosen = torch.where(_is_stable(both[:, 0]), 0, 1)
        logits, iou = both[prompts, chosen], predicted_iou[prompts, torch.where(chosen == 0, 0, best)]
        keep = slice(None) if pred_iou_thresh is None else iou.float() > pred_iou_thresh
        return Decoded(logits[keep], iou[:, None], prompts[keep])


class Sam2(Sam):
    """SAM 2 or 2.1 on images, of any size; arguments as for ``Sam``.

    Its image encoder maps (B, 3, S, S) to packed image embeddings (B, 4C, S/16, S/16), or 2C or C channels where it
    leaves out the finer levels, see ``pyramid``; the mask decoder then adds nothing in their place.
    """

    resizing = Resizing.SQUARE
    packs_levels = True
    mask_input_limit = MASK_INPUT_LIMIT

    @property
    @override
    def level_channels(self) -> tuple[int, ...]:
        neck = self.image_encoder.get_submodule("neck")
        assert isinstance(neck, PyramidNeck)
        return neck.level_channels

    @override
    def _build_prompt_encoder(self, embed_dim: int) -> PromptEncoder:
        return PromptEncoder(embed_dim, self.image_size, self.image_size // EMBEDDING_STRIDE, pad_boxes=True)

    @override
    def _build_mask_decoder(self, embed_dim: int, num_heads: int, mlp_dim: int) -> MaskDecoder:
        return Sam2MaskDecoder(embed_dim, num_heads, mlp_dim)


def _is_stable(logits: Tensor) -> Tensor:
    """Check which low-res masks (N, h, w) hardly change with the threshold, (N,) bool."""
    inner, outer = ((logits > sign * STABILITY_DELTA).flatten(1).sum(1) for sign in (1, -1))
    return torch.where(outer > 0, inner.float() / outer, 1.0) >= STABILITY_THRESH
