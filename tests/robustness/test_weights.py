"""Weight files of any bytes, and networks that give NaN."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.corrupt_inputs import FUZZ, outcome

from mobilesamv2 import SegAny, SegEvery, build_sam, load_sam
from mobilesamv2.checkpoints import load_weights, save_weights
from mobilesamv2.models.sam import Sam
from mobilesamv2.prompts import GridProposals


@lru_cache
def micro() -> Sam:
    return build_sam("micro_conv")


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one model's files."""
    folder, sam = tmp_path_factory.mktemp("weights"), micro()
    save_weights(sam, folder / "a.safetensors")
    torch.save(sam.state_dict(), folder / "a.pth")
    torch.save(sam.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    return folder


@settings(FUZZ, max_examples=80)
@given(st.sampled_from(["a.safetensors", "a.pth", "old.pth"]), st.data())
def test_bytes_of_a_weight_file_may_be_anything(
    weight_files: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    content = bytearray((weight_files / name).read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    for _ in range(data.draw(st.sampled_from([1, 3, 8])) if content else 0):
        place = data.draw(st.sampled_from([data.draw(st.integers(0, 3000)), -data.draw(st.integers(1, 3000))]))
        content[place % len(content)] = data.draw(st.integers(0, 255))
    (tmp_path / name).write_bytes(content)
    _, said = outcome(lambda: load_weights(micro(), tmp_path / name))
    assert not said or name in said


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


@pytest.mark.parametrize("said", ["[]", "3", "{}", "{", '{"name": "micro_conv"}', '{"name": "x", "encoder": "y"}'])
def test_safetensors_that_say_something_odd_of_their_model(tmp_path: Path, said: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={"mobilesamv2": said})
    with pytest.raises(ValueError, match=r"must be a safetensors file written by mobilesamv2|There is no model 'x'"):
        load_sam(tmp_path / "odd.safetensors")


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
