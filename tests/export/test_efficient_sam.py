"""EfficientSAM's graphs against torch, and prompts that its decoder does not take."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.random_weights import stir

from mobilesamv2 import build_sam
from mobilesamv2.export.onnx import export_metadata, export_onnx
from mobilesamv2.export.runtime import OnnxDecoder
from mobilesamv2.models.sam import Sam

SIDE = 64
ONE_POINT = np.full((1, 1, 2), 20.0)


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    sam = build_sam("efficient_sam_vitt", image_size=SIDE)
    stir(sam, seed=0)
    return sam


def test_what_the_files_say(sam: Sam) -> None:
    about = export_metadata(sam)
    said = ("keep_aspect_ratio", "antialias", "bicubic_masks", "takes_masks", "takes_background", "max_points")
    assert [about[key] for key in said] == [False, False, True, False, False, 6]
    assert about["preprocessing"].startswith("RGB, square, torch bilinear without antialiasing in float32")
    with pytest.raises(ValueError, match="of efficient_sam_vitt can't be sam, which pads images: it takes square"):
        export_onnx(sam, Path("nowhere"), signature="sam")


@pytest.mark.slow
def test_the_graphs(sam: Sam, tmp_path: Path) -> None:
    exported = export_onnx(sam, tmp_path)
    assert set(exported.differences) == {"image_embedding", "low_res_logits", "predicted_iou"}
    assert max(exported.differences.values()) < 2e-5
    decoder = OnnxDecoder(tmp_path / "decoder.onnx")
    embedding = np.random.default_rng(0).standard_normal((1, 256, 4, 4), dtype=np.float32)
    six = np.random.default_rng(1).random((2, 6, 2)) * SIDE  # padded by a seventh, which is left out
    logits, predicted_iou = decoder(embedding, six)
    with torch.no_grad():
        ours, iou = sam.decode(torch.from_numpy(embedding), torch.from_numpy(six).float(), torch.ones(2, 6))
    np.testing.assert_allclose(logits[:, 1:], ours, atol=1e-5 * float(ours.abs().max()))
    np.testing.assert_allclose(predicted_iou[:, 0], iou.amax(1), atol=1e-5)
    box = np.array([[3.0, 4.0, 50.0, 60.0]])
    for given, message in (
        ({"boxes_xyxy": box, "mask_input": np.zeros((1, 1, 16, 16))}, "efficient_sam_vitt takes no mask as a prompt"),
        (
            {"points": ONE_POINT, "labels": np.zeros((1, 1))},
            "efficient_sam_vitt takes no background points, got a label 0",
        ),
        ({"points": six[:1], "boxes_xyxy": box}, "must have at most 6 points, of which a box is two, got 8"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder(embedding, **given)
