"""Any timm backbone: all of it, in the frame of the image, or a sentence that says why not."""

import logging

import pytest
import torch
from torch.nn import functional as F

from mobilesamv2.models.timm_backbone import TimmBackbone, TimmPyramid, input_side


def test_a_vit_has_all_its_blocks() -> None:
    """timm numbers the maps that it offers by default, the last three of a ViT's twelve blocks, from 9 on."""
    with torch.device("meta"):
        assert len(TimmBackbone("vit_tiny_patch16_224", 64).body.model.blocks) == 12


@pytest.mark.parametrize(
    ("image_size", "strides", "side"),
    [
        (1024, [4, 8, 16, 32], 1024),
        (256, [16, 16, 16], 256),
        (1024, [14, 14, 14], 64 * 14),
        (256, [14], 16 * 14),
        (1024, [7, 14, 14, 14], 64 * 14),
        (1024, [7], 64 * 2 * 7),
        (1024, [12], 64 * 12),
        (1024, [20], 51 * 20),
    ],
)
def test_images_are_resampled_where_a_stride_does_not_divide_them(
    image_size: int, strides: list[int], side: int
) -> None:
    assert input_side(image_size, strides) == side


def test_patches_of_14_pixels_are_cells_of_the_embedding(caplog: pytest.LogCaptureFixture) -> None:
    """What is bright in one cell of 16 pixels is bright in that cell's patch, in every corner; no pixel is left out."""
    caplog.set_level(logging.INFO)
    backbone = TimmBackbone("vit_small_patch14_dinov2", 128).eval()
    assert "images are resampled from 128 to 112 pixels a side" in caplog.text
    embed = backbone.body.model.patch_embed
    torch.nn.init.constant_(embed.proj.weight, 1.0)
    torch.nn.init.zeros_(embed.proj.bias)
    seen: list[torch.Tensor] = []
    embed.proj.register_forward_hook(lambda _module, _inputs, output: seen.append(output[:, 0]))
    cells = torch.eye(64).view(64, 1, 8, 8)[[0, 7, 27, 56, 63]]
    images = F.interpolate(cells, scale_factor=16).expand(-1, 3, -1, -1).requires_grad_()
    with torch.enable_grad():
        features = backbone.forward_features(images)
    assert features.shape == (5, backbone.channels, 8, 8)
    assert seen[0].shape == (5, 8, 8)
    assert seen[0].flatten(1).argmax(1).tolist() == [0, 7, 27, 56, 63]
    seen[0].sum().backward()
    assert images.grad is not None
    assert (images.grad > 0).all()


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("efficientformer_l1", r"can't be an image encoder for 256 x 256 pixels: .*49.* It may be made for one size\."),
        ("crossvit_tiny_240", "its map of stride 12 has 20 x 20 cells"),
        ("inception_v3", "its map of stride 2 has 125 x 125 cells for 256 x 256 pixels, not 128 a side, .* lost"),
        ("pit_ti_224", "its map of stride 8 has 31 x 31 cells for 256 x 256 pixels, not 32"),
    ],
)
def test_a_backbone_that_does_not_fit_is_a_sentence(variant: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TimmBackbone(variant, 256)


def test_each_pixel_of_a_pyramid_has_mean_0_and_variance_1() -> None:
    """Whichever axis has the channels: a network's own maps differ in scale by an order of magnitude."""
    for variant in ("mobilenetv4_conv_small_035", "swin_s3_tiny_224"):
        pyramid = TimmPyramid(variant, 224).eval()
        maps = pyramid.forward_features(torch.randn(1, 3, 224, 224))
        assert [m.shape[1] for m in maps] == pyramid.channels
        assert [m.shape[-1] for m in maps] == [56, 28, 14, 7]
        for m in maps:
            assert torch.allclose(m.mean(1), torch.zeros(()), atol=1e-4)
            assert m.var(1, correction=0).median().item() == pytest.approx(1, abs=0.02)
