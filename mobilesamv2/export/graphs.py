"""What is exported: modules whose inputs and outputs are a graph's, float32 whatever the precision of the weights."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilesamv2.export.io_doc import (
    DECODER_IO_DOC,
    EFFICIENT_SAM_IO_DOC,
    ENCODER_IO_DOC,
    SAM_2_IO_DOC,
    SAM_DECODER_IO_DOC,
    SAM_ENCODER_IO_DOC,
)
from mobilesamv2.models.prompt_encoder import PromptEncoder
from mobilesamv2.models.sam import Sam
from mobilesamv2.transforms import Resizing

SIGNATURES = ("mobilesamv2", "sam")
"""Names of inputs and outputs: ours, or those of SAM's own ONNX decoder, which labelling programs feed."""

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
"""Precision of the weights and of the arithmetic."""

POINTS_OF_ONE_MASK = 2.5
"""Above this number of points, padding included, SAM's decoder for one mask returns the mask of unambiguous prompts."""


IO_DOC_OF = {Resizing.LONGEST_SIDE: "", Resizing.SQUARE: SAM_2_IO_DOC, Resizing.EFFICIENT_SAM: EFFICIENT_SAM_IO_DOC}
"""What the descriptions of our signature's graphs add for a family of models."""


class Graph(NamedTuple):
    """A graph that can be written.

    Attributes:
        module: what is traced.
        inputs: name of each input -> values to trace with.
        outputs: names.
        axes: name of an input -> its dynamic axes, by index; of an output, where they have names of their own.
        io_doc: inputs and outputs in words.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]
    axes: dict[str, dict[int, str]]
    io_doc: str


def encoder_graph(sam: Sam, signature: str = "mobilesamv2", precision: str = "fp32") -> Graph:
    """Return the graph of the image encoder, with batch norms folded.

    Args:
        sam: the model, which is not changed.
        signature: one of ``SIGNATURES``.
        precision: one of ``PRECISIONS``.
    """
    encoder, side = sam.for_inference().image_encoder, sam.image_size
    with torch.no_grad():  # TinyViT caches its attention biases in eval mode, which must not happen while tracing
        encoder(torch.zeros(1, 3, side, side))
    encoder = encoder.to(PRECISIONS[precision])
    module: Any
    for module in encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # timm's; when decomposed for ONNX, fused attention has other strides
        if hasattr(module, "attention_bias_cache"):
            cached = module.attention_bias_cache.items()
            module.attention_bias_cache = {device: biases.to(PRECISIONS[precision]) for device, biases in cached}
    if signature == "sam":
        inputs = {"input_image": torch.zeros(side // 2, side // 4, 3)}
        axes = {"input_image": {0: "height", 1: "width"}}
        graph = PixelEncoderGraph(encoder, sam).eval()
        return Graph(graph, inputs, ["image_embeddings"], axes, SAM_ENCODER_IO_DOC)
    inputs = {"image": torch.zeros(2, 3, side, side)}
    return Graph(
        EncoderGraph(encoder).eval(), inputs, ["image_embedding"], {"image": {0: "B"}}, _io_doc(ENCODER_IO_DOC, sam)
    )


def decoder_graph(
    sam: Sam, signature: str = "mobilesamv2", precision: str = "fp32", return_single_mask: bool = False
) -> Graph:
    """Return the graph of prompt encoder and mask decoder.

    Args:
        sam: the model, which is not changed.
        signature: one of ``SIGNATURES``.
        precision: one of ``PRECISIONS``.
        return_single_mask: of SAM's signature: the best mask only.
    """
    if precision != "fp32":
        sam = copy.deepcopy(sam).to(PRECISIONS[precision])
    grid = sam.prompt_encoder.grid
    embedding = torch.zeros(1, sam.embedding_channels, grid, grid)
    if signature == "sam":
        inputs = {
            "image_embeddings": embedding,
            "point_coords": torch.zeros(1, 5, 2),
            "point_labels": torch.ones(1, 5),
            "mask_input": torch.zeros(1, 1, 4 * grid, 4 * grid),
            "has_mask_input": torch.ones(1),
            "orig_im_size": torch.tensor([3.0 * grid, 5.0 * grid]),
        }
        axes = {"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}}
        graph = SamDecoderGraph(sam, return_single_mask).eval()
        return Graph(graph, inputs, ["masks", "iou_predictions", "low_res_masks"], axes, SAM_DECODER_IO_DOC)
    inputs = {
        "image_embedding": embedding.repeat(2, 1, 1, 1),
        "points": torch.zeros(8, 3, 2),
        "labels": torch.ones(8, 3, dtype=torch.int64),
        "mask_input": torch.zeros(4, 1, 4 * grid, 4 * grid),
        "has_mask_input": torch.ones(4),
    }
    axes = {"image_embedding": {0: "B"}, "points": {0: "N", 1: "P"}, "labels": {0: "N", 1: "P"}}
    axes |= {"mask_input": {0: "M"}, "has_mask_input": {0: "M"}}
    axes |= {"low_res_logits": {0: "N"}, "predicted_iou": {0: "N"}}
    outputs = ["low_res_logits", "predicted_iou"]
    return Graph(DecoderGraph(sam).eval(), inputs, outputs, axes, _io_doc(DECODER_IO_DOC, sam))


def _io_doc(text: str, sam: Sam) -> str:
    """Return the description of a graph's inputs and outputs, with what differs for a family of models."""
    return f"{text} {IO_DOC_OF[sam.resizing]}".rstrip()


class EncoderGraph(nn.Module):
    """Image encoder.

    Args:
        encoder: for inference, of any precision.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.dtype = next(encoder.parameters()).dtype

    def forward(self, image: Tensor) -> Tensor:
        """Encode normalised images (B, 3, S, S) as image embeddings (B, C, S/16, S/16)."""
        return self.encoder(image.to(self.dtype)).float()


class PixelEncoderGraph(nn.Module):
    """Image encoder that normalises and pads its image.

    Args:
        encoder: for inference, of any precision.
        sam: the model that it is of.

    Source: the encoder that samexporter writes with ``--use-preprocess``, which AnyLabeling reads.
    """

    zeros: Tensor

    def __init__(self, encoder: nn.Module, sam: Sam) -> None:
        super().__init__()
        self.normalised = EncoderGraph(encoder)
        self.side = sam.image_size
        self.mean, self.std = sam.pixel_mean, sam.pixel_std
        self.register_buffer("zeros", torch.zeros(sam.image_size), persistent=False)

    def forward(self, input_image: Tensor) -> Tensor:
        """Encode the pixels (H, W, 3), 0 to 255, of a resized image as an image embedding (1, C, S/16, S/16)."""
        height, width, _ = input_image.shape
        # of a longer side an index does not exist, so that a runtime refuses what padding would cut off
        rows, columns = (self.zeros.index_select(0, torch.arange(number)) for number in (height, width))
        image = (input_image.permute(2, 0, 1) - self.mean) / self.std + rows[:, None] + columns
        return self.normalised(F.pad(image, (0, self.side - width, 0, self.side - height))[None])


class DecoderGraph(nn.Module):
    """Prompt encoder and mask decoder: prompts of all kinds and image embeddings to all four masks.

    Args:
        sam: the model, of any precision.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(
        self, image_embedding: Tensor, points: Tensor, labels: Tensor, mask_input: Tensor, has_mask_input: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decode N prompts. In order, each of B images serves M/B masks, and each mask N/M prompts.

        Args:
            image_embedding: (B, C, S/16, S/16).
            points: (N, P, 2) xy, pixels of the model's input.
            labels: (N, P) int64, as ``PromptEncoder.embed_labelled``'s.
            mask_input: (M, 1, S/4, S/4) logits.
            has_mask_input: (M,), 1 or 0: where it is 0, the mask's prompts have no mask input.

        Returns:
            low-res logits (N, 4, S/4, S/4) and predicted IoU (N, 4).
        """
        encoder, decoder = self.sam.prompt_encoder, self.sam.mask_decoder
        masks, masks_per_image = _in_shares(len(mask_input), len(image_embedding))
        prompts, _ = _in_shares(len(points), len(mask_input))
        sparse = encoder.embed_labelled(points.index_select(0, prompts), labels.index_select(0, prompts))
        dense = _dense(encoder, mask_input.index_select(0, masks), has_mask_input.index_select(0, masks))
        images = image_embedding.to(sparse.dtype)[:, None].expand(-1, masks_per_image, -1, -1, -1).flatten(0, 1)
        context = decoder.precompute_image(images, encoder.image_positions(), dense, shared=True)
        logits, predicted_iou = decoder.decode_all_masks(context, sparse)
        return logits.float(), predicted_iou.float()


class SamDecoderGraph(nn.Module):
    """Prompt encoder, mask decoder and upscaling of the masks, for one prompt.

    Args:
        sam: the model, of any precision.
        return_single_mask: return the mask that SAM takes for the best instead of all four.

    Source: ``SamOnnxModel`` of segment-anything, whose inputs and outputs these are. Deviation: ``has_mask_input``
    chooses (above .5) where SAM's blends.
    """

    def __init__(self, sam: Sam, return_single_mask: bool) -> None:
        super().__init__()
        self.sam = sam
        self.return_single_mask = return_single_mask

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode one prompt.

        Args:
            image_embeddings: (1, C, S/16, S/16).
            point_coords: (1, P, 2) xy, pixels of the resized image.
            point_labels: (1, P) float32, as ``DecoderGraph``'s.
            mask_input: (1, 1, S/4, S/4) logits.
            has_mask_input: (1,), 1 or 0.
            orig_im_size: (2,), height and width of the original image, pixels.

        Returns:
            Logits (1, M, H, W), predicted IoU (1, M) and low-res logits (1, M, S/4, S/4), M 4 or 1.
        """
        encoder, decoder = self.sam.prompt_encoder, self.sam.mask_decoder
        sparse = encoder.embed_labelled(point_coords, point_labels)
        dense = _dense(encoder, mask_input, has_mask_input)
        image = image_embeddings.to(sparse.dtype)
        context = decoder.precompute_image(image, encoder.image_positions(), dense)
        low_res_masks, iou_predictions = (output.float() for output in decoder.decode_all_masks(context, sparse))
        if self.return_single_mask:
            best = _best_mask(iou_predictions, point_labels)
            low_res_masks, iou_predictions = low_res_masks.index_select(1, best), iou_predictions.index_select(1, best)
        return _upscaled(low_res_masks, orig_im_size, self.sam.image_size), iou_predictions, low_res_masks


def _dense(encoder: PromptEncoder, mask_input: Tensor, has_mask_input: Tensor) -> Tensor:
    """Return the dense embeddings (M, C, S/16, S/16) of mask inputs, or of none where ``has_mask_input`` (M,) is 0."""
    if not encoder.takes_masks:
        return encoder()[1]
    has_mask = (has_mask_input > 0.5)[:, None, None, None]
    return torch.where(has_mask, encoder(mask_input=mask_input)[1], encoder()[1])


def _in_shares(number: int, owners: int) -> tuple[Tensor, int]:
    """Return the indices of some things in order of their owners, and the share of each owner.

    They are 0, 1, 2 and so on, as a product of lengths that the exporter understands. Where the owners can't have the
    same share, the last index does not exist, so that a runtime refuses it.
    """
    share = (number + owners - 1) // owners
    return (torch.arange(owners)[:, None] * share + torch.arange(share)).flatten(), share


def _best_mask(iou_predictions: Tensor, point_labels: Tensor) -> Tensor:
    """Return the index (1,) of the mask for one prompt: 0 for unambiguous ones, else that of the highest IoU."""
    num_points = torch.ones_like(point_labels).sum(1, keepdim=True)  # as a tensor, so that it stays dynamic
    preference = iou_predictions.new_tensor([[1000.0, 0.0, 0.0, 0.0]])
    return (iou_predictions + (num_points - POINTS_OF_ONE_MASK) * preference).argmax(1)


def _upscaled(low_res: Tensor, original_size: Tensor, side: int) -> Tensor:
    """Upscale logits by SAM's two bilinear steps, to S x S and, without the padding, to the original size."""
    masks = F.interpolate(low_res, size=(side, side), mode="bilinear", align_corners=False)
    resized = torch.floor(original_size * (side / original_size.max()) + 0.5)
    height, width = (_as_size(resized[i], side) for i in range(2))
    original = [_as_size(original_size[i]) for i in range(2)]
    return F.interpolate(masks[..., :height, :width], size=original, mode="bilinear", align_corners=False)


def _as_size(value: Tensor, largest: int | None = None) -> int:
    """Return a length as a number, and tell the exporter what it may assume of it."""
    size: Any = value.to(torch.int64).item()
    torch._check(size >= 1)
    if largest is not None:
        torch._check(size <= largest)
    return size
