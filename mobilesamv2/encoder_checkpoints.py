"""Image encoders in their publishers' formats: the names of their weights, as this project's."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

Rule = tuple[str, str]

_SAM_VIT: tuple[Rule, ...] = (
    (r"\.mlp\.lin(\d)\.", r".mlp.fc\1."),
    (r"^(?!neck\.)", "backbone."),
)
_PLAIN_VIT: tuple[Rule, ...] = ((r"^(?!neck\.)", "backbone."),)
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

_REPVIT = re.compile(r"^features\.(\d+)\.")
_REPVIT_WIDENS = re.compile(r"^features\.(\d+)\.token_mixer\.2\.c\.weight$")
_REPVIT_BLOCK: tuple[Rule, ...] = (
    (r"\.token_mixer\.0\.", ".token_mixer."),
    (r"\.token_mixer\.1\.", ".se."),
    (r"\.channel_mixer\.m\.0\.", ".channel_mixer.conv1."),
    (r"\.channel_mixer\.m\.2\.", ".channel_mixer.conv2."),
)
_REPVIT_DOWNSAMPLE: tuple[Rule, ...] = (
    (r"\.token_mixer\.0\.", ".spatial_downsample."),
    (r"\.token_mixer\.2\.", ".channel_downsample."),
    (r"\.channel_mixer\.m\.0\.", ".ffn.conv1."),
    (r"\.channel_mixer\.m\.2\.", ".ffn.conv2."),
)
_REPVIT_OTHER: tuple[Rule, ...] = (
    (r"^features\.0\.0\.", "backbone.body.stem.conv1."),
    (r"^features\.0\.2\.", "backbone.body.stem.conv2."),
    (r"^fuse_stage2\.", "backbone.fuse_stage2."),
    (r"^fuse_stage3\.op_list\.0\.", "backbone.fuse_stage3."),
)

# A key that identifies the published format of an image encoder, and how its keys are renamed.
_FORMATS: tuple[tuple[str, tuple[Rule, ...]], ...] = (
    (r"^blocks\.\d+\.mlp\.lin1\.", _SAM_VIT),
    (r"^blocks\.\d+\.mlp\.fc1\.", _PLAIN_VIT),
    (r"^layers\.\d+\.blocks\.", _TINY_VIT),
    (r"^backbone\.stages\.\d+\.op_list\.", _EFFICIENTVIT),
)
# TinyViT's classifier, which MobileSAM's files contain and nothing reads, and an index that is computed.
_UNUSED = re.compile(r"^(norm_head\.|head\.(weight|bias)$)|attention_bias_idxs$")


def is_encoder(keys: Iterable[str]) -> bool:
    """Return whether keys without a prefix are those of an image encoder in a published format."""
    return any(_REPVIT.search(key) or re.search(pattern, key) for key in keys for pattern, _ in _FORMATS)


def rename_encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an image encoder under this project's names, without what nothing reads; its own names unchanged."""
    if any(_REPVIT.search(key) for key in state):
        return _rename_repvit(state)
    for pattern, rules in _FORMATS:
        if any(re.search(pattern, key) for key in state):
            return {_rename(key, rules): value for key, value in state.items() if not _UNUSED.search(key)}
    return state


def _rename_repvit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename RepViT-SAM's and EdgeSAM's blocks, one list, to timm's stages.

    A block that widens the map is the core of timm's downsampling, the one before it the downsampling's first block.
    """
    widening = [int(found[1]) for key in state if (found := _REPVIT_WIDENS.match(key))]
    places: dict[int, str] = {}
    stage, start = 0, 1
    for number in range(1, 1 + max(int(found[1]) for key in state if (found := _REPVIT.match(key)))):
        if number + 1 in widening:
            stage, start = stage + 1, number + 2
            places[number] = f"stages.{stage}.downsample.pre_block"
        elif number in widening:
            places[number] = f"stages.{stage}.downsample"
        else:
            places[number] = f"stages.{stage}.blocks.{number - start}"
    renamed = {}
    for key, value in state.items():
        found = _REPVIT.match(key)
        rules = _REPVIT_OTHER
        if found and found[1] != "0":
            place = places[int(found[1])]
            rules = _REPVIT_DOWNSAMPLE if int(found[1]) in widening else _REPVIT_BLOCK
            key = f"backbone.body.{place}.{key[found.end() :]}"
        renamed[_rename(key, rules)] = value
    return renamed


def to_mobile_sam(key: str) -> str:
    """Return MobileSAM's name of a weight of the image encoder."""
    return _rename(key, _TINY_VIT_TO_OFFICIAL)


def _rename(key: str, rules: Iterable[Rule]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key, count=1)
    return key
