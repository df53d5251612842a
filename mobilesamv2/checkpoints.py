"""Weight files: read safely, rename keys, load strictly, and write back.

Read: SAM's ``sam_vit_*.pth``, MobileSAM's ``mobile_sam.pt``, MobileSAMv2's ``l2.pt`` and
``Prompt_guided_Mask_Decoder.pt``, and this project's own safetensors. A file may hold the whole model or some of its
three parts. Written: ``mobile_sam.pt`` as the official package loads it, and safetensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mobilesamv2.models.sam import Sam
from mobilesamv2.released import BROKEN_PICKLE, require_released
from mobilesamv2.whole_files import save_whole, whole_file

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
"""The three parts of a SAM; a file holds all of them or some."""

StateDict = dict[str, Tensor]
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
_TINY_VIT_BACK: tuple[Rule, ...] = (
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
    *((rf"^backbone\.stages\.{i}\.op_list\.", f"backbone.body.stages_{i - 1}.blocks.") for i in range(1, 5)),
)

# A key that tells the released format of an image encoder, and how its keys are renamed.
_ENCODER_FORMATS: tuple[tuple[str, tuple[Rule, ...]], ...] = (
    (r"^blocks\.\d+\.mlp\.lin1\.", _SAM_VIT),
    (r"^layers\.\d+\.blocks\.", _TINY_VIT),
    (r"^backbone\.stages\.\d+\.op_list\.", _EFFICIENTVIT),
)
# TinyViT's classifier, which MobileSAM's files carry and nothing reads, and an index that is computed.
_UNUSED = re.compile(r"^(norm_head\.|head\.(weight|bias)$)|attention_bias_idxs$")


def load_weights(sam: Sam, path: str | Path) -> tuple[str, ...]:
    """Loads a weight file into the parts of a model that the file holds, each strictly.

    Args:
        sam: the model; it keeps its device, dtype and mode.
        path: any of the formats named above.

    Returns:
        The parts that were loaded, of ``image_encoder``, ``prompt_encoder`` and ``mask_decoder``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file can't be read safely, holds no part of a SAM or numbers that are not finite, or its keys
            or shapes disagree with the model's; the sentence names them.
    """
    path = Path(path)
    parts = _split(_read(path), path)
    modules = {part: getattr(sam, part) for part in parts}
    complaints: list[str] = []
    spoilt: list[str] = []
    for part, state in parts.items():
        complaints += _disagreements(part, modules[part].state_dict(), state)
        spoilt += [f"{part}.{key}" for key, value in state.items() if not torch.isfinite(value).all()]
    if complaints:
        raise ValueError(f"{path} does not fit {sam.name or 'this model'}: {'; '.join(complaints)}.")
    if spoilt:
        raise ValueError(f"{path} holds NaN or infinity in {_some(spoilt)}: the run that wrote it had diverged.")
    modes = {module: module.training for module in sam.modules()}
    for part, state in parts.items():
        modules[part].load_state_dict(state)
    # timm's TinyViT caches its attention biases in eval mode; going through train mode forgets the old ones.
    sam.train()
    for module, training in modes.items():
        module.training = training
    return tuple(part for part in PARTS if part in parts)


def read_metadata(path: str | Path) -> dict[str, str]:
    """What a safetensors file written by ``save_weights`` says of its model: ``name`` and ``encoder``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file.
    """
    path = Path(path)
    require_released(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        content = json.loads(metadata["mobilesamv2"])
        return {"name": str(content["name"]), "encoder": str(content["encoder"])}
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} does not say which model it is of; only safetensors written by mobilesamv2 do. "
            "For another format pass the model's name: build_sam(name, checkpoint=path)."
        ) from error


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 of the names and values of a module's weights, whatever file they came from."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_weights(sam: Sam, path: str | Path) -> None:
    """Writes a model as safetensors, with its registry names as JSON inside.

    Raises:
        ValueError: the model has no registry name, so that no one could build it again, or is a copy for inference.
        OSError: the file can't be written.
    """
    if sam.name is None or sam.encoder_name is None:
        raise ValueError("Only a model built by name can be saved; build it with build_sam(name).")
    if sam.is_for_inference:
        raise ValueError("A copy for inference cannot be saved; save the model that it is a copy of.")
    metadata = {"name": sam.name, "encoder": sam.encoder_name}
    state = {key: value.detach().cpu().contiguous() for key, value in sam.state_dict().items()}
    with whole_file(path) as partial:
        save_file(state, partial, metadata={"mobilesamv2": json.dumps(metadata)})


def save_mobile_sam(sam: Sam, path: str | Path) -> None:
    """Writes a TinyViT-5M model as a ``mobile_sam.pt`` that the official package loads.

    The official encoder carries a classifier that it never uses; zeros stand in for its weights.

    Raises:
        ValueError: the model is not of ``mobile_sam``'s shape.
        OSError: the file can't be written.
    """
    if (sam.name, sam.encoder_name) != ("mobile_sam", "tiny_vit_5m") or sam.is_for_inference:
        raise ValueError(
            f"mobile_sam.pt is the format of mobile_sam alone, and this is {sam.name} with {sam.encoder_name}; "
            "save_weights writes any model as safetensors."
        )
    state: StateDict = {}
    for key, value in sam.state_dict().items():
        part, name = key.split(".", 1)
        name = _rename(name, _TINY_VIT_BACK) if part == "image_encoder" else name
        state[f"{part}.{name}"] = value.detach().cpu().clone()
    width = state["image_encoder.neck.0.weight"].shape[1]
    state.update({f"image_encoder.norm_head.{name}": torch.zeros(width) for name in ("weight", "bias")})
    state.update({"image_encoder.head.weight": torch.zeros(1000, width), "image_encoder.head.bias": torch.zeros(1000)})
    save_whole(state, path)


def _read(path: Path) -> dict[str, Any]:
    """The dictionary in a weight file; nothing in it is executed."""
    require_released(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, *BROKEN_PICKLE) as error:
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"{path} can't be read as weights alone: it is truncated, of another format, or holds pickled code "
            f"({reason[0] if reason else type(error).__name__})."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} where a dictionary of weights was expected.")
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), dict):
            return content[wrapper]
    return content


def _split(content: dict[str, Any], path: Path) -> dict[str, StateDict]:
    """The parts of a SAM in a file, under this project's names."""
    if all(isinstance(content.get(key), dict) for key in ("PromtEncoder", "MaskDecoder")):  # sic
        halves = {"prompt_encoder": content["PromtEncoder"], "mask_decoder": content["MaskDecoder"]}
        content = {f"{part}.{key}": value for part, half in halves.items() for key, value in half.items()}
    parts: dict[str, StateDict] = {}
    strangers: list[str] = []
    for key, value in content.items():
        found = re.match(rf"(?:.*\.)?({'|'.join(PARTS)})\.(.+)$", str(key)) if isinstance(value, Tensor) else None
        if found:
            parts.setdefault(found[1], {})[found[2]] = value
        else:
            strangers.append(str(key))
    if not parts and any(re.search(pattern, key) for pattern, _ in _ENCODER_FORMATS for key in strangers):
        # an image encoder alone, without a prefix
        parts["image_encoder"] = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        strangers = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if not parts:
        raise ValueError(f"{path} holds no part of a SAM: its keys begin with {_some(strangers)}.")
    if strangers:
        raise ValueError(f"{path} holds keys that belong to no part of a SAM: {_some(strangers)}.")
    if "image_encoder" in parts:
        parts["image_encoder"] = _rename_encoder(parts["image_encoder"])
    return parts


def _rename_encoder(state: StateDict) -> StateDict:
    for pattern, rules in _ENCODER_FORMATS:
        if any(re.search(pattern, key) for key in state):
            return {_rename(key, rules): value for key, value in state.items() if not _UNUSED.search(key)}
    return state


def _rename(key: str, rules: Iterable[Rule]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key, count=1)
    return key


def _disagreements(part: str, ours: StateDict, theirs: StateDict) -> list[str]:
    """What keeps a part's weights from loading, a phrase for each kind."""
    missing = sorted(ours.keys() - theirs.keys())
    unknown = sorted(theirs.keys() - ours.keys())
    reshaped = [
        f"{key} {tuple(theirs[key].shape)} for {tuple(ours[key].shape)}"
        for key in sorted(ours.keys() & theirs.keys())
        if ours[key].shape != theirs[key].shape
    ]
    phrases = (("lacks", missing), ("has no place for", unknown), ("differs in shape at", reshaped))
    return [f"{part} {verb} {_some(keys)}" for verb, keys in phrases if keys]


def _some(keys: list[str]) -> str:
    """A few keys and how many more there are."""
    shown = ", ".join(keys[:3])
    return f"{shown} and {len(keys) - 3} more" if len(keys) > 3 else shown
