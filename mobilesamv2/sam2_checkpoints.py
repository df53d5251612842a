"""SAM 2's and 2.1's released files: their image model under this project's names and back, without what video needs."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from mobilesamv2.key_tables import KeyTable
from mobilesamv2.models.pyramid import LEVEL_WIDTHS, HieraTrunk
from mobilesamv2.models.sam import Sam
from mobilesamv2.models.sam2 import Sam2

logger = logging.getLogger(__name__)

SAM2_OF_THE_IMAGE = ("neck.conv_s0", "neck.conv_s1")
"""Modules of the image encoder that SAM 2 keeps in the mask decoder, by their names in the image encoder here."""
_TRUNK = "image_encoder.backbone.body.model"
_THEIR_TRUNK = "image_encoder.trunk."
_NAMES = KeyTable(
    (
        ("image_encoder.trunk.blocks.{}.mlp.layers.0.", f"{_TRUNK}.blocks.{{}}.mlp.fc1."),
        ("image_encoder.trunk.blocks.{}.mlp.layers.1.", f"{_TRUNK}.blocks.{{}}.mlp.fc2."),
        ("image_encoder.trunk.", f"{_TRUNK}."),
        ("image_encoder.neck.convs.{}.conv.", "image_encoder.neck.convs.{}."),
        *((f"sam_mask_decoder.{name.removeprefix('neck.')}.", f"image_encoder.{name}.") for name in SAM2_OF_THE_IMAGE),
        ("no_mem_embed", "image_encoder.neck.no_mem_embed"),
        ("sam_mask_decoder.transformer.layers.{}.mlp.layers.0.", "mask_decoder.transformer.layers.{}.mlp.lin1."),
        ("sam_mask_decoder.transformer.layers.{}.mlp.layers.1.", "mask_decoder.transformer.layers.{}.mlp.lin2."),
        ("sam_mask_decoder.", "mask_decoder."),
        ("sam_prompt_encoder.", "prompt_encoder."),
    )
)
_MEMORY = re.compile(
    r"^(memory_attention|memory_encoder|mask_downsample|obj_ptr_proj|obj_ptr_tpos_proj)\."
    r"|^(maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial)$"
)
"""Parts that only the video predictor reads."""


def rename_sam2(content: dict[str, Any]) -> dict[str, Any]:
    """Return the image model of a released SAM 2 or 2.1, or parts of it, under this project's names; others as is."""
    if not any(str(key).startswith(("sam_mask_decoder.", "sam_prompt_encoder.", _THEIR_TRUNK)) for key in content):
        return content
    kept = {str(key): value for key, value in content.items() if not is_memory(str(key))}
    left_out = sorted({str(key).split(".")[0] for key in content if is_memory(str(key))})
    if left_out:
        logger.info("left out what only video needs: %s", ", ".join(left_out))
    return {_NAMES.to_ours(key): value for key, value in kept.items()}


def to_sam2(sam: Sam) -> dict[str, Tensor]:
    """Return a model's weights under the official names, on the CPU.

    Raises:
        ValueError: if the official SAM 2 can't have them, see ``obstacle_to_sam2``.
    """
    if obstacle := obstacle_to_sam2(sam):
        raise ValueError(
            f"The model must be a SAM 2 with a Hiera to be written in the official format, got {sam.name} with "
            f"{sam.encoder_name}: {obstacle}. save_weights writes any model as safetensors."
        )
    return {_NAMES.to_theirs(key): value.detach().cpu().clone() for key, value in sam.state_dict().items()}


def obstacle_to_sam2(sam: Sam) -> str | None:
    """Return why the official SAM 2 can't have a model's weights, as half a sentence; None if it can."""
    if not isinstance(sam, Sam2):
        return "its mask decoder is another one"
    if len(sam.level_channels) < len(LEVEL_WIDTHS):
        return "it leaves out finer levels of the image, which the official mask decoder reads"
    if not isinstance(sam.image_encoder.get_submodule("backbone"), HieraTrunk):
        return "the official code has no image encoder but Hiera"
    return None


def memory_of(content: dict[str, Any], width: int, path: Path) -> dict[str, Tensor]:
    """Return what only video needs in a released SAM 2 or 2.1.

    Args:
        content: the weights in a file, under the official names.
        width: C of the model that the memory is to go with.
        path: of the file, for messages.

    Raises:
        ValueError: if there is none, or it is of another width.
    """
    memory = {str(key): value for key, value in content.items() if is_memory(str(key))}
    position = memory.get("no_mem_pos_enc")
    if position is None:
        raise ValueError(f"{path} must be a released file of SAM 2 with its memory, got one without no_mem_pos_enc.")
    if position.shape[-1] != width:
        raise ValueError(f"The memory in {path} must have the model's {width} channels, got {position.shape[-1]}.")
    return memory


def is_memory(key: str) -> bool:
    """Return whether a weight of the official SAM 2 or 2.1 is one that only video needs."""
    return _MEMORY.match(key) is not None
