"""Prompt heads and their files: build one for a model, load it with the encoder checked, write it, run it on images."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mobilesamv2.checkpoints import METADATA_KEY, load_module, weights_sha256
from mobilesamv2.files import atomic_write
from mobilesamv2.model_zoo import PROMPT_HEAD_ENDING, require_weights
from mobilesamv2.models.object_detector import ObjectDetector, build_detector
from mobilesamv2.models.prompt_head import PromptHead
from mobilesamv2.models.sam import MAX_IMAGE_SIZE, Sam
from mobilesamv2.ranges import Count
from mobilesamv2.segany import SegAny

NAME = "prompt_head"
"""What the metadata of a head's file have under "name", where those of a model have the model's."""

SETTINGS: dict[str, type] = {
    "level_channels": list,
    "image_size": int,
    "keep_aspect_ratio": bool,
    "width": int,
    "finest_stride": int,
    "encoder_name": str,
    "encoder_sha256": str,
}
"""Arguments of ``PromptHead`` that its file has, and their types."""


def prompt_head_file(model: str | None) -> str:
    """Return the name under which the head of a model ships, or is looked up in the folders of weights."""
    return f"{model}{PROMPT_HEAD_ENDING}".replace("/", "_")


def build_prompt_head(
    sam: Sam,
    checkpoint: str | Path | None = None,
    width: Count = 128,
    finest_stride: Literal[4, 8, 16] = 8,
) -> PromptHead:
    """Build a prompt head for a model, in eval mode on the CPU.

    A head for an encoder of another name, or of other weights, is built with a warning: the embeddings of a distilled
    student may be close to its teacher's. Of a copy for inference, whose weights are folded, only the encoder's name is
    compared.

    Args:
        sam: the model whose image embeddings it reads.
        checkpoint: a file that ``save_prompt_head`` wrote; None leaves random weights.
        width: see ``PromptHead``; a checkpoint has its own.
        finest_stride: likewise.

    Raises:
        FileNotFoundError: if ``checkpoint`` does not exist.
        ValueError: if it is no prompt head, or one for embeddings of another shape or image size than the model's.
    """
    if checkpoint is None:
        digest = weights_sha256(sam.image_encoder)
        settings = _embedding_of(sam) | {"encoder_name": sam.encoder_name, "encoder_sha256": digest}
        return PromptHead(**settings, width=width, finest_stride=finest_stride).eval()
    head = load_prompt_head(checkpoint)
    expected = _embedding_of(sam)
    differences = [
        f"{name} {getattr(head, name)} instead of {value}"
        for name, value in expected.items()
        if getattr(head, name) != value
    ]
    if differences:
        raise ValueError(
            f"{checkpoint} is a prompt head for {head.encoder_name}, whose embeddings differ from those of "
            f"{sam.encoder_name}: {'; '.join(differences)}. Choose the head of this model, or train one: "
            "task=train_prompt_head."
        )
    is_same = head.encoder_name == sam.encoder_name and (
        sam.is_for_inference or head.encoder_sha256 == weights_sha256(sam.image_encoder)
    )
    if not is_same:
        warnings.warn(
            f"{checkpoint} was trained on the embeddings of another image encoder ({head.encoder_name}, weights "
            f"{str(head.encoder_sha256)[:8]}) than this one ({sam.encoder_name}); its boxes may be wrong.",
            stacklevel=2,
        )
    return head


def _embedding_of(sam: Sam) -> dict[str, Any]:
    """Return what a head depends on of a model's embeddings, by the names of its arguments."""
    return {
        # SAM-HQ's finer features, which lie in the cells in another order, are not read
        "level_channels": sam.level_channels if sam.packs_levels else sam.level_channels[:1],
        "image_size": sam.image_size,
        "keep_aspect_ratio": sam.resizing.keep_aspect_ratio,
    }


def load_prompt_head(path: str | Path) -> PromptHead:
    """Load a prompt head, whatever model it is for, in eval mode on the CPU.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is no prompt head, or its weights do not fit or are not finite.
    """
    path = Path(path)
    require_weights(path)
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})[METADATA_KEY])
        if record["name"] != NAME:
            raise ValueError(f"it is of {record['name']}")
        settings = {name: record[name] for name in SETTINGS}
        if not all(type(settings[name]) is kind for name, kind in SETTINGS.items()):
            raise ValueError(f"one of {', '.join(SETTINGS)} has another type")
        if not all(type(n) is int and n > 0 for n in settings["level_channels"]) or not settings["level_channels"]:
            raise ValueError(f"level_channels are {settings['level_channels']}")
        if not 0 < settings["image_size"] <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size is {settings['image_size']}")
        with torch.device("meta"):  # settings that do not fit the weights take no memory
            head = PromptHead(**settings)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{path} must be a prompt head, a safetensors file that task=train_prompt_head wrote: {error}."
        ) from error
    load_module(head, path)
    return head.eval()


def save_prompt_head(head: PromptHead, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a prompt head as safetensors, with its settings and its image encoder as JSON in the metadata.

    Args:
        head: the head.
        path: of the file.
        dtype: of the floats on disk, ``torch.float16`` for half the bytes; None keeps the head's.

    Raises:
        ValueError: if the head does not know its image encoder, as one from ``build_prompt_head`` does.
        OSError: if the file can't be written.
    """
    if head.encoder_name is None or head.encoder_sha256 is None:
        raise ValueError("The prompt head must know its image encoder to be saved; build it by build_prompt_head(sam).")
    record = {"name": NAME} | {name: getattr(head, name) for name in SETTINGS}
    state = {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()}
    if dtype is not None:
        state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    with atomic_write(path) as partial:
        save_file(state, partial, metadata={METADATA_KEY: json.dumps(record)})


class EncodedDetector(nn.Module):
    """A prompt head with the model whose embeddings it reads, as a detector of images.

    For what has no embedding at hand; ``SegEvery`` has one and hands it to the head itself.

    Args:
        sam: the model.
        head: the head.
    """

    architecture = NAME

    def __init__(self, sam: Sam, head: PromptHead) -> None:
        super().__init__()
        self.sam = sam
        self.head = head

    def encode(self, image: np.ndarray) -> Tensor:
        """Return the embedding (1, C, S/16, S/16) of an image, RGB uint8 (H, W, 3)."""
        return SegAny(self.sam).encode([image])

    def detect(
        self,
        image: np.ndarray,
        *,
        confidence: float = 0.05,
        nms_iou: float = 0.7,
        max_boxes: int = 320,
        snap: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Encode an image and find its boxes; see ``prompts.Detector``."""
        settings: dict[str, Any] = {
            "confidence": confidence,
            "nms_iou": nms_iou,
            "max_boxes": max_boxes,
            "snap": snap,
        }
        return self.head.detect_in_embedding(self.encode(image), (image.shape[0], image.shape[1]), **settings)


def load_detector(path: str | Path, sam: Sam, image_size: int | None = None) -> ObjectDetector | PromptHead:
    """Load what a file holds, a prompt head (.safetensors) or an ultralytics detector (.pt), in eval mode on the CPU.

    Args:
        path: of the file.
        sam: the model whose embeddings a prompt head reads.
        image_size: longest side of the input of an ultralytics detector, pixels; None as in ``build_detector``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is neither, or a head that does not fit the model.
    """
    if Path(path).suffix == ".safetensors":
        return build_prompt_head(sam, path)
    return build_detector(checkpoint=path, image_size=image_size)
