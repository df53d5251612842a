"""Int8 quantization of an exported image encoder, and its cost."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import override

from mobilesamv2.data.images import find_images, read_rgb
from mobilesamv2.data.samples import normalized_pixels
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.export.onnx import ENCODER_FILE, MAX_GRAPH_BYTES
from mobilesamv2.export.runtime import open_session, read_export_metadata
from mobilesamv2.files import atomic_write
from mobilesamv2.transforms import ModelFrame, Resizing

INT8_FILE = "encoder.int8.onnx"

QUANTIZED_OPS = ["Conv", "MatMul", "Gemm"]
"""Operators with most of the arithmetic. Norms, softmax and the rest stay in float32."""

HOLD_OUT_EVERY = 4
"""One image in this many is held out of the calibration to measure the cost on."""

NUM_SYNTHETIC_SCENES = 8
"""Synthetic scenes that the cost is measured on without calibration images."""


class Quantized(NamedTuple):
    """An int8 encoder.

    Attributes:
        path: file of the int8 encoder.
        cosine: mean cosine similarity between its image embeddings and those in float32, over the cells.
        measured_on: the images that ``cosine`` was measured on.
        nbytes: size of the file.
        nbytes_float: size of the float32 file.
    """

    path: Path
    cosine: float
    measured_on: str
    nbytes: int
    nbytes_float: int


def calibration_images(folder: str | Path, limit: int = 64) -> list[Path]:
    """Return the first images of a folder, by name.

    Args:
        folder: folder of images; subfolders are not searched.
        limit: largest number of images returned.

    Raises:
        FileNotFoundError: if the folder does not exist or has no images.
        ValueError: if it has fewer than two images.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    images = find_images([folder])
    if len(images) < 2:
        raise ValueError(f"{folder} must contain at least two images to calibrate with, got {len(images)}.")
    return images[:limit]


def quantize_encoder(folder: str | Path, images: Sequence[Path] = ()) -> Quantized:
    """Write ``encoder.int8.onnx`` beside ``encoder.onnx``.

    With images, the ranges of the activations are measured once, on three quarters of them, and stored (static, QDQ),
    which is what accelerators require. Without, they are computed for each input (dynamic): closer to float32, but
    convolutions are slow that way.

    Args:
        folder: folder that ``export_onnx`` has written, in fp32 and any signature.
        images: files to calibrate with, at least two; a few dozen that resemble the images the encoder will be used on.

    Returns:
        The file and its cost, measured on the held-out images or, without images, on synthetic scenes.

    Raises:
        FileNotFoundError: if there is no encoder, or an image does not exist.
        ImportError: if a package of the extra ``export`` is not installed.
        ValueError: if an image can't be decoded, or the encoder is too large to quantize.
    """
    source, target = Path(folder) / ENCODER_FILE, Path(folder) / INT8_FILE
    session = open_session(source)
    side = read_export_metadata(session, source).get("image_size")
    if not isinstance(side, int):
        raise ValueError(f"The metadata of {source} must have the image_size, got {side}; export it again.")
    if source.with_name(f"{ENCODER_FILE}.data").exists() or source.stat().st_size > MAX_GRAPH_BYTES:
        raise ValueError(f"{source} must have at most {MAX_GRAPH_BYTES / 1e9} GB for onnxruntime to quantize it.")
    held_out = list(images[::HOLD_OUT_EVERY])
    if held_out:
        tests = (read_rgb(path, str(path)) for path in held_out)
    else:
        scenes = SyntheticDataset(NUM_SYNTHETIC_SCENES, (side, side))
        tests = (scenes.load_image(i) for i in range(NUM_SYNTHETIC_SCENES))
    as_input = _input_of(session)
    with atomic_write(target) as staged:
        calibration = (as_input(read_rgb(path, str(path)), side) for path in images if path not in held_out)
        _write_int8(source, staged, calibration if images else None)
        int8 = open_session(staged)
        cosines = [_cosine(*(s.run(None, as_input(image, side))[0] for s in (session, int8))) for image in tests]
    measured_on = f"{len(cosines)} {'held-out images' if held_out else 'synthetic scenes'}"
    return Quantized(target, float(np.mean(cosines)), measured_on, target.stat().st_size, source.stat().st_size)


def _write_int8(source: Path, target: Path, calibration: Iterator[dict[str, np.ndarray]] | None) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        # the exporter has stored the shapes, and onnxruntime's symbolic inference fails on some graphs
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        if calibration is not None:
            quantize_static(
                prepared,
                target,
                _calibration_reader(calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=QUANTIZED_OPS,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        else:
            # signed weights have no fast integer convolution in onnxruntime: three times as slow
            quantize_dynamic(
                prepared, target, op_types_to_quantize=QUANTIZED_OPS, per_channel=True, weight_type=QuantType.QUInt8
            )


def _calibration_reader(inputs: Iterator[dict[str, np.ndarray]]) -> Any:
    """Return onnxruntime's iterator over calibration inputs."""
    from onnxruntime.quantization import CalibrationDataReader

    class ImageReader(CalibrationDataReader):
        @override
        def get_next(self) -> Any:
            return next(inputs, None)

    return ImageReader()


def _input_of(session: Any) -> Callable[[np.ndarray, int], dict[str, np.ndarray]]:
    """Return what makes an encoder's input from an image and S."""
    if session.get_inputs()[0].name == "input_image":
        return _pixel_input
    about = {"keep_aspect_ratio": True, "antialias": True, "bicubic_masks": False} | read_export_metadata(session)
    resizing = Resizing((about["keep_aspect_ratio"], about["antialias"], about["bicubic_masks"]))
    return partial(_normalised_input, resizing)


def _normalised_input(resizing: Resizing, image: np.ndarray, side: int) -> dict[str, np.ndarray]:
    """Return our encoder's input for an image, RGB uint8 (H, W, 3): (1, 3, S, S)."""
    return {"image": normalized_pixels(image, side, resizing)[None].numpy()}


def _pixel_input(image: np.ndarray, side: int) -> dict[str, np.ndarray]:
    """Return the encoder's input in the signature of SAM, pixels of the resized image."""
    return {"input_image": ModelFrame((image.shape[0], image.shape[1]), side).resize(image).astype(np.float32)}


def _cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the cosine similarity of two embeddings (1, C, S/16, S/16), mean over the cells."""
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(1) / norms.clip(1e-12)).mean())
