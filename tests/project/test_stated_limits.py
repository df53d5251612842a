"""Limits, sizes and constants that the documentation states are those of the code and of the files that ship."""

import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from support import ROOT

from mobilesamv2 import build_sam
from mobilesamv2.app import onnxruntime_web, page, page_folder, session
from mobilesamv2.data import images
from mobilesamv2.export import check, onnx
from mobilesamv2.model_zoo import WEIGHT_FILES, find_weights
from mobilesamv2.prompts import ObjectAware

sys.path.insert(0, str(ROOT / "benchmarks"))
from lvis_scale_texts import LVIS_IMAGES, gpu_hours

STATIC = ROOT / "mobilesamv2" / "app" / "static"


def javascript(file: str, name: str) -> float:
    return float(re.findall(rf"const {name} = ([\d_]+);", (STATIC / file).read_text())[0])


def mutation_seconds() -> float:
    source = (ROOT / "tests" / "robustness" / "test_mutations.py").read_text()
    return float(re.findall(r"^MAX_SECONDS = ([\d.]+)$", source, flags=re.M)[0])


def file_mb(path: Path) -> float:
    return path.stat().st_size / 1e6


GRID_HOURS, BOXES_HOURS = (gpu_hours(name) for name in ("grid of 64 x 64, 3 masks", "object-aware, at most 320 boxes"))
MOBILE_SAM_MB = round((WEIGHT_FILES["mobile_sam.pt"].nbytes or 0) / 1e6)
NPM_MB = float(re.findall(r"\((\d+) MB, MIT", inspect.getsource(onnxruntime_web))[0])
PROMPTS = inspect.signature(ObjectAware).parameters["max_prompts"].default
CHECKPOINT_MINUTES = yaml.safe_load((ROOT / "conf" / "train.yaml").read_text())["checkpoint_minutes"]

STATED = [
    ("README.md", r"weights, ([\d.]+) MB, into weights/", MOBILE_SAM_MB),
    ("README.md", r"is downloaded, ([\d.]+) MB", MOBILE_SAM_MB),
    ("data.md", r"mobilesamv2 app` takes (\d+) megapixels", session.MAX_DECODED_PIXELS / 1e6),
    ("data.md", r"dataset\.max_pixels=(\d+)", images.MAX_DECODED_PIXELS),
    ("evaluate.md", r"all ([\d,]+)\n", LVIS_IMAGES),
    ("evaluate.md", r"an evaluation of ([\d,]+) images with 1,000 masks", LVIS_IMAGES),
    ("export.md", r"in float32 by (\.\d+) of the largest value", check.TOLERANCES["fp32"]),
    ("export.md", r"in fp16 by (\.\d+)\. The comparison", check.TOLERANCES["fp16"]),
    ("export.md", r"Weights of more than ([\d.]+) GB", onnx.MAX_GRAPH_BYTES / 1e9),
    ("export.md", r"`--opset N` \| (\d+) or later", onnx.FIRST_OPSET),
    ("models.md", r"ships: ([\d.]+) MB in fp16", round(file_mb(find_weights("mini_conv.safetensors")), 1)),
    ("robustness.md", r"at most (\d+) GB and about 2,000 files", page_folder.MAX_BYTES / 1e9),
    ("robustness.md", r"at most 2 GB and about ([\d,]+) files", page_folder.MAX_FILES),
    ("robustness.md", r"in less than (\d+) s, and no code", mutation_seconds()),
    ("segment.md", r"once, ([\d.]+) MB, into weights/", MOBILE_SAM_MB),
    ("segment.md", r"at most (\d+); MobileSAMv2|at most (\d+): MobileSAMv2", PROMPTS),
    ("segment.md", r"at most (\d+) requests wait", page.MAX_WAITING),
    ("segment.md", r"the last (\d+) visitors", page.MAX_SESSIONS),
    ("segment.md", r"more than (\d+) MB or 50 megapixels", float(page.MAX_UPLOAD.removesuffix(" MB"))),
    ("segment.md", r"50 MB or (\d+) megapixels", session.MAX_DECODED_PIXELS / 1e6),
    ("segment.md", r"at most (\d+) GB and about 2,000 files", page_folder.MAX_BYTES / 1e9),
    ("segment.md", r"at most 2 GB and about ([\d,]+) files", page_folder.MAX_FILES),
    ("segment.md", r"more than (\d+) megapixels are reduced", javascript("picture.js", "MAX_PIXELS") / 1e6),
    ("segment.md", r"segment everything by (\d+) x 16 points", javascript("page.js", "POINTS_PER_SIDE")),
    ("segment.md", r"from npm \((\d+) MB\)", NPM_MB),
    ("segment.md", r"onnxruntime-web (1\.\d+)\.0 is downloaded", float(onnxruntime_web.VERSION.rpartition(".")[0])),
    ("segment.md", r"up to ([\d.]+) GB", onnx.MAX_GRAPH_BYTES / 1e9),
    ("train.md", r"(\d+) minutes of one GPU for all 19,809 images", round(60 * BOXES_HOURS)),
    ("train.md", r"(\d+) hours with 64 x 64 points", round(GRID_HOURS)),
    ("train.md", r"at most (\d+) minutes are lost", CHECKPOINT_MINUTES),
]


@pytest.mark.parametrize(("page", "pattern", "value"), STATED)
def test_limits_and_constants_are_those_of_the_code(page: str, pattern: str, value: float) -> None:
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    text = re.sub(r"(?<=\S)\n(?=\S)", " ", path.read_text()) if r"\n" not in pattern else path.read_text()
    match = re.search(pattern, text)
    assert match, f"{page} no longer says {pattern!r}: change this test with it"
    assert float(next(group for group in match.groups() if group).replace(",", "")) == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("mini_conv", r"at 256 pixels; ([\d.]+) M parameters \| ships"),
        ("mini_conv_slim", r"instead of four; ([\d.]+) M parameters"),
        ("micro_conv", r"at 256 pixels; ([\d.]+) M parameters, of which"),
        ("sam2_mini_conv", r"; ([\d.]+) and [\d.]+ M parameters \| - \|"),
        ("sam2_micro_conv", r"; [\d.]+ and ([\d.]+) M parameters \| - \|"),
        ("efficient_sam_vitt", r"([\d.]+) M and [\d.]+ M parameters"),
        ("efficient_sam_vits", r"[\d.]+ M and ([\d.]+) M parameters"),
    ],
)
def test_numbers_of_parameters_are_those_of_the_models(name: str, millions: str) -> None:
    stated = re.findall(millions, (ROOT / "docs" / "models.md").read_text())
    with torch.device("meta"):
        sam = build_sam(name)
    assert stated == [f"{sum(parameter.numel() for parameter in sam.parameters()) / 1e6:.1f}"]
