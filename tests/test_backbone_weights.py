"""Pretrained weights of a timm backbone in an image encoder."""

from pathlib import Path

import pytest
import timm
import torch

from mobilesamv2 import build_sam
from mobilesamv2.backbone_weights import load_backbone
from mobilesamv2.registry import build_encoder
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
    with pytest.raises(ValueError, match="must be timm's own tiny_vit_5m_224 to have pretrained weights"):
        build_sam("mini", backbone_checkpoint=published)
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        build_sam("mini_conv", backbone_checkpoint=tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("encoder", "variant", "prefix", "key"),
    [
        ("tiny_vit_5m", "tiny_vit_5m_224", "", "stages.3.blocks.1.mlp.fc2.weight"),
        ("repvit", "repvit_m1_1", "body.", "stages.2.blocks.0.token_mixer.conv.c.weight"),
        ("edge_sam", "repvit_m1", "body.", "stages.3.downsample.channel_downsample.c.weight"),
        ("efficientvit_l0", "efficientvit_l1", "body.", "stages.3.blocks.3.context_module.main.qkv.conv.weight"),
        ("timm/vit_small_patch16_224", "vit_small_patch16_224", "body.model.", "blocks.11.mlp.fc2.weight"),
    ],
)
def test_the_body_alone_of_every_kind_of_encoder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoder: str, variant: str, prefix: str, key: str
) -> None:
    state = timm.create_model(variant, num_classes=7).state_dict()  # fine-tuned on other classes
    torch.save(state, tmp_path / "timm.pth")
    built = build_encoder(encoder, 256, 64)
    neck = {name: value.clone() for name, value in built.neck.state_dict().items()}
    with caplog.at_level("INFO"):
        load_backbone(built, tmp_path / "timm.pth")
    is_list_of_maps = prefix == "body." and encoder != "edge_sam"
    ours = key.replace(".", "_", 1) if is_list_of_maps else key
    assert torch.equal(built.backbone.state_dict()[prefix + ours], state[key])
    assert all(torch.equal(value, neck[name]) for name, value in built.neck.state_dict().items())
    assert f"timm's {variant}, starts from {tmp_path / 'timm.pth'}" in caplog.text


def test_timms_own_weights_come_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository as the Hub's client keeps it; no network access."""
    from huggingface_hub import constants
    from safetensors.torch import save_file

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"lite0\.in1k\) can't be downloaded: .*hf download timm/tf_eff.*=FILE"):
        build_sam("mini_conv", backbone_checkpoint="timm")
    cached = tmp_path / "models--timm--tf_efficientnet_lite0.in1k"
    (cached / "snapshots" / "0").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0")
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    save_file(state, cached / "snapshots" / "0" / "model.safetensors")
    sam = build_sam("mini_conv", backbone_checkpoint="timm")
    body = sam.image_encoder.backbone.body.model.state_dict()
    assert torch.equal(body["blocks.4.2.bn3.weight"], state["blocks.4.2.bn3.weight"])
    assert torch.equal(body["blocks.0.0.conv_dw.weight"], state["blocks.0.0.conv_dw.weight"])


def test_timm_has_no_weights_of_some(published: Path) -> None:
    with pytest.raises(ValueError, match="timm has no weights of mobilenetv4_conv_small_035"):
        build_sam("micro_conv", backbone_checkpoint="timm")
