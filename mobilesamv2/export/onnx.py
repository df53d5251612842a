"""Export to ONNX: a graph of the image encoder, and one of the decoder for any number of prompts.

One decoder serves SegAny and SegEvery: for SegEvery its input is a batch of a grid's points or a detector's boxes, and
one embedding. The postprocessing (filters, masks at the image's size, NMS) is a few lines in any language and not part
of a graph: resize the logits bilinearly to S x S, crop to the resized image, resize to the original size, apply the
mask threshold; the stability score is the number of pixels above 1 over the number above -1.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilesamv2.checkpoints import weights_sha256
from mobilesamv2.export.io_doc import DECODER_IO_DOC, ENCODER_IO_DOC, SAM_2_IO_DOC
from mobilesamv2.export.runtime import labelled_points, open_session, require_export_packages
from mobilesamv2.files import atomic_write
from mobilesamv2.masks import MASK_THRESHOLD
from mobilesamv2.models.sam import Sam
from mobilesamv2.transforms import PIXEL_MEAN, PIXEL_STD, preprocessing

ENCODER_FILE, DECODER_FILE = "encoder.onnx", "decoder.onnx"

TOLERANCE = 1e-3
"""Largest accepted difference between a graph and torch, as a share of the largest value."""

MAX_GRAPH_BYTES = 1_900_000_000
"""Largest size of weights inside a graph: protobuf allows 2 GiB. Larger ones (SAM ViT-H) go to a separate file."""


class DecoderGraph(nn.Module):
    """Prompt encoder and mask decoder: prompts of all kinds and an image embedding to all four masks.

    Args:
        sam: the model.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, image_embedding: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return low-res logits (N, 4, S/4, S/4) and predicted IoU (N, 4) for points (N, P, 2) with labels (N, P)."""
        sparse = self.sam.prompt_encoder.embed_labelled(points, labels)
        return self.sam.mask_decoder.decode_all_masks(self.sam.image_context(image_embedding), sparse)


def export_onnx(sam: Sam, folder: str | Path, opset: int | None = None) -> list[Path]:
    """Write a model's ``encoder.onnx`` and ``decoder.onnx``, with a description of their inputs and outputs inside.

    Their metadata contain the result of ``export_metadata`` as JSON, under ``mobilesamv2``.

    Args:
        sam: the model, in eval mode on the CPU; batch norms are folded in a copy.
        folder: created if missing; files of these names are overwritten.
        opset: ONNX opset; None is the one that the installed torch recommends.

    Returns:
        The two files. Weights of more than 1.9 GB are in a separate file, ``<graph>.data``.

    Raises:
        ImportError: if a package of the extra ``export`` is not installed.
        ValueError: if the model is in training mode, a copy for inference or not on the CPU, or torch can't write the
            opset.
        OSError: if a file can't be written.
    """
    folder = Path(folder)
    return [export_encoder(sam, folder / ENCODER_FILE, opset), export_decoder(sam, folder / DECODER_FILE, opset)]


def export_encoder(sam: Sam, path: Path, opset: int | None = None) -> Path:
    """Write the image encoder only; arguments and errors are those of ``export_onnx``."""
    _require_exportable(sam)
    encoder, image = sam.for_inference().image_encoder, _image(sam)
    module: Any
    for module in encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # timm's; when decomposed for ONNX, fused attention has other strides
    with torch.no_grad():
        encoder(image)  # TinyViT caches its attention biases in eval mode, which must not happen while tracing
    program = _graph(encoder, {"image": image}, ["image_embedding"], {}, opset)
    return _save(program, path, ENCODER_IO_DOC, sam, encoder)


def export_decoder(sam: Sam, path: Path, opset: int | None = None) -> Path:
    """Write prompt encoder and mask decoder only; arguments and errors are those of ``export_onnx``."""
    _require_exportable(sam)
    grid = sam.prompt_encoder.grid
    inputs = {
        "image_embedding": torch.zeros(1, sam.embedding_channels, grid, grid),
        "points": torch.zeros(2, 3, 2),
        "labels": torch.ones(2, 3, dtype=torch.int64),
    }
    axes = {"points": {0: "N", 1: "P"}, "labels": {0: "N", 1: "P"}}
    program = _graph(DecoderGraph(sam).eval(), inputs, ["low_res_logits", "predicted_iou"], axes, opset)
    return _save(program, path, DECODER_IO_DOC, sam, sam.mask_decoder)


def _require_exportable(sam: Sam) -> None:
    require_export_packages()
    if sam.is_for_inference:
        raise ValueError("The model must not be a copy for inference; export the model that it was copied from.")
    if sam.training:
        raise ValueError("The model must be in eval mode to be exported: call sam.eval() first.")
    if sam.device.type != "cpu":
        raise ValueError(f"The model must be on the CPU to be exported, got {sam.device}: call sam.cpu() first.")


def export_metadata(sam: Sam) -> dict[str, Any]:
    """Return the metadata that the graphs contain about their model, as plain values."""
    return {
        "model": sam.name,
        "encoder": sam.encoder_name,
        "image_size": sam.image_size,
        "pixel_mean": PIXEL_MEAN,
        "pixel_std": PIXEL_STD,
        "mask_threshold": MASK_THRESHOLD,
        "preprocessing": preprocessing(sam.keep_aspect_ratio),
        "keep_aspect_ratio": sam.keep_aspect_ratio,
        "pad_boxes": sam.prompt_encoder.pad_boxes,
        "weights_sha256": weights_sha256(sam),
    }


def _image(sam: Sam) -> Tensor:
    return torch.zeros(1, 3, sam.image_size, sam.image_size)


def _graph(
    module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], axes: dict[str, dict[int, str]], opset: int | None
) -> Any:
    """Return a torch.onnx.ONNXProgram.

    The exporter is the one based on torch.export: the default since torch 2.9, and the only one that keeps N and P
    dynamic in the decoder, whose shapes the older tracing exporter would store as constants.
    """
    with _silenced_exporter():
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=tuple(axes.get(name, {}) for name in inputs),
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    written = program.model.opset_imports[""]
    if opset is not None and written != opset:
        raise ValueError(
            f"The opset of this model must be {written} with torch {torch.__version__}, which can't write {opset}."
        )
    return program


def _save(program: Any, path: Path, io_doc: str, sam: Sam, module: nn.Module) -> Path:
    from onnxscript import ir

    program.model.doc_string = io_doc if sam.keep_aspect_ratio else f"{io_doc} {SAM_2_IO_DOC}"
    program.model.metadata_props["mobilesamv2"] = json.dumps(export_metadata(sam))
    weights = sum(value.nbytes for value in module.state_dict().values())
    data_file, is_large = path.with_name(f"{path.name}.data"), weights > MAX_GRAPH_BYTES
    if is_large:
        path.unlink(missing_ok=True)  # on failure, an older graph would be left beside the weights of this model
    with atomic_write(path) as partial:
        ir.save(program.model, partial, external_data=data_file.name if is_large else None)
    if not is_large:
        data_file.unlink(missing_ok=True)  # left by an earlier, larger model
    return path


@contextmanager
def _silenced_exporter() -> Iterator[None]:
    """Silence the exporter's warnings about axes that share a name, unfolded constants, and torchvision."""
    logs = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx._internal.exporter._schemas")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def check_export(sam: Sam, folder: str | Path, tolerance: float = TOLERANCE, seed: int = 0) -> dict[str, float]:
    """Compare the graphs with torch on random images and prompts, of other numbers than they were traced with.

    Args:
        sam: the model that was exported.
        folder: folder of its graphs.
        tolerance: largest accepted difference, as a share of the largest value.
        seed: seed of the images and prompts.

    Returns:
        Name of each output -> its largest difference, as a share of the largest value.

    Raises:
        FileNotFoundError: if a graph does not exist.
        ImportError: if onnxruntime is not installed.
        ValueError: if a difference is above the tolerance.
    """
    encoder, decoder = (open_session(Path(folder) / name) for name in (ENCODER_FILE, DECODER_FILE))
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(_image(sam).shape, generator=rng)
    with torch.inference_mode():
        embedding = sam.image_encoder(images)
    found = {"image_embedding": _difference(encoder.run(None, {"image": images.numpy()})[0], embedding)}
    for num_prompts, num_points, with_boxes in ((1, 1, False), (7, 3, False), (5, 0, True), (3, 2, True)):
        prompts = _random_prompts(sam.image_size, num_prompts, num_points, with_boxes, rng)
        for name, value in _compare_decoders(sam, decoder, embedding, prompts).items():
            found[name] = max(found.get(name, 0.0), value)
    # not (a <= b), so that NaN counts as a difference
    exceeding = {name: value for name, value in found.items() if not value <= tolerance}
    if exceeding:
        details = ", ".join(f"{name} by {value:.1e}" for name, value in exceeding.items())
        raise ValueError(
            f"The graphs in {folder} differ from torch by more than {tolerance:g} of the largest value: {details}. "
            "Try another opset or version of torch; --no-check skips the check."
        )
    return found


def _random_prompts(
    side: int, num_prompts: int, num_points: int, with_boxes: bool, rng: torch.Generator
) -> dict[str, Tensor]:
    """Return random arguments of ``Sam.decode``."""
    prompts: dict[str, Tensor] = {}
    if num_points:
        prompts["points"] = torch.rand(num_prompts, num_points, 2, generator=rng) * side
        prompts["labels"] = torch.randint(-1, 2, (num_prompts, num_points), generator=rng)
    if with_boxes:
        corners = torch.rand(num_prompts, 2, 2, generator=rng) * side
        prompts["boxes_xyxy"] = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    return prompts


def _compare_decoders(sam: Sam, decoder: Any, embedding: Tensor, prompts: dict[str, Tensor]) -> dict[str, float]:
    """Return each output's difference from ``Sam.decode``, called once for one mask and once for three."""
    given = {name: value.numpy() for name, value in prompts.items()}
    points, labels = labelled_points(**given, pad_boxes=sam.prompt_encoder.pad_boxes)
    inputs = {"image_embedding": embedding.numpy(), "points": points, "labels": labels}
    theirs = dict(zip(("low_res_logits", "predicted_iou"), decoder.run(None, inputs), strict=True))
    with torch.inference_mode():
        parts = [
            sam.decode(embedding, **prompts, multimask_output=multimask_output) for multimask_output in (False, True)
        ]
    ours = dict(zip(theirs, (torch.cat(both, dim=1) for both in zip(*parts, strict=True)), strict=True))
    return {name: _difference(theirs[name], ours[name]) for name in theirs}


def _difference(theirs: np.ndarray, ours: Tensor) -> float:
    """Return the largest difference over the largest value."""
    return float(np.abs(theirs - ours.numpy()).max() / np.abs(ours.numpy()).max())
