"""Pretrained weights of a timm backbone in an image encoder."""

from pathlib import Path

import pytest
import timm
import torch

from mobilesamv2 import build_sam
from mobilesamv2.transforms import PIXEL_STD


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone's weights under names of another implementation, in the same order."""
    path = tmp_path_factory.mktemp("backbone") / "lite0.pth"
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save({f"tensor_{i}": value for i, value in enumerate(state.values())}, path)
    return path


@pytest.mark.parametrize("by_name", [False, True])
def test_a_backbone_loads_by_name_or_in_order(published: Path, tmp_path: Path, by_name: bool) -> None:
    values = list(torch.load(published).values())
    state = dict(zip(timm.create_model("tf_efficientnet_lite0").state_dict(), values, strict=True))
    path = published
    if by_name:
        path = tmp_path / "timm.pth"
        torch.save(state, path)
    torch.manual_seed(1)
    sam = build_sam("mini_conv", backbone_checkpoint=path)
    body = sam.image_encoder.backbone.body.model.state_dict()
    assert {"conv_stem.weight", "blocks.4.2.bn3.running_var"} <= body.keys()
    assert not any(key.startswith(("blocks.5", "conv_head")) for key in body)  # beyond stride 16
    # SAM divides pixels by its own deviations, timm by half of 255: the first convolution makes up for it
    scale = torch.tensor(PIXEL_STD).view(3, 1, 1) / 127.5
    assert torch.allclose(body["conv_stem.weight"], state["conv_stem.weight"] * scale)
    for key in ("blocks.0.0.conv_dw.weight", "blocks.4.2.bn3.weight"):
        assert torch.equal(body[key], state[key])


def test_weights_of_another_backbone_are_refused(tmp_path: Path, published: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet\.pth must be those of timm's tf_efficientnet_lite0"):
        build_sam("mini_conv", backbone_checkpoint=tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match="must have one timm backbone"):
        build_sam("mini", backbone_checkpoint=published)
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        build_sam("mini_conv", backbone_checkpoint=tmp_path / "none.pth")


def test_timms_own_models_are_built_whatever_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the official MobileSAM was imported first, which registers its own class as tiny_vit_5m_224."""
    from timm.models import _registry

    expected = build_sam("mobile_sam").state_dict().keys()

    def other(**settings: object) -> torch.nn.Module:
        raise AssertionError("another package's model was built")

    for name in ("tiny_vit_5m_224", "repvit_m1", "resnet18"):
        monkeypatch.setitem(_registry._model_entrypoints, name, other)
    with pytest.raises(AssertionError, match="another package's"):
        timm.create_model("tiny_vit_5m_224")
    assert build_sam("mobile_sam").state_dict().keys() == expected
    for name in ("edge_sam", "timm/resnet18"):
        build_sam(name)
