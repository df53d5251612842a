"""SAM: image encoder, prompt encoder and mask decoder."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mobilesamv2.models.folding import fold_batch_norms
from mobilesamv2.models.low_rank import merge_low_rank
from mobilesamv2.models.mask_decoder import Decoded, DecodedStages, MaskDecoder
from mobilesamv2.models.prompt_encoder import PromptEncoder
from mobilesamv2.models.transformer import ImageContext
from mobilesamv2.structures import EMBEDDING_STRIDE, SAM_THRESHOLDS, Thresholds
from mobilesamv2.transforms import PIXEL_MEAN, PIXEL_STD, Resizing

MAX_IMAGE_SIZE = 8192
"""Pixels, of a model's input: eight times SAM's. The image embedding of a larger one takes more than 256 MB."""


class Sam(nn.Module):
    """Segment-anything model of any size.

    Args:
        image_encoder: maps (B, 3, S, S) to (B, C, S/16, S/16).
        image_size: S, pixels.
        embed_dim: C.
        decoder_heads: attention heads of the mask decoder.
        decoder_mlp_dim: hidden width of the mask decoder's MLPs.
        name: name of the model in the registry; saved with the weights.
        encoder_name: name of the image encoder in the registry.
        thresholds: those that suit its masks where a prompt sampler has none of its own; saved with the weights.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    resizing: Resizing = Resizing.LONGEST_SIDE
    """How images become the model's input, and its low-res masks those of images."""

    packs_levels = False
    """Whether an image embedding may have levels of strides 8 and 4 packed into its cells, as by ``pack_levels``."""

    mask_input_limit: float | None = None
    """Logits beyond which low-res masks are clamped before they are fed back as mask inputs; None clamps none."""

    def __init__(
        self,
        image_encoder: nn.Module,
        image_size: int = 1024,
        embed_dim: int = 256,
        decoder_heads: int = 8,
        decoder_mlp_dim: int = 2048,
        name: str | None = None,
        encoder_name: str | None = None,
        thresholds: Thresholds = SAM_THRESHOLDS,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.name = name
        self.encoder_name = encoder_name
        self.thresholds = thresholds
        self.is_for_inference = False
        self.image_encoder = image_encoder
        self.prompt_encoder = self._build_prompt_encoder(embed_dim)
        self.mask_decoder = self._build_mask_decoder(embed_dim, decoder_heads, decoder_mlp_dim)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    def _build_prompt_encoder(self, embed_dim: int) -> PromptEncoder:
        return PromptEncoder(embed_dim, self.image_size, self.image_size // EMBEDDING_STRIDE)

    def _build_mask_decoder(self, embed_dim: int, num_heads: int, mlp_dim: int) -> MaskDecoder:
        return MaskDecoder(embed_dim, num_heads, mlp_dim)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.pixel_mean.device

    @property
    def encoder_side(self) -> int:
        """Return the side of the images that the image encoder takes, pixels: S unless the encoder has another."""
        side = getattr(self.image_encoder, "input_side", None)
        return self.image_size if side is None else side

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Return the channels of each level in an image embedding, coarsest first: C, and of some models finer ones."""
        return (self.prompt_encoder.embed_dim,)

    @property
    def embedding_channels(self) -> int:
        """Return the channels of an image embedding, of all its levels."""
        return sum(self.level_channels)

    def for_inference(self) -> Sam:
        """Return a faster copy with the same outputs, which can neither be trained nor saved.

        Batch norms are folded into convolutions: TinyViT takes 14% less time on two CPU cores, RepViT 11%.

        Raises:
            ValueError: if the model is in training mode.
        """
        fast = copy.deepcopy(merge_low_rank(self))
        fold_batch_norms(fast.image_encoder, self.encoder_side)
        fast.is_for_inference = True
        return fast

    def decode(
        self,
        image_embedding: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes_xyxy: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Decode N prompts on one image, in pixels of the model's input.

        Args:
            image_embedding: (1, C, S/16, S/16), or (N, C, S/16, S/16) if the prompts are on several images.
            points: (N, P, 2) xy.
            labels: (N, P), 1 foreground, 0 background, -1 padding.
            boxes_xyxy: (N, 4).
            mask_input: (N, 1, S/4, S/4) logits.
            multimask_output: return three masks per prompt instead of one.

        Returns:
            low-res logits (N, M, S/4, S/4) and predicted IoU (N, M).
        """
        sparse, dense = self.prompt_encoder(points, labels, boxes_xyxy, mask_input)
        positions = self.prompt_encoder.image_positions()
        return self.mask_decoder(image_embedding, positions, sparse, dense, multimask_output)

    def as_mask_input(self, low_res_logits: Tensor) -> Tensor:
        """Return low-res logits of any shape as the model takes them back as a mask input."""
        limit = self.mask_input_limit
        return low_res_logits if limit is None else low_res_logits.clamp(-limit, limit)

    def decode_stages(
        self,
        image_embedding: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes_xyxy: Tensor | None = None,
    ) -> DecodedStages:
        """Decode all four masks of N prompts with their output tokens; arguments as for ``decode``."""
        sparse, dense = self.prompt_encoder(points, labels, boxes_xyxy)
        context = self.mask_decoder.precompute_image(image_embedding, self.prompt_encoder.image_positions(), dense)
        return self.mask_decoder.decode_stages(context, sparse)

    def image_context(self, image_embedding: Tensor) -> ImageContext:
        """Compute what all prompts without a mask input share, from an image embedding (1, C, S/16, S/16)."""
        _, dense = self.prompt_encoder()
        return self.mask_decoder.precompute_image(image_embedding, self.prompt_encoder.image_positions(), dense)

    def decode_filtered(
        self,
        context: ImageContext,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes_xyxy: Tensor | None = None,
        multimask_output: bool = True,
        pred_iou_thresh: float | None = None,
    ) -> Decoded:
        """Decode N prompts on one image, and upscale only masks whose predicted IoU exceeds a threshold.

        Args:
            context: from ``image_context``.
            points: (N, P, 2) xy, pixels of the model's input, as in ``decode``.
            labels: (N, P), 1 foreground, 0 background, -1 padding.
            boxes_xyxy: (N, 4).
            multimask_output: return three masks per prompt instead of one.
            pred_iou_thresh: masks with a higher predicted IoU are kept; None keeps all.
        """
        sparse, _ = self.prompt_encoder(points, labels, boxes_xyxy)
        return self.mask_decoder.decode(context, sparse, multimask_output, pred_iou_thresh)
