"""Exported graphs of SAM 2: its levels, padding, square input and choice of the single mask."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.official_sam2 import calibrate_sam2, official_sam2_mini, ours_from_sam2
from support.random_weights import stir

from mobilesamv2 import SegAny, build_sam
from mobilesamv2.export.check import check_graphs
from mobilesamv2.export.graphs import decoder_graph
from mobilesamv2.export.onnx import export_metadata, export_onnx, write_graph
from mobilesamv2.export.quantize import quantize_encoder
from mobilesamv2.export.runtime import OnnxDecoder, labelled_points, open_session, read_export_metadata
from mobilesamv2.models.sam2 import MASK_INPUT_LIMIT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("encoder", ["sam2_hiera_mini", "tiny_vit_mini_stride8"])
def test_both_graphs_agree_with_torch(encoder: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sam = build_sam("sam2_mini", encoder=encoder)
    stir(sam, seed=1)
    export_onnx(sam, tmp_path, compare=False)
    files = [tmp_path / f"{part}.onnx" for part in ("encoder", "decoder")]
    assert max(check_graphs(sam, *files, tolerance=2e-5).values()) > 0
    assert quantize_encoder(tmp_path).cosine > 0.9
    metadata = read_export_metadata(open_session(tmp_path / "decoder.onnx"))
    assert metadata["pad_boxes"]
    assert "square" in metadata["preprocessing"]
    for name in ("encoder.onnx", "decoder.onnx"):
        assert "resized to S x S by an antialiased" in onnx.load(tmp_path / name).doc_string


def test_mask_0_is_the_one_that_segany_chooses(photo: np.ndarray, tmp_path: Path) -> None:
    """Of some prompts the single mask, of others the best of three."""
    official = official_sam2_mini()
    calibrate_sam2(official, photo)
    sam = ours_from_sam2(official, tmp_path)
    write_graph(decoder_graph(sam), tmp_path / "decoder.onnx", export_metadata(sam))
    decoder = OnnxDecoder(tmp_path / "decoder.onnx")
    segany = SegAny(sam)
    segany.set_image(photo)
    height, width = photo.shape[:2]
    x, y = np.meshgrid(np.linspace(4, width - 4, 6), np.linspace(4, height - 4, 6))
    points = np.stack([x, y], -1).reshape(-1, 1, 2)
    single = segany.predict(points, multimask_output=False)
    three = segany.predict(points, multimask_output=True)
    scaled, embedding = points * [256 / width, 256 / height], segany.image_embedding.numpy()
    logits, predicted_iou = decoder(embedding, scaled)
    atol = 1e-4 * np.abs(logits).max()
    assert atol > 1e-4 * MASK_INPUT_LIMIT  # a graph does not clamp what masks are made of
    clamped = logits[:, :1].clip(-MASK_INPUT_LIMIT, MASK_INPUT_LIMIT)
    np.testing.assert_allclose(predicted_iou[:, :1], single.predicted_iou, atol=1e-5)
    np.testing.assert_allclose(predicted_iou[:, 1:], three.predicted_iou, atol=1e-5)
    np.testing.assert_allclose(clamped, single.low_res_logits, atol=atol)
    replaced = (predicted_iou[:, :1] == predicted_iou[:, 1:]).any(1).sum()
    assert 0 < replaced < len(points)
    for masks in (single.low_res_logits, single.low_res_logits[:1]):
        refined = segany.predict(points, mask_input=masks[:, 0], multimask_output=False)
        logits, predicted_iou = decoder(embedding, scaled, mask_input=masks)
        clamped = logits[:, :1].clip(-MASK_INPUT_LIMIT, MASK_INPUT_LIMIT)
        np.testing.assert_allclose(predicted_iou[:, :1], refined.predicted_iou, atol=1e-5)
        np.testing.assert_allclose(clamped, refined.low_res_logits, atol=atol)


def test_a_box_of_sam_2_ends_with_a_padding_point() -> None:
    points, labels = labelled_points(boxes_xyxy=np.array([[1, 2, 3, 4]]), pad_boxes=True)
    assert points.tolist() == [[[1, 2], [3, 4], [0, 0]]]
    assert labels.tolist() == [[2, 3, -1]]
    assert labelled_points(np.array([[[5, 6]]]), pad_boxes=True)[1].tolist() == [[1, -1]]


def test_the_signature_of_sam_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be sam, which pads images: it takes square ones"):
        export_onnx(build_sam("sam2_mini"), tmp_path, signature="sam")
    assert not list(tmp_path.iterdir())
