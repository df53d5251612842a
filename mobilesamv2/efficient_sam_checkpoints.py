"""EfficientSAM's released files: the names of its mask decoder's weights, as this project's."""

from __future__ import annotations

import re

from torch import Tensor

_UPSCALING = "mask_decoder.final_output_upscaling_layers."
_RULES = (
    (rf"^{re.escape(_UPSCALING)}0\.([01])\.", r"mask_decoder.output_upscaling.\1."),
    (rf"^{re.escape(_UPSCALING)}1\.0\.", "mask_decoder.output_upscaling.3."),
    (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp)\.layers\.0\.0\.", r"\1.lin1."),
    (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp)\.fc\.", r"\1.lin2."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.[01])\.0\.", r"\1."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.fc\.", r"\1.layers.2."),
)


def rename_efficient_sam(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an EfficientSAM under this project's names; those of any other model unchanged."""
    if not any(key.startswith(_UPSCALING) for key in state):
        return state
    return {_rename(key): value for key, value in state.items()}


def _rename(key: str) -> str:
    for pattern, replacement in _RULES:
        key = re.sub(pattern, replacement, key)
    return key
