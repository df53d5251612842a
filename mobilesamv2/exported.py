"""Exported graphs, read back: their metadata, their prompts, and an encoder that takes the place of torch's."""

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

BACKGROUND, FOREGROUND, PADDING, UPPER_LEFT, LOWER_RIGHT = 0, 1, -1, 2, 3
"""Labels of the points that the exported decoder takes; those of SAM's own ONNX decoder."""


def require_export_packages() -> None:
    """Nothing, if the packages of the extra ``export`` are there.

    Raises:
        ImportError: naming those that are not.
    """
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX files are written and read by packages that are not installed: {', '.join(missing)}. "
            "pip install 'mobilesamv2[export]' installs them."
        )


def open_session(path: str | Path) -> Any:
    """An ``onnxruntime.InferenceSession`` of a graph, on the CPU with torch's number of threads.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: onnxruntime is not installed.
        ValueError: onnxruntime can't read the file.
    """
    require_export_packages()
    import onnxruntime

    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}; mobilesamv2 export writes one.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of what it optimises
    options.intra_op_num_threads = torch.get_num_threads()  # so that times compare
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own, which have no class in common
        raise ValueError(f"onnxruntime can't read {path}: {error}") from error


def read_export_metadata(session: Any) -> dict[str, Any]:
    """What an exported graph says of its model: ``model``, ``image_size``, ``weights_sha256`` and the like.

    Raises:
        ValueError: the graph is not one that this project wrote.
    """
    texts = session.get_modelmeta().custom_metadata_map
    if "mobilesamv2" not in texts:
        raise ValueError("The graph holds no metadata of mobilesamv2; mobilesamv2 export writes graphs that do.")
    return json.loads(texts["mobilesamv2"])


def labelled_points(
    points: np.ndarray | None = None, labels: np.ndarray | None = None, boxes_xyxy: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """N prompts as the exported decoder takes them: all are points, and the labels tell their kinds.

    Args:
        points: (N, P, 2) xy, pixels of the model's input.
        labels: (N, P), 1 foreground, 0 background, -1 padding; None makes all foreground.
        boxes_xyxy: (N, 4), pixels of the model's input; they may come beside points.

    Returns:
        points (N, ., 2) float32 and labels (N, .) int64: a box adds its two corners, and prompts without a box end
        with a point that is none.

    Source: SAM's ONNX decoder has the same convention.
    """
    if boxes_xyxy is not None:
        more, kinds = np.reshape(boxes_xyxy, (-1, 2, 2)), (UPPER_LEFT, LOWER_RIGHT)
    elif points is not None:
        more, kinds = np.zeros((len(points), 1, 2)), (PADDING,)
    else:
        raise ValueError("Nothing to segment: give points or boxes_xyxy.")
    more_labels = np.tile(np.array(kinds), (len(more), 1))
    if points is not None:
        labels = np.full(np.shape(points)[:2], FOREGROUND) if labels is None else labels
        more, more_labels = np.concatenate([points, more], 1), np.concatenate([labels, more_labels], 1)
    return more.astype(np.float32), more_labels.astype(np.int64)


class OnnxEncoder(nn.Module):
    """An exported image encoder in the place of a model's own, run by onnxruntime on the CPU.

    Args:
        path: ``encoder.onnx`` or ``encoder.int8.onnx``.
        sam: the model that it was exported from, not a copy for inference.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: onnxruntime is not installed.
        ValueError: it is no exported encoder, or was exported from another model or from other weights.
    """

    def __init__(self, path: str | Path, sam: Sam) -> None:
        super().__init__()
        self.session = open_session(path)
        if [node.name for node in self.session.get_inputs()] != ["image"]:
            raise ValueError(f"{path} is no exported image encoder: its input is not 'image' alone.")
        told = read_export_metadata(self.session)
        ours = {"model": sam.name, "encoder": sam.encoder_name, "weights_sha256": weights_sha256(sam)}
        differing = [f"{key} {told.get(key)} for {value}" for key, value in ours.items() if told.get(key) != value]
        if differing:
            raise ValueError(
                f"{path} was exported from another model than the one whose decoder follows it: "
                f"{'; '.join(differing)}. Give the model and checkpoint that it was exported from, or export it anew."
            )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images to (B, C, S/16, S/16) image embeddings, one after the other."""
        pixels = images.detach().float().cpu().numpy()
        embeddings = [self.session.run(None, {"image": pixels[i : i + 1]})[0] for i in range(len(pixels))]
        return torch.from_numpy(np.concatenate(embeddings)).to(images)
