"""SAM 2's and 2.1's released files: their image model under this project's names, without what only video needs."""

from __future__ import annotations

import logging
import re
from typing import Any

logger = logging.getLogger(__name__)

_RULES = (
    (r"^image_encoder\.trunk\.(.*)\.mlp\.layers\.0\.", r"image_encoder.trunk.\1.mlp.fc1."),
    (r"^image_encoder\.trunk\.(.*)\.mlp\.layers\.1\.", r"image_encoder.trunk.\1.mlp.fc2."),
    (r"^image_encoder\.trunk\.", "image_encoder.backbone.body.model."),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"image_encoder.neck.convs.\1."),
    (r"^sam_mask_decoder\.conv_s(\d)\.", r"image_encoder.neck.conv_s\1."),
    (r"^no_mem_embed$", "image_encoder.neck.no_mem_embed"),
    (r"^sam_mask_decoder\.(transformer\..*\.mlp)\.layers\.0\.", r"mask_decoder.\1.lin1."),
    (r"^sam_mask_decoder\.(transformer\..*\.mlp)\.layers\.1\.", r"mask_decoder.\1.lin2."),
    (r"^sam_(mask_decoder|prompt_encoder)\.", r"\1."),
)
_VIDEO = re.compile(
    r"^(memory_attention|memory_encoder|mask_downsample|obj_ptr_proj|obj_ptr_tpos_proj)\."
    r"|^(maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial)$"
)
"""Parts that only the video predictor reads."""


def rename_sam2(content: dict[str, Any]) -> dict[str, Any]:
    """Return the image model of a released SAM 2 or 2.1 under this project's names; other files unchanged."""
    if "no_mem_embed" not in content or not any(str(key).startswith("sam_mask_decoder.") for key in content):
        return content
    kept = {str(key): value for key, value in content.items() if not _VIDEO.match(str(key))}
    left_out = sorted({str(key).split(".")[0] for key in content if _VIDEO.match(str(key))})
    if left_out:
        logger.info("left out what only video needs: %s", ", ".join(left_out))
    return {_rename(key): value for key, value in kept.items()}


def _rename(key: str) -> str:
    for pattern, replacement in _RULES:
        key = re.sub(pattern, replacement, key, count=1)
    return key
