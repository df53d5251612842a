"""BatchNorm over all processes gives back the model that it was given, with its activations; it runs on GPUs alone."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mobilesamv2 import build_sam
from mobilesamv2.callbacks.sync_batchnorm import SyncBatchNorms
from mobilesamv2.models.object_detector import build_detector, save_detector


@pytest.mark.parametrize("name", ["mini", "mini_conv", "micro_conv"])
def test_activations_stay(name: str) -> None:
    torch.manual_seed(0)
    sam, images = build_sam(name), torch.randn(1, 3, 256, 256)
    kinds = {name: type(module) for name, module in sam.named_modules()}
    with torch.no_grad():
        expected = sam.image_encoder(images)
        sync = SyncBatchNorms()
        sam = sync.apply(sam)
        assert any(isinstance(module, nn.SyncBatchNorm) for module in sam.modules())
        assert torch.allclose(sam.image_encoder(images), expected, atol=1e-5)
        for norm in sam.modules():
            if isinstance(norm, nn.SyncBatchNorm):
                norm.weight.mul_(1.5)  # as training does
        trained = sam.image_encoder(images)
        sam = sync.revert(sam)
        assert {name: type(module) for name, module in sam.named_modules()} == kinds
        assert torch.allclose(sam.image_encoder(images), trained, atol=1e-5)
        assert not torch.allclose(trained, expected, atol=1e-2)


def test_a_detector_is_written_that_loads(tmp_path: Path) -> None:
    detector, sync = build_detector("yolov8n"), SyncBatchNorms()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    save_detector(sync.revert(sync.apply(detector)), tmp_path / "detector.pt")
    loaded = build_detector(checkpoint=tmp_path / "detector.pt").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in before.items())
