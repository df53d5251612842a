"""Batch norms folded for inference: the same outputs, and the model itself as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.random_weights import stir
from torch import nn

from mobilesamv2 import SegAny, build_sam
from mobilesamv2.checkpoints import save_mobile_sam, save_weights
from mobilesamv2.models.sam import Sam

SMALL = ["mini", "mini_conv", "sam_vit_mini"]
LARGE = ["mobile_sam", "efficientvit_l0", "repvit", "timm/convnext_atto", "timm/resnet10t"]


def stirred(name: str) -> Sam:
    torch.manual_seed(0)
    sam = build_sam(name)
    stir(sam.image_encoder, seed=1)
    return sam


def batch_norms(sam: Sam) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in sam.modules())


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_outputs_are_the_same(name: str) -> None:
    sam = stirred(name)
    before = {key: value.clone() for key, value in sam.state_dict().items()}
    fast = sam.for_inference()
    images = torch.randn(1, 3, sam.image_size, sam.image_size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, embedding = sam.image_encoder(images), fast.image_encoder(images)
    assert (embedding - expected).abs().max() < 1e-5 * expected.abs().max()
    assert batch_norms(fast) <= batch_norms(sam) // 4  # RepViT has some that follow no convolution
    assert sam.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in sam.state_dict().items())


def test_masks_are_the_same(photo: np.ndarray) -> None:
    sam = stirred("mini")
    outputs = []
    for model in (sam, sam.for_inference()):
        segany = SegAny(model)
        segany.set_image(photo)
        outputs.append(segany.predict(boxes=[[10, 10, 80, 60]]).low_res_logits)
    np.testing.assert_allclose(*outputs, atol=1e-5 * np.abs(outputs[0]).max())


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"call encoder\.eval\(\) first"):
        build_sam("mini").train().for_inference()


def test_copies_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save the model that it was copied from"):
        save_weights(build_sam("mini").for_inference(), tmp_path / "mini.safetensors")
    with pytest.raises(ValueError, match="mobile_sam"):
        save_mobile_sam(build_sam("mini").for_inference(), tmp_path / "mini.pt")
