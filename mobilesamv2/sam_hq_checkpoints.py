"""SAM-HQ's released files, which keep what depends on the image alone in the mask decoder; here the encoder has it."""

from __future__ import annotations

from torch import Tensor

_OF_THE_IMAGE = ("compress_vit_feat.", "embedding_encoder.")


def move_sam_hq(parts: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Return the parts of a SAM-HQ with what depends on the image alone in its image encoder; others unchanged."""
    decoder = parts.get("mask_decoder", {})
    moved = {key: value for key, value in decoder.items() if key.startswith(_OF_THE_IMAGE)}
    if not moved:
        return parts
    rest = {key: value for key, value in decoder.items() if key not in moved}
    return parts | {"image_encoder": parts.get("image_encoder", {}) | moved, "mask_decoder": rest}
