"""SAM-HQ's released files, which keep what depends on the image alone in the mask decoder; here the encoder has it."""

from __future__ import annotations

from torch import Tensor

HQ_OF_THE_IMAGE = ("compress_vit_feat", "embedding_encoder")
"""Modules of the image encoder that SAM-HQ keeps in the mask decoder, by their names in the image encoder here."""
_STARTS = tuple(f"{module}." for module in HQ_OF_THE_IMAGE)


def move_sam_hq(parts: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Return the parts of a SAM-HQ with what depends on the image alone in its image encoder; others unchanged."""
    decoder = parts.get("mask_decoder", {})
    moved = {key: value for key, value in decoder.items() if key.startswith(_STARTS)}
    if not moved:
        return parts
    rest = {key: value for key, value in decoder.items() if key not in moved}
    return parts | {"image_encoder": parts.get("image_encoder", {}) | moved, "mask_decoder": rest}
