"""Weight files of other things than weights, and networks that give NaN."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mobilesamv2 import SegAny, SegEvery, build_sam, load_sam
from mobilesamv2.checkpoints import load_weights, save_weights
from mobilesamv2.models.sam import Sam
from mobilesamv2.prompts import GridProposals


@pytest.mark.parametrize(
    "content",
    [
        {1: torch.zeros(1)},
        {"image_encoder.x": "text"},
        {"PromtEncoder": {"a": 1}, "MaskDecoder": {2: torch.zeros(1)}},
        {"layers.0.blocks.x": torch.zeros(1), "epoch": 3},
        {},
    ],
)
def test_dictionaries_that_are_no_weights(tmp_path: Path, content: dict[Any, Any]) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt (contains no part|has unexpected|does not fit)"):
        build_sam("micro_conv", tmp_path / "odd.pt")


KEY = "mask_decoder.iou_token.weight"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (torch.Tensor.bool, "torch.bool"),
        (torch.Tensor.int, "torch.int32"),
        (lambda value: value.to(torch.complex64), "torch.complex64"),
        (lambda value: value.to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (lambda value: value.to("meta"), "a meta tensor, which holds no values"),
        (lambda value: torch.nested.nested_tensor([value[0], value[0][:3]]), "nested"),
        (torch.Tensor.to_sparse, "sparse"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights_are_refused(tmp_path: Path, change: Any, kind: str) -> None:
    sam = build_sam("micro_conv")
    torch.save(sam.state_dict() | {KEY: change(sam.state_dict()[KEY])}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=rf"odd\.pth must hold plain tensors, .*but {KEY} is {kind}\.$"):
        load_weights(sam, tmp_path / "odd.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_other_widths_load(tmp_path: Path, dtype: torch.dtype) -> None:
    sam = build_sam("micro_conv")
    value = sam.state_dict()[KEY].to(dtype)
    torch.save(sam.state_dict() | {KEY: value}, tmp_path / "other.pth")
    load_weights(sam, tmp_path / "other.pth")
    assert torch.equal(sam.state_dict()[KEY], value.float())
    torch.save(
        sam.state_dict() | {KEY: torch.full_like(sam.state_dict()[KEY], 1e300, dtype=torch.float64)}, tmp_path / "a.pth"
    )
    with pytest.raises(ValueError, match=rf"NaN or infinity in {KEY}"):
        load_weights(sam, tmp_path / "a.pth")


def test_a_changed_bit_of_a_weight_is_noticed(tmp_path: Path) -> None:
    sam = build_sam("micro_conv")
    torch.save(sam.state_dict(), tmp_path / "bit.pth")
    content = bytearray((tmp_path / "bit.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "bit.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"bit\.pth can't be read as weights alone.*Bad CRC-32"):
        load_weights(sam, tmp_path / "bit.pth")
    torch.serialization.set_crc32_options(False)  # a file without checksums loads
    try:
        torch.save(sam.state_dict(), tmp_path / "without.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_weights(sam, tmp_path / "without.pth") == ("image_encoder", "prompt_encoder", "mask_decoder")


@pytest.mark.parametrize(
    "said",
    [
        *("[]", "3", "{}", "{", "[" * 9999, '{"name": "micro_conv"}', '{"name": "x", "encoder": "y"}'),
        '{"name": "micro_conv", "encoder": "timm/nothing"}',
        '{"name": "micro_conv", "encoder": "timm/resnet18.nothing"}',
    ],
)
def test_safetensors_that_say_something_odd_of_their_model(tmp_path: Path, said: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={"mobilesamv2": said})
    with pytest.raises(ValueError, match=r"odd\.safetensors must (be a safetensors file written|name a model of this)"):
        load_sam(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("side", ['"256"', "256.7", "-256", "0", "1e30", "3200000", "320000", "100", "true", "[256]"])
def test_an_image_size_that_no_model_has(tmp_path: Path, side: str) -> None:
    said = f'{{"name": "micro_conv", "encoder": "conv_micro", "image_size": {side}}}'
    save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={"mobilesamv2": said})
    with pytest.raises(ValueError, match=r"metadata of .*odd\.safetensors are broken: image_size must be a multiple"):
        load_sam(tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="image_size must be a multiple of 32 pixels from 32 to 8192, got 320000"):
        build_sam("micro_conv", image_size=320_000)


def test_an_empty_list_of_weight_files_is_refused() -> None:
    with pytest.raises(ValueError, match="checkpoint of micro_conv must name at least one file, got an empty list"):
        build_sam("micro_conv", [])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    sam = build_sam("micro_conv")
    sam.mask_decoder.iou_token.weight.data[0, 3] = bad
    save_weights(sam, tmp_path / "nan.safetensors")
    with pytest.raises(
        ValueError, match=r"nan\.safetensors contains NaN or infinity in mask_decoder\.iou_token\.weight"
    ):
        load_sam(tmp_path / "nan.safetensors")


def test_a_detector_whose_weights_are_not_finite_is_refused(tmp_path: Path) -> None:
    from mobilesamv2.models.object_detector import build_detector, save_detector

    detector = build_detector("yolov8n")
    next(detector.parameters()).data[0] = float("nan")
    save_detector(detector, tmp_path / "nan.pt")
    with pytest.raises(ValueError, match=r"nan\.pt contains NaN or infinity in its weights"):
        build_detector(checkpoint=tmp_path / "nan.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "nan.pt").read_bytes()[:50_000])
    with pytest.raises(ValueError, match=r"torn\.pt is not an ultralytics checkpoint"):
        build_detector(checkpoint=tmp_path / "torn.pt")


def broken_at(part: str) -> Sam:
    """A model that gives NaN, as one does in float16 that its values don't fit."""
    sam = build_sam("micro_conv")
    spoil = {
        "encoder": sam.image_encoder.neck,
        "iou": sam.mask_decoder.iou_prediction_head,
        "logits": sam.mask_decoder.output_upscaling,
    }[part]
    next(spoil.parameters()).data[0] = float("nan")
    return sam


@pytest.mark.parametrize(
    ("part", "network"), [("encoder", "image encoder"), ("iou", "mask decoder"), ("logits", "mask decoder")]
)
def test_nan_is_an_error_and_no_mask(photo: np.ndarray, part: str, network: str) -> None:
    sam = broken_at(part)
    with pytest.raises(ValueError, match=f"The {network} returns NaN or infinity in torch.float32: its weights"):
        SegEvery(sam, GridProposals(points_per_side=2))(photo)
    segany = SegAny(sam)
    if part == "encoder":
        with pytest.raises(ValueError, match=f"The {network} returns NaN"):
            segany.set_image(photo)
        return
    segany.set_image(photo)
    for more in ({}, {"mask_input": np.zeros((1, 64, 64))}):
        with pytest.raises(ValueError, match=f"The {network} returns NaN"):
            segany.predict(boxes=[[1, 1, 50, 50]], **more)


def test_a_run_that_diverged_writes_no_weights(tmp_path: Path) -> None:
    from functools import partial

    from mobilesamv2.recipes.training import check_finite
    from mobilesamv2.tasks.train_prompted_masks import TrainPromptedMasks

    task = TrainPromptedMasks(broken_at("iou"), partial(torch.optim.AdamW, lr=1.0))
    with pytest.raises(ValueError, match=r"The run diverged: .* Lower optimizer\.lr"):
        check_finite(task, tmp_path)
