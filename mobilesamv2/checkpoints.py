"""Weight files: read safely, rename keys, load strictly, and write back.

Read: the files of ``model_zoo``, each in its publisher's format, what training programs make of them, and this
project's own safetensors. A file contains the complete model or some of its three parts. Written: ``mobile_sam.pt`` and
SAM 2 as the official packages load them, a folder of transformers, and safetensors.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mobilesamv2.checkpoint_layouts import PARTS, first_few, split_parts
from mobilesamv2.data.json_files import shown, whole_number
from mobilesamv2.encoder_checkpoints import to_mobile_sam
from mobilesamv2.files import atomic_write, check_archive, torch_save_atomic, write_text_atomic
from mobilesamv2.model_zoo import require_weights
from mobilesamv2.models.low_rank import merge_low_rank
from mobilesamv2.models.sam import MAX_IMAGE_SIZE, Sam
from mobilesamv2.sam2_checkpoints import memory_of, to_sam2
from mobilesamv2.structures import SAM_THRESHOLDS, Thresholds
from mobilesamv2.transformers_checkpoints import (
    CONFIG_FILE,
    PROCESSOR_FILE,
    processor_config,
    to_transformers,
    transformers_config,
)

logger = logging.getLogger(__name__)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of the weights in a file; torch would load any other type as well, with other values."""

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

METADATA_KEY = "mobilesamv2"
"""Under which a safetensors file of this project has what it is, as JSON."""

StateDict = dict[str, Tensor]


def load_weights(sam: Sam, path: str | Path, prefix: str | None = None) -> tuple[str, ...]:
    """Load a weight file into the parts of a model that the file contains, each strictly.

    Args:
        sam: the model; it keeps its device, dtype and mode.
        path: a file in any of the formats that the top of this module states.
        prefix: of the model's keys where a file has several models, see ``split_parts``.

    Returns:
        The parts that were loaded, out of ``image_encoder``, ``prompt_encoder`` and ``mask_decoder``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file can't be read safely, has a changed byte where it has checksums, contains no part of a
            SAM, tensors of another kind than weights or values that are not finite, or if its keys or shapes differ
            from the model's.
    """
    path = Path(path)
    parts = split_parts(read_state_dict(path, unwrap=False), path, prefix)
    known = dict(sam.named_modules())
    modules = {part: known[part] for part in parts if part in known}
    mismatches = [
        f"unexpected key(s) in {part}: {first_few(sorted(parts[part]))}" for part in parts if part not in known
    ]
    for part, state in parts.items():
        if part not in modules:
            continue
        ours = modules[part].state_dict()
        _check_kinds(path, ours, state, f"{part}.")
        mismatches += _mismatches(part, ours, state)
    if mismatches:
        raise ValueError(f"{path} does not fit {sam.name or 'this model'}: {'; '.join(mismatches)}.")
    for part, state in parts.items():
        _check_finite(path, modules[part].state_dict(), state, f"{part}.")
    modes = {module: module.training for module in sam.modules()}
    for part, state in parts.items():
        modules[part].load_state_dict(state)
    # timm's TinyViT caches its attention biases in eval mode; switching to train mode drops the cache.
    sam.train()
    for module, training in modes.items():
        module.training = training
    return tuple(part for part in PARTS if part in parts)


def load_module(module: nn.Module, path: Path) -> None:
    """Load a weight file strictly into a module that the file holds the whole of and nothing beside.

    A module on the meta device takes memory, on the CPU, once the shapes fit.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: as ``load_weights``.
    """
    ours, theirs = module.state_dict(), read_state_dict(path)
    _check_kinds(path, ours, theirs)
    if mismatches := _mismatches(type(module).__name__, ours, theirs):
        raise ValueError(f"{path} does not fit its own settings: {'; '.join(mismatches)}.")
    _check_finite(path, ours, theirs)
    if any(value.is_meta for value in ours.values()):
        module.to_empty(device="cpu")
    module.load_state_dict(theirs)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return ``name``, ``encoder`` and ``image_size`` of the model in a safetensors file written by ``save_weights``.

    Files of earlier versions have no image size, which is then None: the registry's.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file has no such metadata, or its image size is none that a model can have.
    """
    path = Path(path)
    require_weights(path)
    try:
        content = _model_record(path)
        record = {"name": str(content["name"]), "encoder": str(content["encoder"])}
        side = content.get("image_size")
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} must be a safetensors file written by mobilesamv2, got one without its metadata. "
            "For any other file, pass the model's name: build_sam(name, checkpoint=path)."
        ) from error
    return record | {"image_size": _checked_image_size(path, side)}


def choose_image_size(files: Sequence[str | Path], given: int | None, default: int) -> int:
    """Return S, pixels, of the model that weight files are loaded into, with a warning if it is not what they state.

    Args:
        files: of any format; safetensors written by ``save_weights`` state a size.
        given: the size to take whatever they state; None takes theirs.
        default: where none is given or stated.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if the files state several sizes and none is given, or one that no model can have.
    """
    stated = {str(file): size for file in files if (size := _stated_image_size(Path(file))) is not None}
    said = ", ".join(f"{file} for images of {size} pixels" for file, size in stated.items())
    if given is None and len({*stated.values()}) > 1:
        raise ValueError(f"The weights must be for one input, got {said}. image_size=N chooses one.")
    size = next(iter(stated.values()), default) if given is None else given
    if any(each != size for each in stated.values()):
        logger.warning("The weights are %s, and are used with image_size=%s.", said, size)
    return size


def _stated_image_size(path: Path) -> int | None:
    """Return the image size in a safetensors file written by ``save_weights``; None if a file states none."""
    if path.suffix != ".safetensors":
        return None
    require_weights(path)
    try:
        side = _model_record(path).get("image_size")
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None  # another program's file, or a damaged one, which ``load_weights`` refuses
    return _checked_image_size(path, side)


def _checked_image_size(path: Path, side: Any) -> int | None:
    """Return the image size that the metadata of a file state; None for None."""
    image_size = whole_number(side)
    if side is not None and (image_size is None or image_size % 32 or not 32 <= image_size <= MAX_IMAGE_SIZE):
        raise ValueError(
            f"The metadata of {path} are broken: image_size must be a multiple of 32 from 32 to {MAX_IMAGE_SIZE}, got "
            f"{shown(side)}."
        )
    return image_size


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
    except (KeyError, TypeError, ValueError, RecursionError):  # another program's file, or one of an earlier version
        return None
    try:
        return Thresholds(**values)
    except ValueError as error:
        raise ValueError(f"The metadata of {path} are broken: {error}") from error


def _model_record(path: Path) -> Any:
    """Return what ``save_weights`` writes into the metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return json.loads(metadata[METADATA_KEY])


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
        save_file(state, partial, metadata={METADATA_KEY: json.dumps(metadata)})


def is_mobile_sam(sam: Sam) -> bool:
    """Return whether a model is the one of the official package: a TinyViT-5M at 1024 pixels."""
    return (sam.name, sam.encoder_name, sam.image_size) == ("mobile_sam", "tiny_vit_5m", 1024)


def save_mobile_sam(sam: Sam, path: str | Path) -> None:
    """Write a TinyViT-5M model as a ``mobile_sam.pt`` that the official package loads.

    The official encoder has a classifier that it never uses; its weights are written as zeros.

    Raises:
        ValueError: if the model is not a ``mobile_sam`` with its own encoder and input, the only one that package has.
        OSError: if the file can't be written.
    """
    if not is_mobile_sam(sam) or sam.is_for_inference:
        raise ValueError(
            "The model must be mobile_sam with tiny_vit_5m and 1024 pixels, got "
            f"{sam.name} with {sam.encoder_name} and {sam.image_size}; save_weights writes any model as safetensors."
        )
    state: StateDict = {}
    for key, value in merge_low_rank(sam).state_dict().items():
        part, name = key.split(".", 1)
        name = to_mobile_sam(name) if part == "image_encoder" else name
        state[f"{part}.{name}"] = value.detach().cpu().clone()
    width = state["image_encoder.neck.0.weight"].shape[1]
    state.update({f"image_encoder.norm_head.{name}": torch.zeros(width) for name in ("weight", "bias")})
    state.update({"image_encoder.head.weight": torch.zeros(1000, width), "image_encoder.head.bias": torch.zeros(1000)})
    torch_save_atomic(state, path)


def save_sam2(sam: Sam, path: str | Path, memory_from: str | Path | None = None) -> None:
    """Write a SAM 2 or 2.1 with a Hiera in the format of the official code, ``{"model": weights}``.

    Models here have no memory, which only video needs. Without one, the file is for images alone, and ``build_sam2``
    refuses it, since it loads strictly: call it with ``ckpt_path=None``, and load these weights beside its own memory
    with ``model.load_state_dict(model.state_dict() | weights)``.

    The file states no sizes. The official configuration must have the model's Hiera, and for images of another side
    than 1024 its ``model.image_size``; ``SAM2ImagePredictor`` then needs the sides of its maps in ``_bb_feat_sizes``.

    Args:
        sam: the model.
        path: of the file.
        memory_from: an official file whose memory is written beside the model, so that ``build_sam2`` and the video
            predictor load the file with the configuration of that file's release. The memory was trained with that
            file's own image encoder: how well it goes with another one is not measured.

    Raises:
        ValueError: if the official SAM 2 can't have the weights (another image encoder, levels left out), the model is
            a copy for inference, or the other file has no memory of the model's width.
        FileNotFoundError: if the other file does not exist.
        OSError: if the file can't be written.
    """
    if sam.is_for_inference:
        raise ValueError("The model must not be a copy for inference; save the model that it was copied from.")
    state = to_sam2(merge_low_rank(sam))
    if memory_from is not None:
        state |= memory_of(read_state_dict(Path(memory_from)), sam.prompt_encoder.embed_dim, Path(memory_from))
    torch_save_atomic({"model": state}, path)


def save_transformers(sam: Sam, folder: str | Path) -> Path:
    """Write a SAM with a SAM ViT as a folder for transformers' ``SamModel.from_pretrained``, and return the folder.

    Raises:
        ValueError: if the model's image encoder is another one, or it is a copy for inference.
        OSError: if a file can't be written.
    """
    if sam.is_for_inference:
        raise ValueError("The model must not be a copy for inference; save the model that it was copied from.")
    sam = merge_low_rank(sam)
    folder, settings = Path(folder), {CONFIG_FILE: transformers_config(sam), PROCESSOR_FILE: processor_config(sam)}
    with atomic_write(folder / "model.safetensors") as partial:
        save_file(to_transformers(sam), partial, metadata={"format": "pt"})
    for name, content in settings.items():
        write_text_atomic(folder / name, json.dumps(content, indent=2) + "\n")
    return folder


def read_state_dict(path: Path, unwrap: bool = True) -> dict[str, Any]:
    """Return the dictionary in a weight file, or the weights in it, without executing code in it.

    Args:
        path: of the file.
        unwrap: return the weights that a training program has wrapped as ``state_dict`` or ``model``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it can't be read as weights alone.
    """
    require_weights(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch looks bytes up in tables unchecked: a damaged file raises any of a dozen types
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"{path} can't be read as weights alone: it is truncated, of another format, or contains pickled code "
            f"({reason[0] if reason else type(error).__name__})."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain a dictionary of weights, got a {type(content).__name__}.")
    for wrapper in ("state_dict", "model") if unwrap else ():
        if isinstance(content.get(wrapper), dict):
            return content[wrapper]
    return content


def _check_kinds(path: Path, ours: StateDict, theirs: StateDict, prefix: str = "") -> None:
    """Check that a file's tensors hold numbers of the model's kind: ``copy_`` converts any type without a word."""
    for key, value in theirs.items():
        if value.is_nested or value.is_quantized or value.layout != torch.strided:
            kind = "nested" if value.is_nested else "quantized" if value.is_quantized else "sparse"
        elif value.is_meta:
            kind = "a meta tensor, which holds no values"
        elif key in ours and value.dtype not in (FLOATS if ours[key].is_floating_point() else FLOATS + INTEGERS):
            kind = str(value.dtype)
        else:
            continue
        raise ValueError(
            f"{path} must hold plain tensors, of 16-, 32- or 64-bit floats where the model has floats, but "
            f"{prefix}{key} is {kind}."
        )


def _check_finite(path: Path, ours: StateDict, theirs: StateDict, prefix: str = "") -> None:
    """Check that no weight is NaN or infinite in the model's own type."""
    non_finite = [
        f"{prefix}{key}" for key, value in theirs.items() if not torch.isfinite(value.to(ours[key].dtype)).all()
    ]
    if non_finite:
        keys = first_few(non_finite)
        raise ValueError(f"{path} contains NaN or infinity in {keys}: the run that wrote it had diverged.")


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
    return [f"{kind} in {part}: {first_few(keys)}" for kind, keys in kinds if keys]
