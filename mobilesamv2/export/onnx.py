"""Export to ONNX: a graph of the image encoder, and one of the decoder for any number of prompts.

One decoder serves SegAny and SegEvery: for SegEvery its input is a batch of a grid's points or a detector's boxes, and
one embedding. The postprocessing (filters, masks at the image's size, NMS) is a few lines in any language and not part
of a graph: resize the logits bilinearly to S x S, crop to the resized image, resize to the original size, apply the
mask threshold; the stability score is the number of pixels above 1 over the number above -1. With the signature of SAM
the decoder takes one prompt, and the masks have the image's size.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mobilesamv2.checkpoints import weights_sha256
from mobilesamv2.export.check import check_graphs
from mobilesamv2.export.graphs import PRECISIONS, SIGNATURES, Graph, decoder_graph, encoder_graph
from mobilesamv2.export.runtime import open_session, require_export_packages
from mobilesamv2.files import atomic_write, named_in_errors
from mobilesamv2.masks import MASK_THRESHOLD
from mobilesamv2.models.mask_decoder import NUM_MULTIMASKS
from mobilesamv2.models.sam import Sam
from mobilesamv2.transforms import PIXEL_MEAN, PIXEL_STD, preprocessing

ENCODER_FILE, DECODER_FILE = "encoder.onnx", "decoder.onnx"

FIRST_OPSET = 18
"""The opset that torch's exporter writes. It converts to later ones; conversions to earlier ones fail or are wrong."""

MAX_GRAPH_BYTES = 1_900_000_000
"""Largest size of weights inside a graph: protobuf allows 2 GiB. Larger ones (SAM ViT-H) go to a separate file."""


class Exported(NamedTuple):
    """What an export has written.

    Attributes:
        paths: the files of the graphs, encoder first.
        differences: name of each output -> its largest difference from torch in float32, as a share of the largest
            value; empty if they were not compared.
    """

    paths: list[Path]
    differences: dict[str, float]


def export_onnx(
    sam: Sam,
    folder: str | Path,
    opset: int | None = None,
    *,
    signature: str = "mobilesamv2",
    precision: str = "fp32",
    return_single_mask: bool = False,
    compare: bool = True,
) -> Exported:
    """Write a model's encoder and decoder, with a description of their inputs and outputs inside, and check them.

    The files are ``encoder.onnx`` and ``decoder.onnx``, or ``encoder.fp16.onnx`` and ``decoder.fp16.onnx``. Their
    metadata contain the result of ``export_metadata`` as JSON, under ``mobilesamv2``. They appear in the folder once
    both have passed; until then, and if one does not, earlier files of these names stay.

    Args:
        sam: the model, in eval mode on the CPU; batch norms are folded in a copy.
        folder: created if missing; files of these names are replaced.
        opset: ONNX opset; None is the one that the installed torch recommends.
        signature: names of the inputs and outputs, one of ``SIGNATURES``.
        precision: of weights and arithmetic, one of ``PRECISIONS``; inputs and outputs are float32 in any.
        return_single_mask: with the signature of SAM, the best mask only instead of all four.
        compare: compare with torch, beyond what onnx and onnxruntime check.

    Returns:
        The two files, and how far they are from torch. Weights of more than 1.9 GB are in a separate file,
        ``<graph>.data``.

    Raises:
        ImportError: if a package of the extra ``export`` is not installed.
        ValueError: if the model is in training mode, a copy for inference or not on the CPU, an argument is none of
            its values, torch can't write the opset, or a graph is invalid or differs from torch.
        OSError: if a file can't be written.
    """
    _require_exportable(sam)
    _require_options(opset, signature, precision, return_single_mask)
    if signature == "sam" and not sam.resizing.keep_aspect_ratio:
        raise ValueError(f"The signature of {sam.name} can't be sam, which pads images: it takes square ones.")
    graphs = {
        graph_file(ENCODER_FILE, precision): lambda: encoder_graph(sam, signature, precision),
        graph_file(DECODER_FILE, precision): lambda: decoder_graph(sam, signature, precision, return_single_mask),
    }
    with _published_together(Path(folder)) as staging:
        for name, build in graphs.items():
            metadata = export_metadata(sam) | {
                "part": name.split(".")[0],
                "signature": signature,
                "precision": precision,
            }
            with named_in_errors(Path(folder) / name):
                write_graph(build(), staging / name, metadata, opset)
        differences = check_graphs(sam, *(staging / name for name in graphs)) if compare else {}
    return Exported([Path(folder) / name for name in graphs], differences)


def graph_file(name: str, precision: str) -> str:
    """Return the name of a graph's file: ``encoder.onnx`` in fp32, ``encoder.fp16.onnx`` in fp16."""
    return name if precision == "fp32" else name.replace(".onnx", f".{precision}.onnx")


def _require_exportable(sam: Sam) -> None:
    require_export_packages()
    if sam.is_for_inference:
        raise ValueError("The model must not be a copy for inference; export the model that it was copied from.")
    if sam.mask_decoder.num_multimasks != NUM_MULTIMASKS:
        raise ValueError(
            f"{sam.name} can't be exported: it returns {sam.mask_decoder.num_multimasks} mask where several are asked "
            f"for, and the graphs have {NUM_MULTIMASKS}."
        )
    if sam.encoder_side != sam.image_size:
        raise ValueError(
            f"{sam.name} can't be exported: its image encoder takes images of {sam.encoder_side} pixels, its prompts "
            f"and masks are in a frame of {sam.image_size}, and the graphs have one size."
        )
    if sam.training:
        raise ValueError("The model must be in eval mode to be exported: call sam.eval() first.")
    if sam.device.type != "cpu":
        raise ValueError(f"The model must be on the CPU to be exported, got {sam.device}: call sam.cpu() first.")


def _require_options(opset: int | None, signature: str, precision: str, return_single_mask: bool) -> None:
    if opset is not None and opset < FIRST_OPSET:
        raise ValueError(
            f"The opset must be {FIRST_OPSET} or later, got {opset}: torch writes no earlier one correctly."
        )
    for name, value, known in (("signature", signature, SIGNATURES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    if return_single_mask and signature != "sam":
        raise ValueError("return_single_mask is of the signature of SAM: set --signature sam, or take logits[:, 0].")


def export_metadata(sam: Sam) -> dict[str, Any]:
    """Return the metadata that the graphs contain about their model, as plain values."""
    return {
        "model": sam.name,
        "encoder": sam.encoder_name,
        "image_size": sam.image_size,
        "pixel_mean": PIXEL_MEAN,
        "pixel_std": PIXEL_STD,
        "mask_threshold": MASK_THRESHOLD,
        "preprocessing": preprocessing(sam.resizing),
        "keep_aspect_ratio": sam.resizing.keep_aspect_ratio,
        "antialias": sam.resizing.antialias,
        "bicubic_masks": sam.resizing.bicubic_masks,
        "pad_boxes": sam.prompt_encoder.pad_boxes,
        "takes_masks": sam.prompt_encoder.takes_masks,
        "takes_background": sam.prompt_encoder.takes_background,
        "max_points": sam.prompt_encoder.max_points,
        "weights_sha256": weights_sha256(sam),
    }


def write_graph(graph: Graph, path: Path, metadata: dict[str, Any], opset: int | None = None) -> None:
    """Write a graph, and check that it is valid and that onnxruntime reads it.

    Args:
        graph: from ``encoder_graph`` or ``decoder_graph``.
        path: its file, in a folder that exists; weights of more than 1.9 GB go to a second, ``<path>.data``.
        metadata: plain values, which the file contains.
        opset: ONNX opset; None is the one that the installed torch recommends.

    Raises:
        ValueError: if torch can't write the opset, or the graph is invalid.
        OSError: if the file can't be written.
    """
    from onnxscript import ir

    program = _trace(graph, opset)
    for output in program.model.graph.outputs:  # by name, where the exporter states how it computes them
        for axis, name in graph.axes.get(output.name, {}).items():
            output.shape[axis] = name
    for node in program.model.graph:  # a megabyte of stack traces, with the paths of this machine
        for traced in (node, *node.outputs):
            traced.metadata_props.clear()
    program.model.doc_string = graph.io_doc
    program.model.metadata_props["mobilesamv2"] = json.dumps(metadata)
    weights = sum(value.nbytes for value in graph.module.state_dict().values())
    ir.save(program.model, path, external_data=f"{path.name}.data" if weights > MAX_GRAPH_BYTES else None)
    _require_valid(path)


def _trace(graph: Graph, opset: int | None) -> Any:
    """Return a torch.onnx.ONNXProgram.

    The exporter is the one based on torch.export: the default since torch 2.9, and the only one that keeps N and P
    dynamic in the decoder, whose shapes the older tracing exporter would store as constants.
    """
    with _silenced_exporter():
        program = torch.onnx.export(
            graph.module,
            tuple(graph.inputs.values()),
            dynamo=True,
            input_names=list(graph.inputs),
            output_names=graph.outputs,
            dynamic_shapes=tuple(graph.axes.get(name, {}) for name in graph.inputs),
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    written = program.model.opset_imports[""]
    if opset is not None and written != opset:
        raise ValueError(
            f"The opset can't be {opset}: torch {torch.__version__} can't write {opset}, and wrote {written}. "
            "Leave it out for the one that torch recommends."
        )
    return program


def _require_valid(path: Path) -> None:
    """Check a graph with onnx's checker, shapes and types included, and open it in onnxruntime."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker's and shape inference's errors have no base class in common
        raise ValueError(f"torch wrote an invalid graph for {path.name}: {error}. Try another opset.") from error
    open_session(path)


@contextmanager
def _published_together(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, whose files replace those of ``folder`` at the end; on failure they are removed."""
    with named_in_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".partial") as name:
        staging = Path(name)
        yield staging
        for graph in sorted(staging.glob("*.onnx")):
            target, data_name = folder / graph.name, f"{graph.name}.data"
            is_large = (staging / data_name).exists()
            if is_large:
                target.unlink(missing_ok=True)  # an older graph must never be read with the weights of this model
                _publish(staging / data_name, folder / data_name)
            _publish(graph, target)
            if not is_large:
                (folder / data_name).unlink(missing_ok=True)  # left by an earlier, larger model


def _publish(path: Path, target: Path) -> None:
    with atomic_write(target) as partial:
        path.replace(partial)


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
