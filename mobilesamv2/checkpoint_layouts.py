"""Layouts of weight files: where in a file the weights of one SAM are, and what else lies beside them.

Training programs wrap weights in dictionaries (``model_state_dict``), prefix their names (``sam.``), leave traces of
wrappers in them (``image_encoder.module.``), and store buffers, losses, the optimizer and networks of their own beside
them. A file with two models, as a student with its teacher or a model with its average, is never mixed or guessed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mobilesamv2.efficient_sam_checkpoints import rename_efficient_sam
from mobilesamv2.encoder_checkpoints import is_encoder, rename_encoder
from mobilesamv2.sam2_checkpoints import SAM2_OF_THE_IMAGE, rename_sam2
from mobilesamv2.sam_hq_checkpoints import HQ_OF_THE_IMAGE, move_sam_hq
from mobilesamv2.transformers_checkpoints import is_transformers, rename_transformers
from mobilesamv2.transforms import PIXEL_MEAN, PIXEL_STD

logger = logging.getLogger(__name__)

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
"""The three parts of a SAM; a file contains some or all of them."""

StateDict = dict[str, Tensor]

# Where a model begins: the parts in SAM's names, SAM 2's and transformers'.
_ROOT = re.compile(
    rf"^(.*\.)??({'|'.join(PARTS)}|sam_prompt_encoder|sam_mask_decoder|vision_encoder|shared_image_embedding)\."
)
_ALIASES = {"PromtEncoder": "prompt_encoder", "MaskDecoder": "mask_decoder"}  # sic; MobileSAMv2's
# A name in a part without its name -> its name in SAM 2, transformers or SAM; published image encoders are in
# encoder_checkpoints.
_BARE = {
    "transformer.layers.0.mlp.layers.0.weight": "sam_mask_decoder",
    "iou_token.weight": "mask_decoder",
    "point_embeddings.0.weight": "prompt_encoder",
    "point_embed.0.weight": "prompt_encoder",
    "patch_embed.projection.weight": "vision_encoder",
    "trunk.patch_embed.proj.weight": "image_encoder",
}
_SHORT = {"image_encoder": "encoder", "mask_decoder": "decoder"}
"""Names of dictionaries that hold a part and are part of the model around them."""
_OF_THE_IMAGE = HQ_OF_THE_IMAGE + SAM2_OF_THE_IMAGE
"""Modules of the image encoder that publishers keep in the mask decoder."""
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What DistributedDataParallel, torch.compile, FSDP and activation checkpoints put into names."""
_FRAME = {"pixel_mean": PIXEL_MEAN, "pixel_std": PIXEL_STD}
_TRAINING = re.compile(r"(^|\.)(\w*loss\w*|criterion|\w*metrics?|n_averaged)(\.|$)")
"""Names of what only training reads."""
_RECORDS = re.compile(
    r"(^|\.)(\w*optimi[sz]er\w*|state\.\d+|\w*scheduler\w*|\w*hyper_parameters|callbacks|loops|args|config|history)\.$"
)
"""Dictionaries of a training's settings and progress, whose tensors may have the names and shapes of weights."""
_MAX_DEPTH = 4
"""Dictionaries within dictionaries that are searched; a pickle may contain itself."""


class _Entry(NamedTuple):
    """A tensor in a file.

    Attributes:
        name: path of the tensor; of a part that a dictionary holds without the part's name, with that name.
        value: the tensor.
        container: path of the dictionary that holds it, each step followed by a dot; empty for the file's own.
        root: what precedes the first part of a SAM in its name; None if it belongs to none.
    """

    name: str
    value: Tensor
    container: str
    root: str | None


def split_parts(content: dict[Any, Any], path: Path, prefix: str | None = None) -> dict[str, StateDict]:
    """Return the parts of the SAM in a file, under this project's names.

    A mask decoder alone may come with modules of the image encoder, which are parts of their own then.

    Args:
        content: what the file contains.
        path: of the file, for messages.
        prefix: of the model's keys where the file has several models. The keys of nested dictionaries count, joined by
            dots: ``teacher``, or ``state_dict.student``. Empty for the model without a prefix.

    Raises:
        ValueError: if the file contains no part of a SAM, several models of which no prefix chooses one, tensors in the
            model's dictionary that are neither its normalisation of pixels nor of the training alone, or another
            normalisation of pixels.
    """
    entries = list(_entries(content))
    roots = {entry.root for entry in entries if entry.root is not None}
    if not roots:
        keys = [entry.name for entry in entries] or [str(key) for key in content]
        raise ValueError(f"{path} contains no part of a SAM; its keys are {first_few(keys)}.")
    root = _choose(roots, path, prefix)
    containers = {entry.container for entry in entries if entry.root == root}
    others = tuple(other for other in roots - {root} if other)
    state: StateDict = {}
    elsewhere: list[_Entry] = []
    for entry in entries:
        if entry.root not in (root, None) or entry.name.startswith(others):
            continue
        if entry.container not in containers:
            if prefix is None:
                elsewhere.append(entry)
            continue
        local = _WRAPPERS.sub("", entry.name.removeprefix(root))
        if local in state:
            raise ValueError(f"{path} has {local} twice, once as {entry.name}; remove one of them.")
        state[local] = entry.value
    parts: dict[str, StateDict] = {}
    beside: StateDict = {}
    for key, value in _rename(state, path).items():
        part, _, name = key.partition(".")
        if part in PARTS:
            parts.setdefault(part, {})[name] = value
        else:
            beside[key] = value
    _check_beside(beside, path)
    _check_elsewhere(elsewhere, path, root)
    if "image_encoder" in parts:
        parts["image_encoder"] = rename_encoder(parts["image_encoder"])
    return _of_a_decoder(move_sam_hq(parts))


def first_few(keys: list[str]) -> str:
    """List three keys and the number of further ones."""
    shown = ", ".join(keys[:3])
    return f"{shown} and {len(keys) - 3} more" if len(keys) > 3 else shown


def _tensors(content: dict[Any, Any], container: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor, str]]:
    """Yield the name, value and container of each tensor in nested dictionaries, but for a training's records."""
    for key, value in content.items():
        name = f"{container}{_ALIASES.get(str(key), key)}"
        if isinstance(value, Tensor):
            yield name, value, container
        elif isinstance(value, dict) and depth < _MAX_DEPTH and not _RECORDS.search(f"{name}."):
            yield from _tensors(value, f"{name}.", depth + 1)


def _entries(content: dict[Any, Any]) -> Iterator[_Entry]:
    """Yield the tensors in a file, but for a training's records."""
    dictionaries: dict[str, StateDict] = {}
    for name, value, container in _tensors(content):
        dictionaries.setdefault(container, {})[name] = value
    for container, tensors in dictionaries.items():
        has_names = any(_root(name) is not None for name in tensors)
        part = None if has_names else _part_of({_WRAPPERS.sub("", name.removeprefix(container)) for name in tensors})
        root = container
        if part in _SHORT and re.search(rf"(^|\.){_SHORT[part]}\.$", container):
            root = container.removesuffix(f"{_SHORT[part]}.")
        for name, value in tensors.items():
            local = name.removeprefix(container)
            if part is None or _TRAINING.search(local) or _is_frame(local):
                yield _Entry(name, value, container, _root(name))
            else:
                yield _Entry(f"{root}{part}.{local}", value, container, root)


def _root(name: str) -> str | None:
    found = _ROOT.match(name)
    return None if found is None else found[1] or ""


def _choose(roots: Iterable[str], path: Path, prefix: str | None) -> str:
    """Return the only root, or the one that the prefix names."""
    roots = sorted(roots)
    wanted = roots
    if prefix is not None:
        start = f"{prefix.removesuffix('.')}." if prefix else ""
        wanted = [root for root in roots if root == start] or [root for root in roots if root.startswith(start)]
    if len(wanted) == 1:
        return wanted[0]
    shown = ", ".join(repr(root.removesuffix(".")) for root in roots)
    if prefix is None:
        raise ValueError(
            f"{path} holds {len(roots)} models, whose keys have the prefixes {shown}. "
            f"Choose one: {_by_prefix(roots[-1])}. For other commands, save_weights writes that model alone."
        )
    raise ValueError(f"prefix must be that of one model in {path}, one of {shown}, got {prefix!r}.")


def _by_prefix(root: str) -> str:
    """Return how to load the model of a root and nothing beside it."""
    prefix = root.removesuffix(".")
    return f"build_sam(name, file, prefix={prefix!r}), or of train.py and evaluate.py +model.prefix={prefix}"


def _part_of(keys: Set[str]) -> str | None:
    """Return which part keys without a prefix are of."""
    is_own = all(any(key.startswith(start) for key in keys) for start in ("backbone.", "neck."))
    if is_own or is_encoder(keys):
        return "image_encoder"
    return next((part for key, part in _BARE.items() if key in keys), None)


def _rename(state: StateDict, path: Path) -> StateDict:
    """Return a publisher's names of a whole model as this project's; those of SAM unchanged."""
    if is_transformers(state.keys()):
        try:
            return rename_transformers(state)
        except ValueError as error:
            raise ValueError(f"{path} can't be loaded: {error}") from error
    return rename_efficient_sam(rename_sam2(state))


def _of_a_decoder(parts: dict[str, StateDict]) -> dict[str, StateDict]:
    """Return the parts, with what came with a mask decoder alone of the image encoder as parts of their own."""
    encoder = parts.get("image_encoder", {})
    of_decoder = {module: {} for module in _OF_THE_IMAGE}
    for key, value in encoder.items():
        module = next((module for module in _OF_THE_IMAGE if key.startswith(f"{module}.")), None)
        if module is None:
            return parts
        of_decoder[module][key.removeprefix(f"{module}.")] = value
    rest = {part: state for part, state in parts.items() if part != "image_encoder"}
    return rest | {f"image_encoder.{module}": state for module, state in of_decoder.items() if state}


def _check_beside(beside: StateDict, path: Path) -> None:
    """Check that tensors beside the parts, in their dictionary, do not change what the model computes."""
    _check_frame(beside, path)
    rest = [key for key in beside if not _is_frame(key)]
    unexpected = [key for key in rest if not _TRAINING.search(key)]
    if unexpected:
        raise ValueError(f"{path} has unexpected key(s), of no part of a SAM: {first_few(unexpected)}.")
    if rest:
        logger.info("left out of %s what only training needs: %s", path, first_few(rest))


def _check_elsewhere(elsewhere: list[_Entry], path: Path, root: str) -> None:
    """Warn of weights in other dictionaries than the model's, and check that no other pixels are stated there."""
    way_out = f" If that is of something else than the model, name the model: {_by_prefix(root)}."
    _check_frame({entry.name: entry.value for entry in elsewhere}, path, way_out)
    weights = [entry for entry in elsewhere if _is_weight(entry) and not _TRAINING.search(entry.name)]
    if weights:
        names = dict.fromkeys(entry.container.removesuffix(".") or entry.name for entry in weights)
        logger.warning(
            "%s holds weights of no part of a SAM beside the model, which are left out: %s. If they are not of the "
            "model, load it without this warning: %s.",
            path,
            first_few([*names]),
            _by_prefix(root),
        )


def _check_frame(state: StateDict, path: Path, way_out: str = "") -> None:
    """Check that pixels are normalised as here, where a file states how."""
    for key, value in state.items():
        if not _is_frame(key):
            continue
        expected = torch.tensor(_FRAME[key.rpartition(".")[2]])
        fits = value.numel() == expected.numel()
        if not fits or not torch.allclose(value.float().flatten(), expected, atol=1e-2):
            stated = value.flatten().tolist() if fits else f"of shape {tuple(value.shape)}"
            raise ValueError(
                f"{path} has {key} {stated}, but models here normalise pixels with {_FRAME[key.rpartition('.')[2]]}: "
                f"its weights belong to other inputs.{way_out}"
            )


def _is_frame(key: str) -> bool:
    return key.rpartition(".")[2] in _FRAME


def _is_weight(entry: _Entry) -> bool:
    """Return whether a tensor may be a weight of a network, rather than a figure of the training."""
    last = entry.name.rpartition(".")[2]
    is_weight = entry.value.ndim > 1 or last in ("weight", "bias")
    return is_weight and entry.value.is_floating_point() and last not in _FRAME
