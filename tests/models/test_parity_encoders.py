"""Image encoders against the official code, on random weights in the official formats, at full size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import sam_model_registry
from support import relative_difference, run_reference
from support.random_weights import pass_filters, stir

from mobilesamv2 import SegAny, build_sam
from mobilesamv2.checkpoint_layouts import split_parts
from mobilesamv2.checkpoints import _mismatches, load_weights, save_mobile_sam


@pytest.fixture(scope="module")
def mobile_sam_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mobile_sam")
    run_reference("mobile_sam_outputs.py", out)
    return out


def check_mobile_sam(segany: SegAny, outputs: dict[str, torch.Tensor]) -> None:
    segany.set_image(outputs["image"].numpy())
    assert relative_difference(segany.image_embedding, outputs["embedding"]) < 1e-4
    prediction = segany.predict(points=[[50, 60]], labels=[1])
    low_res = torch.from_numpy(prediction.low_res_logits[0])
    assert relative_difference(low_res, outputs["low_res"]) < 1e-4
    assert (torch.from_numpy(prediction.masks[0]) == outputs["masks"]).float().mean() > 0.9999
    assert torch.allclose(torch.from_numpy(prediction.predicted_iou[0]), outputs["predicted_iou"], atol=1e-4)


@pytest.mark.slow
def test_mobile_sam_loads_and_agrees(mobile_sam_reference: Path) -> None:
    sam = build_sam("mobile_sam", mobile_sam_reference / "mobile_sam.pt")
    check_mobile_sam(SegAny(sam), torch.load(mobile_sam_reference / "outputs.pt"))


@pytest.mark.slow
def test_official_package_loads_what_we_write(tmp_path: Path) -> None:
    torch.manual_seed(3)
    sam = build_sam("mobile_sam")
    stir(sam, seed=5)
    pass_filters(sam.mask_decoder)
    save_mobile_sam(sam, tmp_path / "mobile_sam.pt")
    run_reference("mobile_sam_outputs.py", tmp_path, tmp_path / "mobile_sam.pt")
    check_mobile_sam(SegAny(sam), torch.load(tmp_path / "outputs.pt"))


def test_round_trip_keeps_every_weight(mobile_sam_reference: Path, tmp_path: Path) -> None:
    official = torch.load(mobile_sam_reference / "mobile_sam.pt")
    save_mobile_sam(build_sam("mobile_sam", mobile_sam_reference / "mobile_sam.pt"), tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt")
    assert again.keys() == official.keys()
    unused = {f"image_encoder.{k}" for k in ("norm_head.weight", "norm_head.bias", "head.weight", "head.bias")}
    assert {k for k in official if not torch.equal(official[k], again[k])} <= unused


@pytest.mark.slow
def test_weights_loaded_after_a_forward_pass_take_effect(mobile_sam_reference: Path) -> None:
    """timm's TinyViT caches its attention biases in eval mode."""
    outputs = torch.load(mobile_sam_reference / "outputs.pt")
    sam = build_sam("mobile_sam")
    SegAny(sam).set_image(outputs["image"].numpy())
    load_weights(sam, mobile_sam_reference / "mobile_sam.pt")
    check_mobile_sam(SegAny(sam), outputs)


@pytest.mark.slow
@torch.no_grad()
def test_sam_vit_b_agrees(tmp_path: Path) -> None:
    torch.manual_seed(0)
    official = sam_model_registry["vit_b"]()
    stir(official, seed=4)
    torch.save(official.state_dict(), tmp_path / "sam_vit_b_01ec64.pth")
    ours = build_sam("sam_vit_b", tmp_path / "sam_vit_b_01ec64.pth")
    images = torch.randn(1, 3, 1024, 1024)
    assert relative_difference(ours.image_encoder(images), official.image_encoder(images)) < 1e-4


@pytest.mark.parametrize("size", ["l", "h"])
def test_the_larger_vits_have_the_official_keys_and_shapes(size: str) -> None:
    with torch.device("meta"):
        official = sam_model_registry[f"vit_{size}"]()
        ours = build_sam(f"sam_vit_{size}")
    renamed = split_parts(dict(official.state_dict()), Path("official"))
    assert renamed.keys() == {"image_encoder", "prompt_encoder", "mask_decoder"}
    for part, state in renamed.items():
        assert _mismatches(part, getattr(ours, part).state_dict(), state) == []
    theirs = [block.window_size for block in official.image_encoder.blocks]
    assert [block.window_size for block in ours.image_encoder.backbone.blocks] == theirs
    heads = {block.attn.num_heads for block in official.image_encoder.blocks}
    assert {block.attn.num_heads for block in ours.image_encoder.backbone.blocks} == heads


@pytest.mark.slow
@torch.no_grad()
def test_efficientvit_l2_and_the_prompt_guided_decoder_agree(tmp_path: Path) -> None:
    run_reference("efficientvit_outputs.py", tmp_path)
    outputs = torch.load(tmp_path / "outputs.pt")
    sam = build_sam("efficientvit_l2", [tmp_path / "l2.pt", tmp_path / "Prompt_guided_Mask_Decoder.pt"])
    embedding = sam.image_encoder(outputs["images"])
    assert relative_difference(embedding, outputs["embedding"]) < 1e-4
    low_res, predicted_iou = sam.decode(outputs["embedding"], boxes_xyxy=outputs["boxes"], multimask_output=False)
    assert relative_difference(low_res, outputs["low_res"]) < 1e-5
    assert torch.allclose(predicted_iou, outputs["iou"], atol=1e-5)


@pytest.mark.slow
def test_ultralytics_loads_what_we_write(tmp_path: Path, photo: np.ndarray) -> None:
    """Its own resizing and drawing of masks differ by a pixel at their edges."""
    torch.manual_seed(3)
    sam = build_sam("mobile_sam")
    stir(sam, seed=5)
    pass_filters(sam.mask_decoder)
    save_mobile_sam(sam, tmp_path / "mobile_sam.pt")
    from ultralytics import SAM

    boxes = [[10.0, 20.0, 70.0, 60.0], [40.0, 10.0, 120.0, 80.0]]
    theirs = SAM(str(tmp_path / "mobile_sam.pt")).predict(photo[..., ::-1], bboxes=boxes, verbose=False)[0].masks.data
    segany = SegAny(sam.eval())
    segany.set_image(photo)
    ours = torch.from_numpy(segany.predict(boxes=boxes, multimask_output=False).masks[:, 0])
    assert ours.shape == theirs.shape == (2, 90, 130)
    assert 0.05 < ours.float().mean() < 0.95
    assert (ours == theirs.bool()).float().mean() > 0.99
