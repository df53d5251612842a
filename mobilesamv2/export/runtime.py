"""Runtime of exported graphs: sessions, metadata, prompts, and an encoder that replaces torch's."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilesamv2.checkpoints import weights_sha256
from mobilesamv2.models.sam import Sam
from mobilesamv2.prompts.arguments import check_prompts
from mobilesamv2.structures import PointLabel

UPPER_LEFT, LOWER_RIGHT = 2, 3
"""Labels of box corners, which the exported decoder takes beside ``PointLabel``, as SAM's own ONNX decoder does."""

DECODER_INPUTS = ["image_embedding", "points", "labels", "mask_input", "has_mask_input"]
"""Inputs of the decoder of our signature."""


def require_export_packages() -> None:
    """Check that the packages of the extra ``export`` are installed.

    Raises:
        ImportError: if one is not.
    """
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX files require packages that are not installed: {', '.join(missing)}. "
            "Install them with: pip install 'mobilesamv2[export]'"
        )


def open_session(path: str | Path) -> Any:
    """Open a graph as an ``onnxruntime.InferenceSession``, on the CPU with torch's number of threads.

    Raises:
        FileNotFoundError: if the file does not exist.
        ImportError: if onnxruntime is not installed.
        ValueError: if onnxruntime can't read the file.
    """
    require_export_packages()
    import onnxruntime

    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}; mobilesamv2 export writes one.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; it warns about its own optimizations
    options.intra_op_num_threads = torch.get_num_threads()  # for comparable times
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no base class in common
        raise ValueError(f"onnxruntime can't read {path}: {error}") from error


def read_export_metadata(session: Any, name: str | Path = "the graph") -> dict[str, Any]:
    """Return the metadata of an exported graph: ``model``, ``image_size``, ``weights_sha256`` and others.

    Args:
        session: of the graph.
        name: of the graph in error messages, its path for example.

    Raises:
        ValueError: if the graph was not written by this project, or its metadata are no JSON object.
    """
    try:
        metadata = session.get_modelmeta().custom_metadata_map
        content = json.loads(metadata["mobilesamv2"])
    except KeyError as error:
        raise ValueError(
            f"{name} must have metadata of mobilesamv2, got none; write it with mobilesamv2 export."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The metadata of {name} are not valid JSON: {error}; export it again.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"The metadata of {name} must be a JSON object, got {type(content).__name__}; export it again."
        )
    return content


def labelled_points(
    points: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    boxes_xyxy: np.ndarray | None = None,
    pad_boxes: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Convert N prompts to the exported decoder's inputs, in which all are points whose labels encode their kind.

    Args:
        points: (N, P, 2) xy, pixels of the model's input.
        labels: (N, P), 1 foreground, 0 background, -1 padding; None is foreground for all.
        boxes_xyxy: (N, 4), pixels of the model's input; may be combined with points.
        pad_boxes: end prompts with a box with a padding point too, as SAM 2's do.

    Returns:
        points (N, P', 2) float32 and labels (N, P') int64: a box appends its two corners, and prompts without a box
        end with a padding point.

    Raises:
        ValueError: if there are neither points nor boxes, or they are none that ``SegAny.predict`` takes: of other
            shapes, not finite, labels of .5 and so on.

    Source: SAM's ONNX decoder has the same convention.
    """
    given = boxes_xyxy if points is None else points
    if given is None:
        raise ValueError("There must be points or boxes_xyxy, got neither.")
    if np.shape(given)[:1] == (0,):  # no object was found, for example
        tokens = (0 if points is None else np.shape(points)[1]) + (1 if boxes_xyxy is None else 2 + int(pad_boxes))
        return np.zeros((0, tokens, 2), np.float32), np.zeros((0, tokens), np.int64)
    prompts, _ = check_prompts(points, labels, boxes_xyxy, None, 0)
    assert prompts is not None  # there is no mask
    if prompts.boxes_xyxy is not None:
        extra, kinds = prompts.boxes_xyxy.numpy().reshape(-1, 2, 2), (UPPER_LEFT, LOWER_RIGHT)
    else:
        extra, kinds = np.zeros((len(prompts), 1, 2)), (PointLabel.PADDING,)
    extra_labels = np.tile(np.array(kinds), (len(extra), 1))
    if prompts.points is not None and prompts.labels is not None:
        extra = np.concatenate([prompts.points.numpy(), extra], 1)
        extra_labels = np.concatenate([prompts.labels.numpy(), extra_labels], 1)
    if boxes_xyxy is not None and pad_boxes:
        extra = np.concatenate([extra, np.zeros((len(extra), 1, 2))], 1)
        extra_labels = np.concatenate([extra_labels, np.full((len(extra), 1), PointLabel.PADDING)], 1)
    return extra.astype(np.float32), extra_labels.astype(np.int64)


def decoder_inputs(
    image_embedding: np.ndarray,
    points: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    boxes_xyxy: np.ndarray | None = None,
    mask_input: np.ndarray | None = None,
    pad_boxes: bool = False,
) -> dict[str, np.ndarray]:
    """Convert N prompts on B images to the inputs of the exported decoder of our signature.

    In order, each image serves M/B masks and each mask N/M prompts, so that M must divide N, and B must divide M.

    Args:
        image_embedding: (B, C, S/16, S/16).
        points: as of ``labelled_points``.
        labels: as of ``labelled_points``.
        boxes_xyxy: as of ``labelled_points``.
        mask_input: (M, 1, S/4, S/4) low-res logits of earlier predictions, which may be the only prompt; None is none.
        pad_boxes: as of ``labelled_points``; ``pad_boxes`` in the metadata.

    Raises:
        ValueError: if there is no prompt, one is none that ``labelled_points`` takes, the masks have another shape or
            are not finite, or images and masks can't be shared evenly.
    """
    num_images, side = len(image_embedding), 4 * image_embedding.shape[-1]
    has_mask = mask_input is not None
    masks = np.zeros((num_images, 1, side, side)) if mask_input is None else np.asarray(mask_input)
    if masks.ndim != 4 or masks.shape[1:] != (1, side, side):
        raise ValueError(f"mask_input must have shape (M, 1, {side}, {side}), got {masks.shape}.")
    if not np.isfinite(masks).all():
        raise ValueError("mask_input must be finite, got NaN or infinity.")
    if has_mask and boxes_xyxy is None and (points is None or np.shape(points)[1:2] == (0,)):
        points, labels = np.zeros((len(masks), 0, 2), np.float32), np.zeros((len(masks), 0), np.int64)
    else:
        points, labels = labelled_points(points, labels, boxes_xyxy, pad_boxes)
    if not num_images or not len(masks) or len(masks) % num_images or len(points) % len(masks):
        raise ValueError(
            "Each image must have the same number of masks, and each mask the same number of prompts, got "
            f"{num_images} images, {len(masks)} masks and {len(points)} prompts."
        )
    return {
        "image_embedding": image_embedding.astype(np.float32),
        "points": points,
        "labels": labels,
        "mask_input": masks.astype(np.float32),
        "has_mask_input": np.full(len(masks), has_mask, np.float32),
    }


class OnnxDecoder:
    """Exported decoder of our signature, run by onnxruntime on the CPU.

    Args:
        path: ``decoder.onnx`` or ``decoder.fp16.onnx``.

    Attributes:
        metadata: the model's, see ``read_export_metadata``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ImportError: if onnxruntime is not installed.
        ValueError: if it is no decoder of our signature, or one of a version that took no mask inputs.
    """

    def __init__(self, path: str | Path) -> None:
        self.session = open_session(path)
        self.metadata = read_export_metadata(self.session, path)
        require_decoder(self.session, path)

    def __call__(
        self,
        image_embedding: np.ndarray,
        points: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        boxes_xyxy: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode N prompts, in pixels of the model's input; arguments as of ``decoder_inputs``.

        Returns:
            low-res logits (N, 4, S/4, S/4) and predicted IoU (N, 4): of the single mask, then of the three.

        Raises:
            ValueError: if a prompt has a mask, a background point or more points than the model takes, and as
                ``decoder_inputs``.
        """
        pad_boxes = self.metadata.get("pad_boxes", False)
        inputs = decoder_inputs(image_embedding, points, labels, boxes_xyxy, mask_input, pad_boxes)
        self._require_taken(inputs)
        logits, predicted_iou = self.session.run(None, inputs)
        return logits, predicted_iou

    def _require_taken(self, inputs: dict[str, np.ndarray]) -> None:
        """Check that the model, as its metadata say, takes prompts of these kinds."""
        model, kinds = self.metadata.get("model"), inputs["labels"]
        if inputs["has_mask_input"].any() and not self.metadata.get("takes_masks", True):
            raise ValueError(f"{model} takes no mask as a prompt, got a mask_input: leave it out.")
        if (kinds == PointLabel.BACKGROUND).any() and not self.metadata.get("takes_background", True):
            raise ValueError(f"{model} takes no background points, got a label 0: leave them out.")
        limit, number = (
            self.metadata.get("max_points"),
            int((np.arange(1, 1 + kinds.shape[1]) * (kinds >= 0)).max(initial=0)),
        )
        if limit is not None and number > limit:
            raise ValueError(
                f"A prompt of {model} must have at most {limit} points, of which a box is two, got {number}."
            )


def require_decoder(session: Any, path: str | Path) -> None:
    """Check that a graph is a decoder of our signature, with mask inputs.

    Raises:
        ValueError: if it is not.
    """
    found = [node.name for node in session.get_inputs()]
    if found == DECODER_INPUTS:
        return
    if found == DECODER_INPUTS[:3]:
        raise ValueError(
            f"{path} takes no mask inputs: an earlier version wrote it. Export it again with mobilesamv2 export."
        )
    raise ValueError(
        f"{path} must be an exported decoder, whose inputs are {', '.join(DECODER_INPUTS)}, got {', '.join(found)}. "
        "Export it without --signature sam."
    )


class OnnxEncoder(nn.Module):
    """Exported image encoder that replaces a model's own, run by onnxruntime on the CPU.

    Args:
        path: ``encoder.onnx``, ``encoder.fp16.onnx`` or ``encoder.int8.onnx``, of our signature.
        sam: the model that it was exported from, not a copy for inference.

    Raises:
        FileNotFoundError: if the file does not exist.
        ImportError: if onnxruntime is not installed.
        ValueError: if it is not an exported encoder, or was exported from another model or other weights.
    """

    def __init__(self, path: str | Path, sam: Sam) -> None:
        super().__init__()
        self.session = open_session(path)
        inputs = [node.name for node in self.session.get_inputs()]
        if inputs != ["image"]:
            raise ValueError(
                f"{path} must be an exported image encoder, whose only input is 'image', got {', '.join(inputs)}. "
                "Export it without --signature sam."
            )
        exported = read_export_metadata(self.session, path)
        expected = {"model": sam.name, "encoder": sam.encoder_name, "weights_sha256": weights_sha256(sam)}
        differing = [
            f"{key} must be {value}, got {exported.get(key)}"
            for key, value in expected.items()
            if exported.get(key) != value
        ]
        if differing:
            raise ValueError(
                f"{path} was exported from another model than the decoder's: {'; '.join(differing)}. "
                "Use the model and checkpoint that it was exported from, or export it again."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images (B, 3, S, S) to image embeddings (B, C, S/16, S/16)."""
        (embeddings,) = self.session.run(None, {"image": images.detach().float().cpu().numpy()})
        return torch.from_numpy(embeddings).to(images)
