"""Image encoders in their publishers' formats: SAM's ViTs, TinyViT and EfficientViT under this project's names."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

Rule = tuple[str, str]

_SAM_VIT: tuple[Rule, ...] = (
    (r"\.mlp\.lin(\d)\.", r".mlp.fc\1."),
    (r"^(?!neck\.)", "backbone."),
)
_TINY_VIT: tuple[Rule, ...] = (
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"^layers\.0\.downsample\.", "stages.1.downsample."),
    (r"^layers\.1\.downsample\.", "stages.2.downsample."),
    (r"^layers\.2\.downsample\.", "stages.3.downsample."),
    (r"^layers\.", "stages."),
    (r"\.c\.weight$", ".conv.weight"),
    (r"^(?!neck\.)", "backbone."),
)
_TINY_VIT_TO_OFFICIAL: tuple[Rule, ...] = (
    (r"^backbone\.", ""),
    (r"^(?!neck\.)(.*)\.conv\.weight$", r"\1.c.weight"),
    (r"^patch_embed\.conv1\.", "patch_embed.seq.0."),
    (r"^patch_embed\.conv2\.", "patch_embed.seq.2."),
    (r"^stages\.1\.downsample\.", "layers.0.downsample."),
    (r"^stages\.2\.downsample\.", "layers.1.downsample."),
    (r"^stages\.3\.downsample\.", "layers.2.downsample."),
    (r"^stages\.", "layers."),
)
_EFFICIENTVIT: tuple[Rule, ...] = (
    (r"^norm\.", "neck.norm."),
    (r"^neck\.input_ops\.(\d)\.op_list\.0\.", r"neck.inputs.\1."),
    (r"^neck\.middle\.op_list\.", "neck.middle."),
    (r"^neck\.output_ops\.0\.op_list\.0\.conv\.", "neck.output."),
    (r"^backbone\.stages\.0\.op_list\.0\.", "backbone.body.stem_in_conv."),
    *((rf"^backbone\.stages\.0\.op_list\.{i}\.", f"backbone.body.stem_res{i - 1}.") for i in range(1, 5)),
    *((rf"^backbone\.stages\.{i}\.op_list\.", f"backbone.body.stages_{i - 1}.blocks.") for i in range(1, 6)),
)

# A key that identifies the published format of an image encoder, and how its keys are renamed.
_FORMATS: tuple[tuple[str, tuple[Rule, ...]], ...] = (
    (r"^blocks\.\d+\.mlp\.lin1\.", _SAM_VIT),
    (r"^layers\.\d+\.blocks\.", _TINY_VIT),
    (r"^backbone\.stages\.\d+\.op_list\.", _EFFICIENTVIT),
)
# TinyViT's classifier, which MobileSAM's files contain and nothing reads, and an index that is computed.
_UNUSED = re.compile(r"^(norm_head\.|head\.(weight|bias)$)|attention_bias_idxs$")


def is_encoder(keys: Iterable[str]) -> bool:
    """Return whether keys without a prefix are those of an image encoder in a published format."""
    return any(re.search(pattern, key) for key in keys for pattern, _ in _FORMATS)


def rename_encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an image encoder under this project's names, without what nothing reads; its own names unchanged."""
    for pattern, rules in _FORMATS:
        if any(re.search(pattern, key) for key in state):
            return {_rename(key, rules): value for key, value in state.items() if not _UNUSED.search(key)}
    return state


def to_mobile_sam(key: str) -> str:
    """Return MobileSAM's name of a weight of the image encoder."""
    return _rename(key, _TINY_VIT_TO_OFFICIAL)


def _rename(key: str, rules: Iterable[Rule]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key, count=1)
    return key
