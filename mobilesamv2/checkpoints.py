"""Weight files: read safely, rename keys, load strictly, and write back.

Read: SAM's ``sam_vit_*.pth``, SAM 2's and 2.1's ``sam2*_hiera_*.pt``, MobileSAM's ``mobile_sam.pt``, MobileSAMv2's
``l2.pt`` and ``Prompt_guided_Mask_Decoder.pt``, and this project's own safetensors. A file contains the complete model
or some of its three parts. Written: ``mobile_sam.pt`` as the official package loads it, and safetensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mobilesamv2.files import atomic_write, torch_save_atomic
from mobilesamv2.model_zoo import require_weights
from mobilesamv2.models.low_rank import merge_low_rank
from mobilesamv2.models.sam import Sam
from mobilesamv2.sam2_checkpoints import rename_sam2
from mobilesamv2.structures import SAM_THRESHOLDS, Thresholds

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
"""The three parts of a SAM; a file contains some or all of them."""

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
    *((rf"^backbone\.stages\.{i}\.op_list\.", f"backbone.body.stages_{i - 1}.blocks.") for i in range(1, 5)),
)

# A key that identifies the published format of an image encoder, and how its keys are renamed.
_ENCODER_FORMATS: tuple[tuple[str, tuple[Rule, ...]], ...] = (
    (r"^blocks\.\d+\.mlp\.lin1\.", _SAM_VIT),
    (r"^layers\.\d+\.blocks\.", _TINY_VIT),
    (r"^backbone\.stages\.\d+\.op_list\.", _EFFICIENTVIT),
)
# TinyViT's classifier, which MobileSAM's files contain and nothing reads, and an index that is computed.
_UNUSED = re.compile(r"^(norm_head\.|head\.(weight|bias)$)|attention_bias_idxs$")


def load_weights(sam: Sam, path: str | Path) -> tuple[str, ...]:
    """Load a weight file into the parts of a model that the file contains, each strictly.

    Args:
        sam: the model; it keeps its device, dtype and mode.
        path: a file in any of the formats listed at the top of this module.

    Returns:
        The parts that were loaded, out of ``image_encoder``, ``prompt_encoder`` and ``mask_decoder``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file can't be read safely, contains no part of a SAM or values that are not finite, or if its
            keys or shapes differ from the model's.
    """
    path = Path(path)
    parts = _split(read_state_dict(path), path)
    modules = {part: getattr(sam, part) for part in parts}
    mismatches: list[str] = []
    non_finite: list[str] = []
    for part, state in parts.items():
        mismatches += _mismatches(part, modules[part].state_dict(), state)
        non_finite += [f"{part}.{key}" for key, value in state.items() if not torch.isfinite(value).all()]
    if mismatches:
        raise ValueError(f"{path} does not fit {sam.name or 'this model'}: {'; '.join(mismatches)}.")
    if non_finite:
        keys = _first_few(non_finite)
        raise ValueError(f"{path} contains NaN or infinity in {keys}: the run that wrote it had diverged.")
    modes = {module: module.training for module in sam.modules()}
    for part, state in parts.items():
        modules[part].load_state_dict(state)
    # timm's TinyViT caches its attention biases in eval mode; switching to train mode drops the cache.
    sam.train()
    for module, training in modes.items():
        module.training = training
    return tuple(part for part in PARTS if part in parts)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return ``name``, ``encoder`` and ``image_size`` of the model in a safetensors file written by ``save_weights``.

    Files of earlier versions have no image size, which is then None: the registry's.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file has no such metadata.
    """
    path = Path(path)
    require_weights(path)
    try:
        content = _model_record(path)
        return {
            "name": str(content["name"]),
            "encoder": str(content["encoder"]),
            "image_size": int(content["image_size"]) if "image_size" in content else None,
        }
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must be a safetensors file written by mobilesamv2, got one without its metadata. "
            "For any other file, pass the model's name: build_sam(name, checkpoint=path)."
        ) from error


def read_thresholds(path: str | Path) -> Thresholds | None:
    """Return the thresholds in a safetensors file written by ``save_weights``; None if a file has none.

    Raises:
        ValueError: if they are not numbers from 0 to 1.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return None
    try:
        content = _model_record(path)
        values = {name: content[name] for name in asdict(SAM_THRESHOLDS)}
    except (KeyError, TypeError, json.JSONDecodeError):  # another program's file, or one of an earlier version
        return None
    try:
        return Thresholds(**values)
    except ValueError as error:
        raise ValueError(f"The metadata of {path} are broken: {error}") from error


def _model_record(path: Path) -> Any:
    """Return what ``save_weights`` writes into the metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return json.loads(metadata["mobilesamv2"])


def weights_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of the names and values of a module's weights, independent of the file they came from."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_weights(sam: Sam, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a model as safetensors, with its registry names and its thresholds as JSON in the metadata.

    Low-rank updates are merged into the weights that they are of.

    Args:
        sam: the model.
        path: of the file.
        dtype: of the floats on disk, ``torch.float16`` for half the bytes; a model loads them into its own dtype. None
            keeps the model's.

    Raises:
        ValueError: if the model has no registry name, without which it can't be rebuilt, or is a copy for inference.
        OSError: if the file can't be written.
    """
    if sam.name is None or sam.encoder_name is None:
        raise ValueError("The model must have a registry name to be saved, got None; build it with build_sam(name).")
    if sam.is_for_inference:
        raise ValueError("The model must not be a copy for inference; save the model that it was copied from.")
    metadata = {"name": sam.name, "encoder": sam.encoder_name, "image_size": sam.image_size} | asdict(sam.thresholds)
    state = {key: value.detach().cpu().contiguous() for key, value in merge_low_rank(sam).state_dict().items()}
    if dtype is not None:
        state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    with atomic_write(path) as partial:
        save_file(state, partial, metadata={"mobilesamv2": json.dumps(metadata)})


def save_mobile_sam(sam: Sam, path: str | Path) -> None:
    """Write a TinyViT-5M model as a ``mobile_sam.pt`` that the official package loads.

    The official encoder has a classifier that it never uses; its weights are written as zeros.

    Raises:
        ValueError: if the model is not a ``mobile_sam`` with its own encoder.
        OSError: if the file can't be written.
    """
    if (sam.name, sam.encoder_name) != ("mobile_sam", "tiny_vit_5m") or sam.is_for_inference:
        raise ValueError(
            f"The model must be mobile_sam with tiny_vit_5m, got {sam.name} with {sam.encoder_name}; "
            "save_weights writes any model as safetensors."
        )
    state: StateDict = {}
    for key, value in merge_low_rank(sam).state_dict().items():
        part, name = key.split(".", 1)
        name = _rename(name, _TINY_VIT_TO_OFFICIAL) if part == "image_encoder" else name
        state[f"{part}.{name}"] = value.detach().cpu().clone()
    width = state["image_encoder.neck.0.weight"].shape[1]
    state.update({f"image_encoder.norm_head.{name}": torch.zeros(width) for name in ("weight", "bias")})
    state.update({"image_encoder.head.weight": torch.zeros(1000, width), "image_encoder.head.bias": torch.zeros(1000)})
    torch_save_atomic(state, path)


def read_state_dict(path: Path) -> dict[str, Any]:
    """Return the dictionary in a weight file, without executing code in it.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it can't be read as weights alone.
    """
    require_weights(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch looks bytes up in tables unchecked: a damaged file raises any of a dozen types
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"{path} can't be read as weights alone: it is truncated, of another format, or contains pickled code "
            f"({reason[0] if reason else type(error).__name__})."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain a dictionary of weights, got a {type(content).__name__}.")
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), dict):
            return content[wrapper]
    return content


def _split(content: dict[str, Any], path: Path) -> dict[str, StateDict]:
    """Return the parts of a SAM in a file, under this project's names."""
    if all(isinstance(content.get(key), dict) for key in ("PromtEncoder", "MaskDecoder")):  # sic
        halves = {"prompt_encoder": content["PromtEncoder"], "mask_decoder": content["MaskDecoder"]}
        content = {f"{part}.{key}": value for part, half in halves.items() for key, value in half.items()}
    content = rename_sam2(content)
    parts: dict[str, StateDict] = {}
    unexpected_keys: list[str] = []
    for key, value in content.items():
        found = re.match(rf"(?:.*\.)?({'|'.join(PARTS)})\.(.+)$", str(key)) if isinstance(value, Tensor) else None
        if found:
            parts.setdefault(found[1], {})[found[2]] = value
        else:
            unexpected_keys.append(str(key))
    if not parts and any(re.search(pattern, key) for pattern, _ in _ENCODER_FORMATS for key in unexpected_keys):
        # an image encoder alone, without a prefix
        parts["image_encoder"] = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        unexpected_keys = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if not parts:
        raise ValueError(f"{path} contains no part of a SAM; its keys are {_first_few(unexpected_keys)}.")
    if unexpected_keys:
        raise ValueError(f"{path} has unexpected key(s), of no part of a SAM: {_first_few(unexpected_keys)}.")
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


def _mismatches(part: str, ours: StateDict, theirs: StateDict) -> list[str]:
    """Describe what keeps a part's weights from loading, in one phrase per kind."""
    missing = sorted(ours.keys() - theirs.keys())
    unexpected = sorted(theirs.keys() - ours.keys())
    reshaped = [
        f"{key} is {tuple(theirs[key].shape)} in the file and {tuple(ours[key].shape)} in the model"
        for key in sorted(ours.keys() & theirs.keys())
        if ours[key].shape != theirs[key].shape
    ]
    kinds = (("missing key(s)", missing), ("unexpected key(s)", unexpected), ("size mismatch", reshaped))
    return [f"{kind} in {part}: {_first_few(keys)}" for kind, keys in kinds if keys]


def _first_few(keys: list[str]) -> str:
    """List three keys and the number of further ones."""
    shown = ", ".join(keys[:3])
    return f"{shown} and {len(keys) - 3} more" if len(keys) > 3 else shown
