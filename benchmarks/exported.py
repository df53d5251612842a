"""What an exported model costs: int8 beside float32, seconds of encoders, and the bytes of a page without a server.

    python benchmarks/exported.py --write       # five minutes of a core; wants the extra [export]

mini_conv is exported with its weights and quantized with drawn scenes, of which a quarter is held out for the cosine;
mobile_sam has random weights, on which time and size do not depend. Seconds are processor time of one thread, the best
of five. The pages contain onnxruntime-web, which is downloaded once.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from processor_time import cpu_seconds
from result_pages import RESULTS, ROOT, digits, paragraph, read_figures, write_figures, write_pages

from mobilesamv2 import build_sam, load_pretrained
from mobilesamv2.app.static import write_static_page
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.export.onnx import export_onnx
from mobilesamv2.export.quantize import calibration_images, quantize_encoder

EXPORTED = RESULTS / "exported.csv"
PAGES = [ROOT / "docs" / "export.md", ROOT / "docs" / "segment.md"]
SCENES, REPEATS = 60, 5
MODELS = ("mini_conv", "mobile_sam")


def session_seconds(path: Path, image: np.ndarray) -> float:
    """Return the processor seconds of one image by a graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return cpu_seconds(lambda: session.run(None, {"image": image}), REPEATS)


def quantized(folder: Path) -> dict[str, float]:
    """Return sizes and the cosine similarity of mini_conv's encoder in int8."""
    export_onnx(load_pretrained("mini_conv"), folder)
    scenes = folder / "scenes"
    scenes.mkdir()
    drawn = SyntheticDataset(SCENES)
    for i in range(SCENES):
        Image.fromarray(drawn[i][0]).save(scenes / f"{i:03}.png")
    int8 = quantize_encoder(folder, calibration_images(scenes))
    print(f"mini_conv: {int8.measured_on}, cosine {int8.cosine:.5f}")
    return {"int8 MB": int8.nbytes / 1e6, "fp32 MB": int8.nbytes_float / 1e6, "int8 cosine": int8.cosine}


@torch.inference_mode()
def encoder_times(folder: Path) -> dict[str, float]:
    """Return processor seconds of mobile_sam's encoder for an image, and its differences from torch."""
    torch.manual_seed(0)
    sam = build_sam("mobile_sam")
    half = export_onnx(sam, folder, precision="fp16").differences
    whole = export_onnx(sam, folder).differences
    quantize_encoder(folder)
    image = torch.randn(1, 3, 1024, 1024)
    encoder = sam.for_inference().image_encoder
    times = {"torch s": cpu_seconds(lambda: encoder(image), REPEATS)}
    for name, file in (("onnxruntime s", "encoder.onnx"), ("int8 s", "encoder.int8.onnx")):
        times[name] = session_seconds(folder / file, image.numpy())
    return times | {"fp32 difference": max(whole.values()), "fp16 difference": max(half.values())}


def page_bytes(folder: Path) -> dict[str, float]:
    """Return the bytes of the pages, MB."""
    sizes = {}
    for name in MODELS:
        sam = load_pretrained(name) if name == "mini_conv" else build_sam(name)
        write_static_page(sam, folder / name)
        nbytes = sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())
        sizes[f"page {name} MB"] = nbytes / 1e6
    return sizes


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return texts(read_figures(EXPORTED))


def texts(figures: Mapping[str, float]) -> dict[str, str]:
    """Return the texts of the pages by their names."""
    seconds = [digits(figures[name]) for name in ("torch s", "onnxruntime s", "int8 s")]
    mini, mobile = (f"{figures[f'page {name} MB']:.0f} MB" for name in MODELS)
    return {
        "exported_int8": paragraph(
            f"Of `mini_conv`, calibrated on drawn scenes, it has {digits(figures['int8 MB'])} MB instead of "
            f"{digits(figures['fp32 MB'])}, and a cosine of {figures['int8 cosine']:.4f} on others.",
            f"By processor time of one thread `mobile_sam`'s encoder takes {seconds[0]} s in torch, {seconds[1]} s in "
            f"onnxruntime, and {seconds[2]} s in int8 without calibration (`python benchmarks/exported.py`).",
        ),
        "exported_differences": paragraph(
            f"Measured with random weights, `mobile_sam` differs by at most {figures['fp32 difference']:.0e} in fp32, "
            f"and by {figures['fp16 difference']:.4f} in fp16."
        ),
        "exported_page": paragraph(f"The page takes {mini} with `mini_conv`, and {mobile} with `mobile_sam`."),
    }


def main() -> None:
    """Print the figures, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the file of results, and the docs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        for part in (quantized, encoder_times, page_bytes):
            folder = Path(name) / part.__name__
            folder.mkdir()
            found = part(folder)
            print(*(f"{key} {value:.6g}" for key, value in found.items()), sep="\n", flush=True)
            figures |= found
    if args.write:
        write_figures(EXPORTED, figures)
        write_pages(PAGES, stated())


if __name__ == "__main__":
    main()
