"""An exported image encoder with weights and activations in eight bits, and what that costs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mobilesamv2.data.images import read_rgb
from mobilesamv2.data.shapes import ShapesDataset
from mobilesamv2.export import BYTES_IN_ONE_FILE, ENCODER_FILE
from mobilesamv2.exported import open_session, read_export_metadata
from mobilesamv2.transforms import PIXEL_MEAN, PIXEL_STD, to_model_input
from mobilesamv2.whole_files import whole_file

INT8_FILE = "encoder.int8.onnx"

QUANTIZED = ["Conv", "MatMul", "Gemm"]
"""Where the arithmetic is. Norms, softmax and the rest stay in float32."""

HELD_OUT = 4
"""Each so many photos, one is left out of the calibration, and the cost is measured on it."""

DRAWN_SCENES = 8

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


class Quantized(NamedTuple):
    """An encoder in eight bits.

    Attributes:
        path: its file.
        cosine: mean cosine similarity of its image embeddings with those in float32, over the cells.
        measured_on: the images of that.
        nbytes: of its file.
        nbytes_float: of the file in float32.
    """

    path: Path
    cosine: float
    measured_on: str
    nbytes: int
    nbytes_float: int


def photos_of(folder: str | Path, at_most: int = 64) -> list[Path]:
    """The first photos of a folder, by name.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds fewer than two photos.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    photos = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES)
    if len(photos) < 2:
        raise ValueError(f"{folder} holds {len(photos)} photos ({', '.join(sorted(SUFFIXES))}); two are the least.")
    return photos[:at_most]


def quantize_encoder(folder: str | Path, photos: Sequence[Path] = ()) -> Quantized:
    """Writes ``encoder.int8.onnx`` beside ``encoder.onnx``.

    With photos the ranges of the activations are measured once, on three quarters of them, and written down (static,
    QDQ), which is what accelerators want. Without, they are found anew for each image (dynamic): closer to float32,
    but convolutions are slow that way.

    Args:
        folder: where ``export_onnx`` has written.
        photos: files to calibrate with, two or more; a few dozen like those that the encoder will see.

    Returns:
        The file and its cost: on the photos that were held out or, where there are none, on drawn scenes.

    Raises:
        FileNotFoundError: there is no encoder, or no such photo.
        ImportError: a package of the extra ``export`` is not installed.
        ValueError: a photo can't be decoded, or the encoder is too large for this.
    """
    source, target = Path(folder) / ENCODER_FILE, Path(folder) / INT8_FILE
    session = open_session(source)
    side: int = read_export_metadata(session)["image_size"]
    if source.with_name(f"{ENCODER_FILE}.data").exists() or source.stat().st_size > BYTES_IN_ONE_FILE:
        raise ValueError(f"{source} is of more than {BYTES_IN_ONE_FILE / 1e9} GB, which onnxruntime can't quantise.")
    held_out = list(photos[::HELD_OUT])
    with whole_file(target) as partial:
        _write_int8(source, partial, [path for path in photos if path not in held_out], side)
    if held_out:
        tests = (read_rgb(path, str(path)) for path in held_out)
    else:
        scenes = ShapesDataset(DRAWN_SCENES, (side, side))
        tests = (scenes.load_image(i) for i in range(DRAWN_SCENES))
    int8 = open_session(target)
    cosines = [_cosine(*(s.run(None, {"image": _pixels(image, side)})[0] for s in (session, int8))) for image in tests]
    measured_on = f"{len(cosines)} {'photos that were held out' if held_out else 'drawn scenes'}"
    return Quantized(target, float(np.mean(cosines)), measured_on, target.stat().st_size, source.stat().st_size)


def _write_int8(source: Path, target: Path, photos: Sequence[Path], side: int) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        # shapes are written down already, and its symbolic inference fails on some graphs
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        if photos:
            quantize_static(
                prepared,
                target,
                _reader(photos, side),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=QUANTIZED,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        else:
            # signed weights have no fast integer convolution in onnxruntime: three times as slow
            quantize_dynamic(
                prepared, target, op_types_to_quantize=QUANTIZED, per_channel=True, weight_type=QuantType.QUInt8
            )


def _reader(photos: Sequence[Path], side: int) -> Any:
    """Photos, one after the other, as onnxruntime calibrates with them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Photos(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(photos)

        def get_next(self) -> Any:
            path = next(self.left, None)
            return None if path is None else {"image": _pixels(read_rgb(path, str(path)), side)}

    return Photos()


def _pixels(image: np.ndarray, side: int) -> np.ndarray:
    """RGB uint8 (H, W, 3) to (1, 3, S, S)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return to_model_input(image, side, mean, std).numpy()


def _cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of embeddings (1, C, S/16, S/16), the mean over cells."""
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(1) / lengths.clip(1e-12)).mean())
