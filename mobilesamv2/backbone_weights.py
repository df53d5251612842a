"""Pretrained weights of timm's backbones, from timm's hub or a file: the body of an image encoder, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mobilesamv2.checkpoints import read_state_dict
from mobilesamv2.models.image_encoder import ImageEncoder
from mobilesamv2.models.timm_models import create_timm_model
from mobilesamv2.transforms import PIXEL_STD

logger = logging.getLogger(__name__)

TIMM = "timm"
"""Source of weights: those that timm itself downloads for a backbone, from the Hugging Face Hub in most cases."""


def load_backbone(encoder: ImageEncoder, source: str | Path) -> None:
    """Load pretrained weights of a timm backbone into an image encoder; layers that the encoder omits are not read.

    The keys of a file are those that timm reads, or another implementation's of the same network whose tensors have
    the same order and the same shapes. A positional embedding is resampled to the encoder's input. The first
    convolution is rescaled to SAM's normalisation of pixels.

    Args:
        encoder: built by ``registry.build_encoder``.
        source: ``timm``, for the weights that timm downloads or has in its cache; or a state dictionary of the complete
            backbone, pickled or as safetensors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the encoder is no unchanged backbone of timm, timm has no weights of it, or the file's tensors
            differ from the backbone's or are not finite.
        ConnectionError: if timm's weights can't be downloaded.
    """
    backbone = encoder.backbone
    variant = str(getattr(backbone, "variant", None) or backbone.pretrained_cfg["architecture"])
    body = getattr(backbone, "body", backbone)
    inner: nn.Module = getattr(body, "model", body)
    settings, places = _find_places(variant, inner, getattr(backbone, "input_size", None))
    if str(source) == TIMM:
        full, origin = _from_timm(variant, settings), _hub_name(variant)
    else:
        full, origin = _from_file(variant, settings, Path(source)), str(source)
    state = full.state_dict()
    loaded = {key: state[place] for key, place in places.items()}
    broken = [key for key, value in loaded.items() if not torch.isfinite(value).all()]
    if broken:
        raise ValueError(f"The weights of {origin} contain NaN or infinity in {', '.join(broken[:3])}.")
    _rescale_first_convolution(variant, inner, loaded)
    inner.load_state_dict(loaded)
    logger.info(
        "The image encoder's backbone, timm's %s, starts from %s (%d tensors); its neck and the decoder do not.",
        *(variant, origin, len(loaded)),
    )


def _find_places(variant: str, inner: nn.Module, side: int | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the settings with which timm's complete model has the backbone's tensors, and each one's key in it."""
    ours = inner.state_dict()
    problem = ""
    choices: tuple[dict[str, Any], ...] = ({}, {"img_size": side}) if side else ({},)
    for settings in choices:
        try:
            with torch.device("meta"):
                theirs: Mapping[str, Tensor] = create_timm_model(variant, **settings).state_dict()
        except TypeError:  # a network without an ``img_size``
            continue
        # timm's lists of feature maps flatten the first level: ``stages.0`` is ``stages_0``
        place_of = {key.replace(".", "_", 1): key for key in theirs} | {key: key for key in theirs}
        fits = {
            key: place_of[key]
            for key, value in ours.items()
            if key in place_of and theirs[place_of[key]].shape == value.shape
        }
        if len(fits) == len(ours):
            return settings, fits
        other = next(key for key in ours if key not in fits)
        problem = problem or f"{other} is {tuple(ours[other].shape)} here"
    raise ValueError(
        f"The backbone must be timm's own {variant} to have pretrained weights, got another network: {problem}. "
        "Set backbone_checkpoint=null, or choose an encoder of timm's sizes."
    )


def _from_timm(variant: str, settings: dict[str, Any]) -> nn.Module:
    """Build timm's complete model with its weights."""
    config = timm.get_pretrained_cfg(variant)
    if config is None or not config.has_weights:
        raise ValueError(
            f"timm has no weights of {variant}. Set backbone_checkpoint=null, or name a file of such weights."
        )
    try:
        return create_timm_model(variant, pretrained=True, **settings)
    except RuntimeError as error:  # of strict loading
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"timm can't fit its weights of {variant} to this image size: {reason}") from error
    except Exception as error:  # each of timm's ways to download has errors of its own
        name = _hub_name(variant)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConnectionError(
            f"timm's weights of {variant} ({name}) can't be downloaded: {reason}. Where there is a connection, "
            f"`hf download {config.hf_hub_id or name}` puts them into the cache that is read here ($HF_HOME); or "
            "download the file by other means and name it: backbone_checkpoint=FILE."
        ) from error


def _from_file(variant: str, settings: dict[str, Any], path: Path) -> nn.Module:
    """Build timm's complete model with the weights of a file."""
    state = {str(key): value for key, value in read_state_dict(path).items() if isinstance(value, Tensor)}
    with torch.device("meta"):
        reference = create_timm_model(variant).state_dict()
    if state.keys() != reference.keys():
        shapes = [[value.shape for value in tensors.values()] for tensors in (state, reference)]
        if shapes[0] == shapes[1]:
            state = dict(zip(reference, state.values(), strict=True))
    overlay: dict[str, Any] = {"state_dict": state}
    classes = _classes(variant, state)
    if classes is not None:
        settings = settings | {"num_classes": classes}
        overlay["num_classes"] = classes
    try:
        return create_timm_model(variant, pretrained=True, pretrained_cfg_overlay=overlay, **settings)
    except (RuntimeError, KeyError, ValueError) as error:  # timm's strict loading, and its conversions of other names
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"The tensors of {path} must be those of timm's {variant}, by name or by order and shape: {reason}"
        ) from error


def _classes(variant: str, state: Mapping[str, Tensor]) -> int | None:
    """Return how many classes a file's classifier tells apart, of whatever data; None if it has none."""
    config = timm.get_pretrained_cfg(variant)
    names = (config.classifier if config else None) or ()
    prefixes = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    return next((len(value) for key, value in state.items() if key.startswith(prefixes) and value.ndim > 1), None)


def _hub_name(variant: str) -> str:
    """Return where timm has a backbone's weights."""
    config: Any = timm.get_pretrained_cfg(variant)
    tag = f"{variant}.{config.tag}" if config and config.tag else variant
    return (config and (config.hf_hub_id or config.url)) or tag


def _rescale_first_convolution(variant: str, inner: nn.Module, state: dict[str, Tensor]) -> None:
    """Make up for the deviations that pixels were divided by, SAM's in place of the backbone's own."""
    config = timm.get_pretrained_cfg(variant)
    std = torch.tensor(config.std if config else (0.5, 0.5, 0.5)).view(3, 1, 1)
    for name, module in inner.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels == 3:
                key = f"{name}.weight"
                state[key] = state[key] * (torch.tensor(PIXEL_STD).view(3, 1, 1) / 255 / std)
            return
