"""Mask inputs and batches of images in graphs of our signature, against SegAny and against one prompt at a time."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from support.exports import Export

from mobilesamv2 import SegAny
from mobilesamv2.export.check import check_graphs
from mobilesamv2.export.graphs import decoder_graph
from mobilesamv2.export.onnx import export_metadata, write_graph
from mobilesamv2.export.runtime import OnnxDecoder, decoder_inputs, open_session
from mobilesamv2.models.sam import Sam
from mobilesamv2.models.sam_variants import EdgeSam, EfficientViTSam, TinySam

pytestmark = pytest.mark.slow

BOXES = np.array([[4.0, 5, 60, 70], [20, 10, 120, 80], [70, 30, 110, 60]])


def set_photo(sam: Sam, photo: np.ndarray) -> tuple[SegAny, np.ndarray]:
    """SegAny with an image set, and the boxes in pixels of the model's input."""
    segany = SegAny(sam)
    segany.set_image(photo)
    return segany, segany.frame.boxes_to_model(torch.from_numpy(BOXES)).numpy()


@pytest.mark.parametrize(("precision", "tolerance"), [("onnx", 1e-4), ("fp16.onnx", 2e-2)])
@pytest.mark.parametrize(("with_boxes", "num_masks"), [(True, 0), (True, 1), (True, 3), (False, 1), (False, 3)])
def test_masks_are_those_of_segany(
    exported: Export, photo: np.ndarray, precision: str, tolerance: float, with_boxes: bool, num_masks: int
) -> None:
    """No mask, one mask that serves three boxes, a mask for each box, and masks alone."""
    segany, boxes = set_photo(exported.sam, photo)
    earlier = segany.predict(boxes=BOXES, multimask_output=False)
    masks = earlier.low_res_logits[:num_masks] if num_masks else None
    prompt = {"boxes": BOXES if with_boxes else None, "mask_input": masks}
    decoder = OnnxDecoder(exported.folder / f"decoder.{precision}")
    embedding = segany.image_embedding.numpy()
    logits, predicted_iou = decoder(embedding, boxes_xyxy=boxes if with_boxes else None, mask_input=masks)
    for kept, multimask_output in ((slice(0, 1), False), (slice(1, 4), True)):
        ours = segany.predict(**prompt, multimask_output=multimask_output)
        largest = np.abs(ours.low_res_logits).max()
        np.testing.assert_allclose(logits[:, kept], ours.low_res_logits, atol=tolerance * largest)
        np.testing.assert_allclose(predicted_iou[:, kept], ours.predicted_iou, atol=tolerance)
    if num_masks and with_boxes:
        assert np.abs(logits[:, :1] - earlier.low_res_logits).max() > 0.01 * np.abs(logits).max()


def test_each_mask_can_be_ignored_and_images_be_a_batch(exported: Export, photo: np.ndarray) -> None:
    """Two images with two masks each, every second one ignored, and two boxes a mask, against one box at a time."""
    rng = np.random.default_rng(0)
    decoder = OnnxDecoder(exported.folder / "decoder.onnx")
    images = [set_photo(exported.sam, np.roll(photo, 30 * i, axis=1)) for i in range(2)]
    embedding = np.concatenate([segany.image_embedding.numpy() for segany, _ in images])
    boxes = np.sort(rng.uniform(0, 250, (8, 2, 2)), axis=1).reshape(8, 4)
    masks = 5 * rng.normal(size=(4, 1, 64, 64))
    inputs = decoder_inputs(embedding, boxes_xyxy=boxes, mask_input=masks)
    inputs["has_mask_input"][1::2] = 0
    logits, predicted_iou = decoder.session.run(None, inputs)
    for i in range(8):
        mask = masks[i // 2 : i // 2 + 1] if i // 2 % 2 == 0 else None
        expected, expected_iou = decoder(embedding[i // 4][None], boxes_xyxy=boxes[i : i + 1], mask_input=mask)
        np.testing.assert_allclose(logits[i : i + 1], expected, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_allclose(predicted_iou[i : i + 1], expected_iou, atol=1e-5)


@pytest.mark.parametrize(("num_images", "num_masks", "num_prompts"), [(1, 2, 3), (2, 1, 4), (2, 3, 6), (1, 0, 2)])
def test_shares_that_are_not_even_are_refused(
    exported: Export, num_images: int, num_masks: int, num_prompts: int
) -> None:
    """By ``decoder_inputs``, and by any runtime that checks indices."""
    inputs = {
        "image_embedding": np.zeros((num_images, 128, 16, 16), np.float32),
        "points": np.zeros((num_prompts, 1, 2), np.float32),
        "labels": np.ones((num_prompts, 1), np.int64),
        "mask_input": np.zeros((num_masks, 1, 64, 64), np.float32),
    }
    with pytest.raises(ValueError, match=f"got {num_images} images, {num_masks} masks and {num_prompts} prompts"):
        decoder_inputs(inputs["image_embedding"], inputs["points"], mask_input=inputs["mask_input"])
    inputs["has_mask_input"] = np.ones(num_masks, np.float32)
    with pytest.raises(Exception, match=r"out of data bounds|division by zero"):
        open_session(exported.folder / "decoder.onnx").run(None, inputs)


def test_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have shape \(M, 1, 64, 64\), got \(3, 64, 64\)"):
        decoder_inputs(np.zeros((1, 8, 16, 16)), boxes_xyxy=BOXES, mask_input=np.zeros((3, 64, 64)))
    with pytest.raises(ValueError, match="must be points or boxes_xyxy"):
        decoder_inputs(np.zeros((1, 8, 16, 16)))


def test_decoders_of_an_earlier_version_are_refused(exported: Export, tmp_path: Path) -> None:
    """Those whose inputs were the embedding, points and labels."""
    names = ("image_embedding", "points", "labels")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in names]
    output = helper.make_tensor_value_info("low_res_logits", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph([helper.make_node("Sum", names, ["low_res_logits"])], "decoder", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    about = export_metadata(exported.sam) | {"part": "decoder", "signature": "mobilesamv2", "precision": "fp32"}
    model.metadata_props.add(key="mobilesamv2", value=json.dumps(about))
    onnx.save(model, tmp_path / "decoder.onnx")
    message = r"decoder\.onnx takes no mask inputs: an earlier version wrote it\. Export it again"
    with pytest.raises(ValueError, match=message):
        OnnxDecoder(tmp_path / "decoder.onnx")
    with pytest.raises(ValueError, match=message):
        check_graphs(exported.sam, exported.folder / "encoder.onnx", tmp_path / "decoder.onnx")
    with pytest.raises(ValueError, match="must be an exported decoder, whose inputs are image_embedding, points"):
        OnnxDecoder(exported.folder / "encoder.onnx")


@pytest.mark.parametrize("kind", [TinySam, EdgeSam, EfficientViTSam])
def test_variants_take_masks(kind: type[Sam], exported: Export, tmp_path: Path) -> None:
    """By the comparison that each export makes, with weights that are trained and another choice of masks."""
    sam = kind(exported.sam.image_encoder, 256, embed_dim=128, decoder_heads=4, decoder_mlp_dim=512).eval()
    sam.load_state_dict(exported.sam.state_dict())
    graph, about = decoder_graph(sam), {"part": "decoder", "signature": "mobilesamv2", "precision": "fp32"}
    write_graph(graph, tmp_path / "decoder.onnx", export_metadata(sam) | about)
    found = check_graphs(sam, exported.folder / "encoder.onnx", tmp_path / "decoder.onnx", tolerance=2e-5)
    assert found["low_res_logits"] > 0
