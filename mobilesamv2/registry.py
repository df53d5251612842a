"""Registry of models: name -> how to build it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import timm

from mobilesamv2.backbone_weights import load_backbone
from mobilesamv2.checkpoints import PARTS, choose_image_size, load_weights, read_metadata, read_thresholds
from mobilesamv2.model_zoo import EFFICIENTVIT_SAM_MODELS, MICRO_SAM_FILES, MODEL_FILES, SAM_HQ_MODELS, shipped_models
from mobilesamv2.models.efficient_sam import EfficientSam, efficient_sam_vit
from mobilesamv2.models.efficientvit_xl import efficientvit_sam_xl
from mobilesamv2.models.image_encoder import ImageEncoder, efficientvit_sam, sam_vit, timm_encoder, tiny_vit
from mobilesamv2.models.pyramid import sam2_hiera, timm_pyramid
from mobilesamv2.models.registration import HOW_TO_REGISTER, Family, registered_encoders
from mobilesamv2.models.repvit_sam import edge_sam, repvit_sam
from mobilesamv2.models.sam import MAX_IMAGE_SIZE, Sam
from mobilesamv2.models.sam2 import Sam2
from mobilesamv2.models.sam_hq import ENCODERS_OF_SAM_HQ, SamHq
from mobilesamv2.models.sam_variants import EdgeSam, EfficientViTSam, TinySam
from mobilesamv2.models.timm_backbone import require_timm_model
from mobilesamv2.names import did_you_mean
from mobilesamv2.ranges import Count
from mobilesamv2.structures import EFFICIENT_SAM_THRESHOLDS, SAM_2_THRESHOLDS, SAM_THRESHOLDS, Thresholds
from mobilesamv2.transformers_checkpoints import check_config, identify_transformers

TIMM_PREFIX = "timm/"
MICRO_SAM_ENCODERS = {"t": "tiny_vit_5m", "b": "sam_vit_b", "l": "sam_vit_l"}
SAM2_SIZES = ("tiny", "small", "base_plus", "large")

ENCODERS: dict[str, Callable[..., ImageEncoder]] = {
    "sam_vit_b": partial(sam_vit, "samvit_base_patch16"),
    "sam_vit_l": partial(sam_vit, "samvit_large_patch16"),
    "sam_vit_h": partial(sam_vit, "samvit_huge_patch16"),
    "sam_vit_mini": partial(
        sam_vit, "samvit_base_patch16", embed_dim=96, depth=4, num_heads=3, global_attn_indexes=(1, 3)
    ),
    "slimsam_50": partial(sam_vit, "samvit_base_patch16", embed_dim=384),
    "slimsam_77": partial(sam_vit, "samvit_base_patch16", embed_dim=168, mlp_dim=696),
    "tiny_vit_5m": partial(tiny_vit, "tiny_vit_5m_224"),
    "tiny_vit_11m": partial(tiny_vit, "tiny_vit_11m_224"),
    "tiny_vit_21m": partial(tiny_vit, "tiny_vit_21m_224"),
    "tiny_vit_mini": partial(
        tiny_vit, "tiny_vit_5m_224", embed_dims=(32, 48, 64, 96), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 3)
    ),
    "efficientvit_l0": partial(efficientvit_sam, "efficientvit_l1", neck_depth=4, depths=(1, 1, 1, 4, 4)),
    "efficientvit_l1": partial(efficientvit_sam, "efficientvit_l1", neck_depth=8),
    "efficientvit_l2": partial(efficientvit_sam, "efficientvit_l2", neck_depth=12),
    "efficientvit_sam_l0": partial(
        efficientvit_sam, "efficientvit_l1", neck_depth=4, depths=(1, 1, 1, 4, 4), halve=False
    ),
    "efficientvit_sam_l1": partial(efficientvit_sam, "efficientvit_l1", neck_depth=8, halve=False),
    "efficientvit_sam_l2": partial(efficientvit_sam, "efficientvit_l2", neck_depth=12, halve=False),
    "efficientvit_sam_xl0": partial(efficientvit_sam_xl, (0, 1, 1, 2, 3, 3), neck_depth=6),
    "efficientvit_sam_xl1": partial(efficientvit_sam_xl, (1, 2, 2, 4, 6, 6), neck_depth=12),
    "repvit_sam": partial(repvit_sam, "repvit_m2_3"),
    "edge_sam": partial(edge_sam, "repvit_m1"),
    "efficient_sam_vitt": partial(efficient_sam_vit, "vit_tiny_patch16_224", 192, 3),
    "efficient_sam_vits": partial(efficient_sam_vit, "vit_small_patch16_224", 384, 6),
    "repvit": partial(timm_encoder, "repvit_m1_1"),
    "mini_conv": partial(
        timm_encoder, "tf_efficientnet_lite0", finest_stride=4, coarsest_stride=16, neck_width=192, neck_depth=4
    ),
    "mini_conv_slim": partial(
        timm_encoder, "tf_efficientnet_lite0", finest_stride=4, coarsest_stride=16, neck_width=192, neck_depth=1
    ),
    "micro_conv": partial(timm_encoder, "mobilenetv4_conv_small_035", finest_stride=4),
}
"""Image encoders of SAM by name, beside ``timm/<backbone>``."""

_PYRAMIDS: dict[str, Callable[..., ImageEncoder]] = {
    **{f"tiny_vit_{size}": partial(timm_pyramid, f"tiny_vit_{size}_224") for size in ("5m", "11m", "21m")},
    "tiny_vit_mini": partial(
        timm_pyramid, "tiny_vit_5m_224", embed_dims=(32, 48, 64, 96), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 3)
    ),
    "efficientvit_l0": partial(timm_pyramid, "efficientvit_l1", depths=(1, 1, 1, 4, 4)),
    "efficientvit_l1": partial(timm_pyramid, "efficientvit_l1"),
    "efficientvit_l2": partial(timm_pyramid, "efficientvit_l2"),
    "repvit": partial(timm_pyramid, "repvit_m1_1"),
    "mini_conv": partial(timm_pyramid, "tf_efficientnet_lite0"),
    "micro_conv": partial(timm_pyramid, "mobilenetv4_conv_small_035"),
}

ENCODERS_OF_SAM_2: dict[str, Callable[..., ImageEncoder]] = {
    **{f"sam2_hiera_{size}": partial(sam2_hiera, f"sam2_hiera_{size}") for size in SAM2_SIZES},
    "sam2_hiera_mini": partial(
        sam2_hiera, "sam2_hiera_tiny", embed_dim=24, stages=(1, 1, 2, 1), global_att_blocks=(3,)
    ),
    **_PYRAMIDS,
    **{
        f"{name}_stride{stride}": partial(build, finest_stride=stride)
        for name, build in _PYRAMIDS.items()
        for stride in (8, 16)
    },
}
"""Image encoders of SAM 2 by name, beside ``timm/<backbone>``; those of stride 8 or 16 leave out the finer levels."""


class EncoderSet(NamedTuple):
    """The image encoders that models of a family take.

    Attributes:
        by_name: how to build those of this module.
        from_timm: builds one from a backbone of timm, by its name; None if the family takes none.
        family: what others register for; None if the family takes none of theirs.
    """

    by_name: dict[str, Callable[..., ImageEncoder]]
    from_timm: Callable[..., ImageEncoder] | None
    family: Family | None

    def registered(self) -> dict[str, Callable[..., ImageEncoder]]:
        """Return those that register themselves.

        Raises:
            ValueError: if one has a name of this module's, or a module can't be imported.
        """
        own = {} if self.family is None else registered_encoders(self.family)
        if taken := own.keys() & self.by_name.keys():
            raise ValueError(f"An encoder registers as '{min(taken)}', which is the name of another: rename it.")
        return own

    def find(self, name: str) -> Callable[..., ImageEncoder] | None:
        """Return how to build an image encoder by its name, None where there is none; not for those from timm."""
        return self.by_name.get(name) or self.registered().get(name)


ENCODER_SETS: dict[type[Sam], EncoderSet] = {
    Sam: EncoderSet(ENCODERS, timm_encoder, "sam"),
    Sam2: EncoderSet(ENCODERS_OF_SAM_2, timm_pyramid, "sam2"),
    SamHq: EncoderSet(ENCODERS_OF_SAM_HQ, None, None),
}
"""Image encoders by the family of models."""


@dataclass(frozen=True)
class SamSpec:
    """Encoder, sizes and thresholds of a model.

    Attributes:
        encoder: name of the image encoder.
        image_size: S, pixels.
        embed_dim: C.
        decoder_heads: attention heads of the mask decoder.
        decoder_mlp_dim: hidden width of the mask decoder's MLPs.
        thresholds: those that suit its masks, where its weight file has none.
        family: the class to build: SAM, SAM 2 or one that handles masks in its own way.
    """

    encoder: str
    image_size: int = 1024
    embed_dim: int = 256
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    thresholds: Thresholds = SAM_THRESHOLDS
    family: type[Sam] = Sam


_efficient_sam = partial(SamSpec, thresholds=EFFICIENT_SAM_THRESHOLDS, family=EfficientSam)
_mini = partial(SamSpec, image_size=256, embed_dim=64, decoder_heads=4, decoder_mlp_dim=256)
# mini_conv, which ships, predicts lower IoUs and reaches lower stability scores than SAM, whose thresholds would remove
# nearly all of its masks. Its students inherit its mask decoder.
_small = partial(
    SamSpec,
    image_size=256,
    embed_dim=128,
    decoder_heads=4,
    decoder_mlp_dim=512,
    thresholds=Thresholds(pred_iou_thresh=0.25, stability_score_thresh=0.6),
)

MODELS: dict[str, SamSpec] = {
    "mobile_sam": SamSpec("tiny_vit_5m"),
    "sam_vit_b": SamSpec("sam_vit_b"),
    "sam_vit_l": SamSpec("sam_vit_l"),
    "sam_vit_h": SamSpec("sam_vit_h"),
    "slimsam_50": SamSpec("slimsam_50"),
    "slimsam_77": SamSpec("slimsam_77"),
    **{
        f"{release}_hiera_{size}": SamSpec(f"sam2_hiera_{size}", thresholds=SAM_2_THRESHOLDS, family=Sam2)
        for release in ("sam2", "sam2.1")
        for size in SAM2_SIZES
    },
    "repvit_sam": SamSpec("repvit_sam"),
    **{name: SamSpec(name, family=SamHq) for name in SAM_HQ_MODELS},
    "edge_sam": SamSpec("edge_sam", family=EdgeSam),
    "edge_sam_3x": SamSpec("edge_sam", family=EdgeSam),
    "tinysam": SamSpec("tiny_vit_5m", family=TinySam),
    **{name: _efficient_sam(name) for name in ("efficient_sam_vitt", "efficient_sam_vits")},
    "medsam_vit_b": SamSpec("sam_vit_b"),
    **{name: SamSpec(MICRO_SAM_ENCODERS[name.split("_")[3]]) for name in MICRO_SAM_FILES},
    **{
        f"sam2_{encoder}": SamSpec(encoder, thresholds=SAM_2_THRESHOLDS, family=Sam2)
        for encoder in _PYRAMIDS
        if encoder not in ("tiny_vit_mini", "mini_conv", "micro_conv")
    },
    "tiny_vit_11m": SamSpec("tiny_vit_11m"),
    "tiny_vit_21m": SamSpec("tiny_vit_21m"),
    "efficientvit_l0": SamSpec("efficientvit_l0"),
    "efficientvit_l1": SamSpec("efficientvit_l1"),
    "efficientvit_l2": SamSpec("efficientvit_l2"),
    **{name: SamSpec(name, family=EfficientViTSam) for name in EFFICIENTVIT_SAM_MODELS},
    "repvit": SamSpec("repvit"),
    "mini": _mini("tiny_vit_mini"),
    "sam_vit_mini": _mini("sam_vit_mini"),
    "sam2_mini": _mini("sam2_hiera_mini", thresholds=SAM_2_THRESHOLDS, family=Sam2),
    "mini_conv": _small("mini_conv"),
    "mini_conv_slim": _small("mini_conv_slim"),
    "micro_conv": _small("micro_conv"),
    "sam2_mini_conv": _small("mini_conv", family=Sam2),
    "sam2_micro_conv": _small("micro_conv", family=Sam2),
}
"""Models by name, beside ``timm/<backbone>``, which has the full size."""


def list_models(pretrained: bool = False) -> list[str]:
    """Return the names that ``build_sam`` accepts, beside ``timm/<backbone>`` for any backbone of timm.

    Encoders that register themselves are among them, each as a SAM of full size; see ``register_encoder``.

    Args:
        pretrained: only the models with published weights, whose names ``load_pretrained`` accepts; first those that
            ship with the package, the others are downloaded by ``mobilesamv2 download NAME``.

    Example:
        >>> list_models(pretrained=True)[:5]
        ['mini_conv', 'mobile_sam', 'sam_vit_b', 'sam_vit_l', 'sam_vit_h']
    """
    return [*shipped_models(), *MODEL_FILES] if pretrained else [*MODELS, *_registered_models()]


def list_encoders(family: type[Sam] = Sam) -> list[str]:
    """Return the names of a family's image encoders, beside ``timm/<backbone>``, which SAM-HQ does not take."""
    encoders = _encoders_of(family)
    return [*encoders.by_name, *encoders.registered()]


def build_sam(
    name: str,
    checkpoint: str | Path | Sequence[str | Path] | None = None,
    *,
    encoder: str | None = None,
    backbone_checkpoint: str | Path | None = None,
    image_size: Count | None = None,
    allow_partial: bool = True,
    prefix: str | None = None,
) -> Sam:
    """Build a model by name, in eval mode on the CPU.

    Args:
        name: one of ``list_models()``, or ``timm/<backbone>``.
        checkpoint: a weight file, or several that together contain the model, loaded in order; None leaves random
            weights.
        encoder: image encoder to use instead of the model's own: one of the model's family, see ``list_encoders``, or
            ``timm/<backbone>``.
        backbone_checkpoint: pretrained weights of the encoder's backbone, loaded before ``checkpoint``: ``timm``
            downloads timm's, a file has them as timm or the backbone's authors publish them; see ``load_backbone``.
        image_size: S, pixels, a multiple of 32; None for that of the weight files, if they state one (see
            ``save_weights``), else the registry's.
        allow_partial: warn, instead of raising, if the files leave a part of the model without weights.
        prefix: of the model's keys where a file holds several models, a student and its teacher for example; see
            ``load_weights``.

    Returns:
        The model. Its ``thresholds`` are those of the weight file of its mask decoder, if that has some, else the
        registry's.

    Raises:
        ValueError: if a name is unknown, the list of files is empty, a file does not fit (see ``load_weights``), or
            the image size is no multiple of 32, above ``MAX_IMAGE_SIZE``, or not the same in all files.
        FileNotFoundError: if a weight file does not exist.
        ConnectionError: if timm's weights of the backbone can't be downloaded.
    """
    spec = _spec(name)
    encoder_name = encoder or spec.encoder
    files = [] if checkpoint is None else [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    side = choose_image_size(files, image_size, spec.image_size)
    if side % 32 or not 32 <= side <= MAX_IMAGE_SIZE:
        raise ValueError(f"image_size must be a multiple of 32 pixels from 32 to {MAX_IMAGE_SIZE}, got {side}.")
    image_encoder = build_encoder(encoder_name, side, spec.embed_dim, spec.family)
    sam = spec.family(
        image_encoder,
        image_size=side,
        embed_dim=spec.embed_dim,
        decoder_heads=spec.decoder_heads,
        decoder_mlp_dim=spec.decoder_mlp_dim,
        name=name,
        encoder_name=encoder_name,
        thresholds=spec.thresholds,
    ).eval()
    if backbone_checkpoint is not None:
        load_backbone(image_encoder, backbone_checkpoint)
    if checkpoint is not None and not files:
        raise ValueError(
            f"The checkpoint of {name} must name at least one file, got an empty list; null leaves random weights."
        )
    loaded: set[str] = set()
    for file in files:
        parts = load_weights(sam, file, prefix)
        loaded |= set(parts)
        if "mask_decoder" in parts:
            sam.thresholds = read_thresholds(file) or spec.thresholds
    missing = [part for part in PARTS if part not in loaded]
    if files and missing:
        message = (
            f"{', '.join(map(str, files))} leave {' and '.join(missing)} of {name} with random weights; "
            "add the file that contains the rest: checkpoint=[first, second]."
        )
        if not allow_partial:
            raise ValueError(message)
        warnings.warn(message, stacklevel=2)
    return sam


def load_sam(path: str | Path) -> Sam:
    """Build the model that a safetensors file of this project or of transformers holds, in eval mode.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file's metadata do not name its model, or name one that is not known, or it is a ``SamModel``
            of transformers that is not in the registry or whose ``config.json``, beside it, states another model.
    """
    if (found := identify_transformers(Path(path))) is not None:
        sam = build_sam(found[0], path, image_size=found[1], allow_partial=False)
        check_config(sam, Path(path).parent)
        return sam
    metadata = read_metadata(path)
    try:
        _find_encoder(metadata["encoder"], _spec(metadata["name"]).family)
    except ValueError as error:
        raise ValueError(f"The metadata of {path} must name a model of this version of mobilesamv2. {error}") from error
    return build_sam(metadata["name"], path, encoder=metadata["encoder"], allow_partial=False)


def build_encoder(name: str, image_size: int, out_channels: int, family: type[Sam] = Sam) -> ImageEncoder:
    """Build an image encoder by name, with random weights.

    Args:
        name: one of ``list_encoders(family)``, or ``timm/<backbone>``.
        image_size: S, pixels.
        out_channels: C.
        family: of the model that the encoder is for: SAM, SAM 2 or SAM-HQ.

    Raises:
        ValueError: if the name is unknown or of another family, or the backbone does not fit (see ``TimmBackbone`` and
            ``TimmPyramid``).
    """
    return _find_encoder(name, family)(image_size=image_size, out_channels=out_channels)


def _encoders_of(family: type[Sam]) -> EncoderSet:
    """Return the image encoders of a family: its own, or those of the class that it is derived from."""
    return next(ENCODER_SETS[kind] for kind in family.__mro__ if kind in ENCODER_SETS)


def _find_encoder(name: str, family: type[Sam]) -> Callable[..., ImageEncoder]:
    """Return how to build an image encoder by name."""
    encoders = _encoders_of(family)
    if name.startswith(TIMM_PREFIX):
        require_timm_model(name.removeprefix(TIMM_PREFIX))
        if encoders.from_timm is not None:
            return partial(encoders.from_timm, name.removeprefix(TIMM_PREFIX))
    if (build := encoders.find(name)) is not None:
        return build
    if name.startswith(TIMM_PREFIX) or any(others.find(name) for others in ENCODER_SETS.values()):
        of_timm = "" if encoders.from_timm is None else " and timm/<any backbone of timm that fits>"
        raise ValueError(
            f"The image encoder '{name}' is of another family than the model, {family.__name__}, which takes "
            f"{', '.join(list_encoders(family))}{of_timm}."
        )
    raise ValueError(_unknown("image encoder", name, list_encoders(family)))


def _spec(name: str) -> SamSpec:
    if name in MODELS:
        return MODELS[name]
    if name.startswith(TIMM_PREFIX):
        return SamSpec(name)
    registered = _registered_models()
    if name not in registered:
        raise ValueError(_unknown("model", name, list_models()))
    return registered[name]


def _registered_models() -> dict[str, SamSpec]:
    """Return models of full size by the name of the encoder that registers itself, unless a model has that name."""
    return {name: SamSpec(name) for name in ENCODER_SETS[Sam].registered() if name not in MODELS}


def _unknown(kind: str, name: str, known: list[str]) -> str:
    near = f" Did you mean '{TIMM_PREFIX}{name}'?" if timm.is_model(name) else did_you_mean(name, known)
    available = f"Available: {', '.join(known)} and timm/<any backbone of timm>."
    return f"There is no {kind} '{name}'.{near} {available} {HOW_TO_REGISTER}"
