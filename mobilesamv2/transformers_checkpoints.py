"""Hugging Face transformers' ``SamModel``: the names of its weights, and the settings in its ``config.json``."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mobilesamv2.data.json_files import is_finite_number, read_json, shown
from mobilesamv2.key_tables import KeyTable
from mobilesamv2.models.sam import MAX_IMAGE_SIZE, Sam
from mobilesamv2.structures import EMBEDDING_STRIDE

CONFIG_FILE, PROCESSOR_FILE = "config.json", "preprocessor_config.json"
"""Names of the files beside the weights in a folder of transformers."""

_VITS = {
    (768, 12): "sam_vit_b",
    (1024, 24): "sam_vit_l",
    (1280, 32): "sam_vit_h",
    (384, 12): "slimsam_50",
    (168, 12): "slimsam_77",
    (96, 4): "sam_vit_mini",
}
"""Width and number of blocks of a ViT -> the model in the registry."""

_NAMES = KeyTable(
    (
        ("vision_encoder.pos_embed", "image_encoder.backbone.pos_embed"),
        ("vision_encoder.patch_embed.projection.", "image_encoder.backbone.patch_embed.proj."),
        ("vision_encoder.layers.{}.layer_norm{}.", "image_encoder.backbone.blocks.{}.norm{}."),
        ("vision_encoder.layers.{}.attn.", "image_encoder.backbone.blocks.{}.attn."),
        ("vision_encoder.layers.{}.mlp.lin{}.", "image_encoder.backbone.blocks.{}.mlp.fc{}."),
        ("vision_encoder.neck.conv1.", "image_encoder.neck.0."),
        ("vision_encoder.neck.layer_norm1.", "image_encoder.neck.1."),
        ("vision_encoder.neck.conv2.", "image_encoder.neck.2."),
        ("vision_encoder.neck.layer_norm2.", "image_encoder.neck.3."),
        (
            "shared_image_embedding.positional_embedding",
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
        ("prompt_encoder.point_embed.{}.", "prompt_encoder.point_embeddings.{}."),
        ("prompt_encoder.mask_embed.conv1.", "prompt_encoder.mask_downscaling.0."),
        ("prompt_encoder.mask_embed.layer_norm1.", "prompt_encoder.mask_downscaling.1."),
        ("prompt_encoder.mask_embed.conv2.", "prompt_encoder.mask_downscaling.3."),
        ("prompt_encoder.mask_embed.layer_norm2.", "prompt_encoder.mask_downscaling.4."),
        ("prompt_encoder.mask_embed.conv3.", "prompt_encoder.mask_downscaling.6."),
        ("mask_decoder.transformer.layers.{}.layer_norm{}.", "mask_decoder.transformer.layers.{}.norm{}."),
        ("mask_decoder.transformer.layer_norm_final_attn.", "mask_decoder.transformer.norm_final_attn."),
        ("mask_decoder.upscale_conv1.", "mask_decoder.output_upscaling.0."),
        ("mask_decoder.upscale_layer_norm.", "mask_decoder.output_upscaling.1."),
        ("mask_decoder.upscale_conv2.", "mask_decoder.output_upscaling.3."),
        *(
            (f"mask_decoder.{mlp}.{theirs}.", f"mask_decoder.{mlp}.layers.{ours}.")
            for mlp in ("output_hypernetworks_mlps.{}", "iou_prediction_head")
            for theirs, ours in (("proj_in", 0), ("layers.0", 1), ("proj_out", 2))
        ),
    )
)
_POSITIONS, _TIED = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)
"""One tensor under two names; a file has either or both."""


def is_transformers(keys: Set[str]) -> bool:
    """Return whether keys without a prefix are those of transformers' ``SamModel`` or a part of it."""
    return any(key.startswith(("vision_encoder.", "shared_image_embedding.", _TIED)) for key in keys) or bool(
        keys & {"prompt_encoder.point_embed.0.weight", "mask_decoder.upscale_conv1.weight"}
    )


def identify_transformers(path: Path) -> tuple[str, int] | None:
    """Return the registry name and image size of the ``SamModel`` in a safetensors file; None if the file holds none.

    Raises:
        ValueError: if it holds one of a size that is not in the registry, or that no model has.
    """
    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            if "vision_encoder.pos_embed" not in keys or not is_transformers(keys):
                return None
            shape = file.get_slice("vision_encoder.pos_embed").get_shape()  # (1, S/16, S/16, channels)
    except (OSError, SafetensorError):  # whoever reads the file says what is wrong with it
        return None
    width = shape[-1] if shape else 0
    depth = len({key.split(".")[2] for key in keys if key.startswith("vision_encoder.layers.")})
    if (width, depth) not in _VITS:
        known = ", ".join(f"{name} ({width} x {depth})" for (width, depth), name in _VITS.items())
        raise ValueError(
            f"{path} holds transformers' SamModel with a ViT of width {width} and {depth} blocks, which must be one of "
            f"{known}. Add a row to registry.ENCODERS and MODELS for another, and load it with build_sam(name, file)."
        )
    side = EMBEDDING_STRIDE * shape[1] if len(shape) == 4 else 0
    if side % 32 or not 32 <= side <= MAX_IMAGE_SIZE:
        raise ValueError(
            f"{path} must hold a SamModel for images of a multiple of 32 pixels from 32 to {MAX_IMAGE_SIZE}, got "
            f"vision_encoder.pos_embed of shape {tuple(shape)}."
        )
    return _VITS[width, depth], side


def check_config(sam: Sam, folder: Path) -> None:
    """Check that a folder's settings, where it has them, are what a model computes beyond its weights' shapes.

    Raises:
        ValueError: if a setting in ``config.json``, or the normalisation in ``preprocessor_config.json``, differs from
            the model's, or one of the files holds no JSON object.
    """
    if (path := folder / CONFIG_FILE).is_file():
        _check_model_settings(sam, path)
    for name in (PROCESSOR_FILE, "processor_config.json"):
        if (path := folder / name).is_file():
            _check_normalisation(sam, path)


def _check_model_settings(sam: Sam, path: Path) -> None:
    stated, expected = _read_settings(path), transformers_config(sam)
    model_type = stated.get("model_type", expected["model_type"])
    if model_type != expected["model_type"]:
        raise ValueError(f"{path} must have the model_type {expected['model_type']}, got {shown(model_type)}.")
    for part, ours in expected.items():
        theirs = stated.get(part)
        if not isinstance(ours, dict) or theirs is None:
            continue
        if not isinstance(theirs, dict):
            raise ValueError(f"{path} must have an object as {part}, got {shown(theirs)}.")
        for key, value in ours.items():
            # early versions of transformers leave the model_type of parts empty; a norm's epsilon: transformers has
            # 1e-6 in the mask decoder, where the SAM that it converts has 1e-5
            if key != "layer_norm_eps" and theirs.get(key, value) not in (value, None, ""):
                raise ValueError(f"{path} has {part}.{key} {shown(theirs[key])}, but {sam.name} has {value}.")


def _check_normalisation(sam: Sam, path: Path) -> None:
    """Compare mean and deviation of the pixels with the model's, which are for values from 0 to 255."""
    stated = _read_settings(path)
    nested = stated.get("image_processor")  # where the file is of the processor of images and prompts
    stated = nested if isinstance(nested, dict) else stated
    factor = stated.get("rescale_factor")
    scale = 1 / 255 if factor is None else factor
    for key, pixels in (("image_mean", sam.pixel_mean), ("image_std", sam.pixel_std)):
        theirs, ours = stated.get(key), pixels.flatten().tolist()
        if theirs is None:
            continue
        is_sound = isinstance(theirs, list) and len(theirs) == len(ours)
        is_sound = is_sound and all(map(is_finite_number, [*theirs, scale])) and scale > 0
        if not is_sound or not np.allclose(np.divide(theirs, scale), ours, rtol=1e-3):
            expected = ", ".join(f"{value / 255:.3f}" for value in ours)
            raise ValueError(
                f"{path} must have the {key} {expected} of values from 0 to 1, which {sam.name} normalises by, got "
                f"{shown(theirs)}."
            )
    for key in ("do_rescale", "do_normalize"):
        if stated.get(key) is False:
            raise ValueError(f"{path} must not have {key} false: {sam.name} normalises its pixels.")


def _read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a file of transformers."""
    stated = read_json(path)
    if not isinstance(stated, dict):
        raise ValueError(f"{path} must hold a JSON object, as transformers writes it, got {shown(stated)}.")
    return stated


def rename_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of transformers' ``SamModel`` under this project's names.

    Raises:
        ValueError: if the file has two positional encodings that differ.
    """
    tied = state.get(_TIED)
    if tied is not None:
        if not torch.equal(tied, state.get(_POSITIONS, tied)):
            raise ValueError(f"{_TIED} must be the same tensor as {_POSITIONS}, but their values differ.")
        state = {key: value for key, value in state.items() if key != _TIED} | {_POSITIONS: tied}
    return {_NAMES.to_ours(key): value for key, value in state.items()}


def to_transformers(sam: Sam) -> dict[str, Tensor]:
    """Return a model's weights under the names of transformers' ``SamModel``, contiguous, on the CPU."""
    return {_NAMES.to_theirs(key): value.detach().cpu().contiguous() for key, value in sam.state_dict().items()}


def transformers_config(sam: Sam) -> dict[str, Any]:
    """Return ``config.json`` for a model whose image encoder is a SAM ViT.

    Raises:
        ValueError: if its image encoder is another one, or its class is none that transformers has as ``SamModel``.
    """
    vit: Any = getattr(sam.image_encoder, "backbone", None)
    blocks = getattr(vit, "blocks", None)
    if type(sam) is not Sam or blocks is None or not hasattr(blocks[0], "window_size"):
        raise ValueError(
            f"The model must be a SAM with a SAM ViT to be written for transformers, got {sam.name} with "
            f"{sam.encoder_name}; save_weights writes any model as safetensors."
        )
    width = sam.prompt_encoder.embed_dim
    transformer: Any = sam.mask_decoder.transformer
    size = {"image_size": sam.image_size, "patch_size": EMBEDDING_STRIDE}
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": size
        | {
            "model_type": "sam_vision_model",
            "hidden_size": vit.embed_dim,
            "output_channels": width,
            "num_hidden_layers": len(blocks),
            "num_attention_heads": blocks[0].attn.num_heads,
            "mlp_dim": blocks[0].mlp.fc1.out_features,
            "window_size": max(block.window_size for block in blocks),
            "global_attn_indexes": [i for i, block in enumerate(blocks) if not block.window_size],
            "num_pos_feats": width // 2,
        },
        "prompt_encoder_config": size | {"model_type": "sam_prompt_encoder", "hidden_size": width},
        "mask_decoder_config": {
            "model_type": "sam_mask_decoder",
            "hidden_size": width,
            "mlp_dim": transformer.layers[0].mlp.lin1.out_features,
            "num_attention_heads": transformer.layers[0].self_attn.num_heads,
            "iou_head_hidden_dim": width,
            "layer_norm_eps": transformer.norm_final_attn.eps,
        },
    }


def processor_config(sam: Sam) -> dict[str, Any]:
    """Return ``preprocessor_config.json``, with which transformers' ``SamProcessor`` prepares images for a model."""
    side, low_res = sam.image_size, sam.image_size // 4
    return {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
        "size": {"longest_edge": side},
        "pad_size": {"height": side, "width": side},
        "mask_size": {"longest_edge": low_res},
        "mask_pad_size": {"height": low_res, "width": low_res},
    }
