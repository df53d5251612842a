"""A model as ONNX graphs: the image encoder, and a decoder of any number of prompts.

One decoder serves SegAny and SegEvery: for the latter it takes a batch of a grid's points or a detector's boxes, the
embedding once. What follows (filters, masks at the size of the image, NMS) is a few lines in any language and is not
in a graph: resize the logits bilinearly to S x S, crop to the resized image, resize to the image, cut at the mask
threshold; the stability score is the number of pixels above 1 over the number above -1.
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
from mobilesamv2.exported import labelled_points, open_session, require_export_packages
from mobilesamv2.masks import MASK_THRESHOLD
from mobilesamv2.models.sam import Sam
from mobilesamv2.transforms import PIXEL_MEAN, PIXEL_STD, PREPROCESSING
from mobilesamv2.whole_files import whole_file

ENCODER_FILE, DECODER_FILE = "encoder.onnx", "decoder.onnx"

TOLERANCE = 1e-3
"""Largest difference between a graph and torch that is let pass, as a share of the largest value."""

BYTES_IN_ONE_FILE = 1_900_000_000
"""A protobuf holds 2 GiB at most; larger weights go to a file beside the graph, as those of SAM ViT-H do."""

ENCODER_CONVENTION = (
    "image: (1, 3, S, S) float32. RGB, resized so that the longest side is S = image_size (Pillow's bilinear; the "
    "other side is int(side * S / longest + 0.5)), minus pixel_mean, over pixel_std (units of 0 to 255), then padded "
    "with zeros at the right and the bottom. image_embedding: (1, C, S/16, S/16) float32."
)
DECODER_CONVENTION = (
    "image_embedding: (1, C, S/16, S/16), of the encoder. points: (N, P, 2) float32 xy in pixels of the resized "
    "image. labels: (N, P) int64: 1 foreground, 0 background, -1 padding, 2 upper left and 3 lower right corner of a "
    "box; a prompt without a box ends with a point (0, 0) labelled -1. N and P are any number; memory goes with N, "
    "25 MB each at S = 1024, so batches of 16 to 64 serve best. low_res_logits: (N, 4, S/4, S/4), and predicted_iou: "
    "(N, 4): 0 is the single mask, 1 to 3 are the three of an ambiguous prompt. Resized bilinearly to S x S, cropped "
    "to the resized image and resized to the photo, a mask is where the logits are above mask_threshold."
)


class DecoderGraph(nn.Module):
    """Prompts of any kinds and an embedding to all four masks, without the encoder.

    Args:
        sam: the model.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, image_embedding: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Low-res logits (N, 4, S/4, S/4) and predicted IoU (N, 4) of points (N, P, 2) with labels (N, P)."""
        sparse = self.sam.prompt_encoder.embed_labelled(points, labels)
        return self.sam.mask_decoder.decode_at_once(self.sam.image_side(image_embedding), sparse)


def export_onnx(sam: Sam, folder: str | Path, opset: int | None = None) -> list[Path]:
    """Writes a model's ``encoder.onnx`` and ``decoder.onnx``, which say in their metadata and text how they are fed.

    The metadata has, under ``mobilesamv2``, what ``export_metadata`` gives, as JSON.

    Args:
        sam: the model in eval mode, on the CPU; batch norms are folded in a copy.
        folder: made where it is missing; files of these names are overwritten.
        opset: of ONNX; None is the one that the installed torch recommends.

    Returns:
        The two files. Weights of 1.9 GB and more stand beside the graph, in a file named ``.data``.

    Raises:
        ImportError: a package of the extra ``export`` is not installed.
        ValueError: the model is in training mode, a copy for inference or not on the CPU, or torch can't write that
            opset.
        OSError: a file can't be written.
    """
    folder = Path(folder)
    return [export_encoder(sam, folder / ENCODER_FILE, opset), export_decoder(sam, folder / DECODER_FILE, opset)]


def export_encoder(sam: Sam, path: Path, opset: int | None = None) -> Path:
    """Writes the image encoder alone; arguments and errors are those of ``export_onnx``."""
    _require_exportable(sam)
    encoder, image = sam.for_inference().image_encoder, _image(sam)
    module: Any
    for module in encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # of timm: the fused one's strides differ when it is taken apart for ONNX
    with torch.no_grad():
        encoder(image)  # TinyViT keeps its attention biases in eval mode: not while it is traced
    program = _graph(encoder, {"image": image}, ["image_embedding"], {}, opset)
    return _save(program, path, ENCODER_CONVENTION, sam, encoder)


def export_decoder(sam: Sam, path: Path, opset: int | None = None) -> Path:
    """Writes prompt encoder and mask decoder alone; arguments and errors are those of ``export_onnx``."""
    _require_exportable(sam)
    grid = sam.prompt_encoder.grid
    inputs = {
        "image_embedding": torch.zeros(1, sam.prompt_encoder.embed_dim, grid, grid),
        "points": torch.zeros(2, 3, 2),
        "labels": torch.ones(2, 3, dtype=torch.int64),
    }
    axes = {"points": {0: "N", 1: "P"}, "labels": {0: "N", 1: "P"}}
    program = _graph(DecoderGraph(sam).eval(), inputs, ["low_res_logits", "predicted_iou"], axes, opset)
    return _save(program, path, DECODER_CONVENTION, sam, sam.mask_decoder)


def _require_exportable(sam: Sam) -> None:
    require_export_packages()
    if sam.is_for_inference:
        raise ValueError("Export the model itself; a copy for inference is made on the way.")
    if sam.training:
        raise ValueError("A model is exported as it infers: call sam.eval() first.")
    if sam.device.type != "cpu":
        raise ValueError(f"A model is exported on the CPU, and this one is on {sam.device}: call sam.cpu() first.")


def export_metadata(sam: Sam) -> dict[str, Any]:
    """What the graphs say of their model, as plain values."""
    return {
        "model": sam.name,
        "encoder": sam.encoder_name,
        "image_size": sam.image_size,
        "pixel_mean": PIXEL_MEAN,
        "pixel_std": PIXEL_STD,
        "mask_threshold": MASK_THRESHOLD,
        "preprocessing": PREPROCESSING,
        "weights_sha256": weights_sha256(sam),
    }


def _image(sam: Sam) -> Tensor:
    return torch.zeros(1, 3, sam.image_size, sam.image_size)


def _graph(
    module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], axes: dict[str, dict[int, str]], opset: int | None
) -> Any:
    """A torch.onnx.ONNXProgram.

    The exporter is the one by torch.export: the default of torch 2.9 and later, and the only one that keeps N and P
    open in the decoder, whose shapes an older trace would write down as numbers.
    """
    with _quietly():
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
        raise ValueError(f"torch {torch.__version__} writes opset {written} for this model, and can't write {opset}.")
    return program


def _save(program: Any, path: Path, convention: str, sam: Sam, module: nn.Module) -> Path:
    from onnxscript import ir

    program.model.doc_string = convention
    program.model.metadata_props["mobilesamv2"] = json.dumps(export_metadata(sam))
    weights = sum(value.nbytes for value in module.state_dict().values())
    beside, is_large = path.with_name(f"{path.name}.data"), weights > BYTES_IN_ONE_FILE
    if is_large:
        path.unlink(missing_ok=True)  # it would be left with the weights of this model beside it, if this failed
    with whole_file(path) as partial:
        ir.save(program.model, partial, external_data=beside.name if is_large else None)
    if not is_large:
        beside.unlink(missing_ok=True)  # of a larger model before
    return path


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says of axes that share a name, of what it leaves unfolded, and of torchvision."""
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
    """Runs the graphs and torch on the same random images and prompts, of other numbers than they were traced with.

    Args:
        sam: the model that was exported.
        folder: where its graphs are.
        tolerance: largest difference that is let pass.
        seed: of the images and prompts.

    Returns:
        The largest difference as a share of the largest value, by output.

    Raises:
        FileNotFoundError: a graph is not there.
        ImportError: onnxruntime is not installed.
        ValueError: a difference above the tolerance.
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
    # not (a <= b): NaN is no agreement
    wrong = {name: value for name, value in found.items() if not value <= tolerance}
    if wrong:
        told = ", ".join(f"{name} by {value:.1e}" for name, value in wrong.items())
        raise ValueError(
            f"The graphs in {folder} differ from torch by more than {tolerance:g} of the largest value: {told}. "
            "Another opset or version of torch may do better; --no-check leaves the check out."
        )
    return found


def _random_prompts(
    side: int, num_prompts: int, num_points: int, with_boxes: bool, rng: torch.Generator
) -> dict[str, Tensor]:
    """Arguments of ``Sam.decode``."""
    prompts: dict[str, Tensor] = {}
    if num_points:
        prompts["points"] = torch.rand(num_prompts, num_points, 2, generator=rng) * side
        prompts["labels"] = torch.randint(-1, 2, (num_prompts, num_points), generator=rng)
    if with_boxes:
        corners = torch.rand(num_prompts, 2, 2, generator=rng) * side
        prompts["boxes_xyxy"] = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    return prompts


def _compare_decoders(sam: Sam, decoder: Any, embedding: Tensor, prompts: dict[str, Tensor]) -> dict[str, float]:
    """Differences by output between the graph and ``Sam.decode``, which gives one mask and three apart."""
    points, labels = labelled_points(**{name: value.numpy() for name, value in prompts.items()})
    fed = {"image_embedding": embedding.numpy(), "points": points, "labels": labels}
    theirs = dict(zip(("low_res_logits", "predicted_iou"), decoder.run(None, fed), strict=True))
    with torch.inference_mode():
        parts = [sam.decode(embedding, **prompts, multimask=multimask) for multimask in (False, True)]
    ours = dict(zip(theirs, (torch.cat(both, dim=1) for both in zip(*parts, strict=True)), strict=True))
    return {name: _difference(theirs[name], ours[name]) for name in theirs}


def _difference(theirs: np.ndarray, ours: Tensor) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(theirs - ours.numpy()).max() / np.abs(ours.numpy()).max())
