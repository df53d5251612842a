"""One table: the name of a model -> how to build it."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mobilesamv2.checkpoints import PARTS, load_weights, read_metadata
from mobilesamv2.models.image_encoder import ImageEncoder, efficientvit_sam, sam_vit, timm_encoder, tiny_vit
from mobilesamv2.models.sam import Sam

TIMM_PREFIX = "timm/"

ENCODERS: dict[str, Callable[..., ImageEncoder]] = {
    "sam_vit_b": partial(sam_vit, "samvit_base_patch16"),
    "sam_vit_l": partial(sam_vit, "samvit_large_patch16"),
    "sam_vit_h": partial(sam_vit, "samvit_huge_patch16"),
    "sam_vit_mini": partial(
        sam_vit, "samvit_base_patch16", embed_dim=96, depth=4, num_heads=3, global_attn_indexes=(1, 3)
    ),
    "tiny_vit_5m": partial(tiny_vit, "tiny_vit_5m_224"),
    "tiny_vit_11m": partial(tiny_vit, "tiny_vit_11m_224"),
    "tiny_vit_21m": partial(tiny_vit, "tiny_vit_21m_224"),
    "tiny_vit_mini": partial(
        tiny_vit, "tiny_vit_5m_224", embed_dims=(32, 48, 64, 96), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 3)
    ),
    "efficientvit_l0": partial(efficientvit_sam, "efficientvit_l1", neck_depth=4, depths=(1, 1, 1, 4, 4)),
    "efficientvit_l1": partial(efficientvit_sam, "efficientvit_l1", neck_depth=8),
    "efficientvit_l2": partial(efficientvit_sam, "efficientvit_l2", neck_depth=12),
    "repvit": partial(timm_encoder, "repvit_m1_1"),
    "mini_conv": partial(timm_encoder, "mobilenetv4_conv_small_050", finest_stride=4),
    "micro_conv": partial(timm_encoder, "mobilenetv4_conv_small_035", finest_stride=4),
}
"""Image encoders by name; ``timm/<backbone>`` is one too."""


@dataclass(frozen=True)
class SamSpec:
    """The shape of a model.

    Attributes:
        encoder: name of its image encoder.
        image_size: S, pixels.
        embed_dim: C.
        decoder_heads: attention heads of the mask decoder.
        decoder_mlp_dim: hidden width of the mask decoder's MLPs.
    """

    encoder: str
    image_size: int = 1024
    embed_dim: int = 256
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048


_mini = partial(SamSpec, image_size=256, embed_dim=64, decoder_heads=4, decoder_mlp_dim=256)

MODELS: dict[str, SamSpec] = {
    "mobile_sam": SamSpec("tiny_vit_5m"),
    "sam_vit_b": SamSpec("sam_vit_b"),
    "sam_vit_l": SamSpec("sam_vit_l"),
    "sam_vit_h": SamSpec("sam_vit_h"),
    "tiny_vit_11m": SamSpec("tiny_vit_11m"),
    "tiny_vit_21m": SamSpec("tiny_vit_21m"),
    "efficientvit_l0": SamSpec("efficientvit_l0"),
    "efficientvit_l1": SamSpec("efficientvit_l1"),
    "efficientvit_l2": SamSpec("efficientvit_l2"),
    "repvit": SamSpec("repvit"),
    "mini": _mini("tiny_vit_mini"),
    "sam_vit_mini": _mini("sam_vit_mini"),
    "mini_conv": _mini("mini_conv"),
    "micro_conv": _mini("micro_conv"),
}
"""Models by name; ``timm/<backbone>`` is one too, of full size."""


def list_models() -> list[str]:
    """Names that ``build_sam`` takes, beside ``timm/<backbone>`` for any backbone of timm."""
    return list(MODELS)


def build_sam(
    name: str,
    checkpoint: str | Path | Sequence[str | Path] | None = None,
    *,
    encoder: str | None = None,
    allow_partial: bool = True,
) -> Sam:
    """Builds a model by name, in eval mode on the CPU.

    Args:
        name: one of ``list_models()``, or ``timm/<backbone>``.
        checkpoint: a weight file, or several that together hold the model, loaded in order; None leaves random weights.
        encoder: another image encoder in place of the model's own: a key of ``ENCODERS`` or ``timm/<backbone>``.
        allow_partial: where the files leave a part of the model without weights, warn instead of refusing.

    Returns:
        The model.

    Raises:
        ValueError: an unknown name, an empty list of files, or a file that does not fit (see ``load_weights``).
        FileNotFoundError: a weight file is not there.
    """
    spec = _spec(name)
    encoder_name = encoder or spec.encoder
    image_encoder = build_encoder(encoder_name, spec.image_size, spec.embed_dim)
    sam = Sam(
        image_encoder,
        image_size=spec.image_size,
        embed_dim=spec.embed_dim,
        decoder_heads=spec.decoder_heads,
        decoder_mlp_dim=spec.decoder_mlp_dim,
        name=name,
        encoder_name=encoder_name,
    ).eval()
    files = [] if checkpoint is None else [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    if checkpoint is not None and not files:
        raise ValueError(f"The checkpoint of {name} is an empty list: name files, or null for random weights.")
    loaded = {part for file in files for part in load_weights(sam, file)}
    missing = [part for part in PARTS if part not in loaded]
    if files and missing:
        message = (
            f"{', '.join(map(str, files))} leave {' and '.join(missing)} of {name} with random weights; "
            "name the file that holds them too: checkpoint=[first, second]."
        )
        if not allow_partial:
            raise ValueError(message)
        warnings.warn(message, stacklevel=2)
    return sam


def load_sam(path: str | Path) -> Sam:
    """Builds the model that a safetensors file of this project was saved from, with its weights, in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not say which model it is of.
    """
    metadata = read_metadata(path)
    return build_sam(metadata["name"], path, encoder=metadata["encoder"], allow_partial=False)


def build_encoder(name: str, image_size: int, out_channels: int) -> ImageEncoder:
    """Builds an image encoder by name, with random weights.

    Args:
        name: a key of ``ENCODERS``, or ``timm/<backbone>``.
        image_size: S, pixels.
        out_channels: C.

    Raises:
        ValueError: an unknown name.
    """
    if name.startswith(TIMM_PREFIX):
        return timm_encoder(name.removeprefix(TIMM_PREFIX), image_size=image_size, out_channels=out_channels)
    if name not in ENCODERS:
        raise ValueError(_unknown("image encoder", name, list(ENCODERS)))
    return ENCODERS[name](image_size=image_size, out_channels=out_channels)


def _spec(name: str) -> SamSpec:
    if name.startswith(TIMM_PREFIX):
        return SamSpec(name)
    if name not in MODELS:
        raise ValueError(_unknown("model", name, list(MODELS)))
    return MODELS[name]


def _unknown(kind: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"There is no {kind} '{name}'.{hint} Known are {', '.join(known)} and timm/<any backbone of timm>."
