"""Every encoder and model by name: shapes, gradients, sizes, errors."""

import pytest
import torch
from support.random_weights import stir

from mobilesamv2 import build_sam, list_models
from mobilesamv2.models.sam import Sam
from mobilesamv2.models.sam2 import Sam2
from mobilesamv2.models.sam_hq import SamHq
from mobilesamv2.models.timm_backbone import TimmBackbone
from mobilesamv2.registry import build_encoder, list_encoders

# Millions of parameters as reported: SAM, MobileSAM and EfficientViT-SAM (tables of the EfficientViT-SAM paper).
REPORTED = {
    "sam_vit_h": 641.1,
    "mobile_sam": 9.8,
    "efficientvit_l0": 34.8,
    "efficientvit_l1": 47.7,
    "efficientvit_l2": 61.3,
    "efficientvit_sam_l0": 34.8,
    "efficientvit_sam_xl0": 117.0,
    "efficientvit_sam_xl1": 203.3,
}
BIG = {"sam_vit_b", "sam_vit_l", "sam_vit_h", "sam2_hiera_base_plus", "sam2_hiera_large"} | {
    *("sam_hq_vit_b", "sam_hq_vit_l", "sam_hq_vit_h"),
    *("efficientvit_sam_l1", "efficientvit_sam_l2", "efficientvit_sam_xl1", "repvit_sam"),
}
TIMM = ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "vit_small_patch14_dinov2", "levit_128"]
PYRAMIDS = ["convnext_atto", "swin_tiny_patch4_window7_224", "mobilenetv4_conv_small_035", "resnet18", "hiera_tiny_224"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family"),
    [
        *((n, Sam) for n in [*(n for n in list_encoders(Sam) if n not in BIG), *(f"timm/{n}" for n in TIMM)]),
        *((n, Sam2) for n in [*(n for n in list_encoders(Sam2) if n not in BIG), *(f"timm/{n}" for n in PYRAMIDS)]),
        *((n, SamHq) for n in list_encoders(SamHq) if n not in BIG),
    ],
)
def test_encoder_shapes_and_gradients(name: str, family: type[Sam]) -> None:
    """(B, C, S/16, S/16), up to 4C with SAM 2's finer levels, and every parameter takes part."""
    torch.manual_seed(0)
    encoder = build_encoder(name, image_size=256, out_channels=32, family=family).train()
    side = encoder.input_side or 256
    embedding = encoder(torch.randn(2, 3, side, side))
    width = 3 if family is SamHq else 1  # finer levels as channels
    if family is Sam2:
        width = 1 if name.endswith("stride16") else 2 if name.endswith("stride8") else 4
    assert embedding.shape == (2, width * 32, 16, 16)
    (embedding * torch.randn_like(embedding)).sum().backward()
    without = [n for n, p in encoder.named_parameters() if p.grad is None]
    assert not without


@pytest.mark.parametrize("name", list_models())
def test_models_have_the_reported_size(name: str) -> None:
    with torch.device("meta"):
        sam = build_sam(name)
    assert not sam.training
    millions = sum(p.numel() for p in sam.parameters()) / 1e6
    if name in REPORTED:
        assert millions == pytest.approx(REPORTED[name], abs=0.06)
    embedding = torch.randn(1, sam.embedding_channels, sam.image_size // 16, sam.image_size // 16, device="meta")
    logits, iou = sam.decode(embedding, boxes_xyxy=torch.zeros(5, 4, device="meta"), multimask_output=True)
    masks = 1 if name.startswith("sam_hq") else 3
    assert logits.shape == (5, masks, sam.image_size // 4, sam.image_size // 4)
    assert iou.shape == (5, masks)


def test_every_parameter_of_a_sam_gets_a_gradient() -> None:
    """The bias of k cancels in softmax and still must get one, or distributed training fails."""
    sam = build_sam("mini").train()
    stir(sam, seed=0)
    embedding = sam.image_encoder(torch.randn(1, 3, 256, 256))
    points, labels = torch.rand(4, 2, 2) * 256, torch.tensor([[1, 0], [0, 1], [1, -1], [0, 0]])
    boxes = torch.rand(4, 4) * 256
    mask_input = torch.randn(4, 1, 64, 64)
    total = torch.zeros(())
    for inputs in (
        {"points": points, "labels": labels},
        {"boxes_xyxy": boxes},
        {"boxes_xyxy": boxes, "mask_input": mask_input},
    ):
        for multimask_output in (False, True):
            logits, iou = sam.decode(embedding, **inputs, multimask_output=multimask_output)
            total = total + logits.square().sum() + iou.square().sum()
    total.backward()
    assert [n for n, p in sam.named_parameters() if p.grad is None] == []


def test_finer_maps_keep_all_that_they_have() -> None:
    """Map of stride 4: 16 cells of it are the channels of one of the embedding, and nothing is averaged."""
    torch.manual_seed(0)
    backbone = TimmBackbone("mobilenetv4_conv_small_050", 64, finest_stride=4).eval()
    assert backbone.unshuffle_factors == [4, 2, 1, 1]
    images = torch.randn(1, 3, 64, 64)
    fine, middle, *_ = backbone.body(images)
    features = backbone.forward_features(images)
    assert features.shape == (1, backbone.channels, 4, 4)
    first, second = features.split([16 * fine.shape[1], features.shape[1] - 16 * fine.shape[1]], dim=1)
    assert torch.equal(torch.nn.functional.pixel_shuffle(first, 4), fine)
    assert torch.equal(torch.nn.functional.pixel_shuffle(second[:, : 4 * middle.shape[1]], 2), middle)
    # as before where no finer map is asked for
    assert TimmBackbone("mobilenetv4_conv_small_050", 64).unshuffle_factors == [1, 1]


def test_another_encoder_fits_into_a_model() -> None:
    sam = build_sam("mini", encoder="timm/resnet18")
    assert sam.encoder_name == "timm/resnet18"
    assert sam.image_encoder(torch.randn(1, 3, 256, 256)).shape == (1, 64, 16, 16)


@pytest.mark.parametrize(
    ("name", "encoder", "message"),
    [
        ("mobil_sam", None, "Did you mean 'mobile_sam'"),
        ("mini", "repvti", "Did you mean 'repvit'"),
        ("mini", "convnext_tiny", "Did you mean 'timm/convnext_tiny'"),
        ("timm/convnext_tinny", None, "Did you mean 'convnext_tiny'"),
        ("timm/nothing_like_it", None, "name of a timm model, got 'nothing_like_it'"),
        ("sam2_mini", "timm/nothing_like_it", "name of a timm model, got 'nothing_like_it'"),
        (
            "sam2_mini",
            "timm/vit_tiny_patch16_224",
            "SAM 2, whose mask decoder reads maps at strides 4, 8, 16, 32: it has 16",
        ),
        (
            "sam2_mini",
            "sam_vit_b",
            "'sam_vit_b' is of another family than the model, Sam2, which takes sam2_hiera_tiny",
        ),
        (
            "mini",
            "sam2_hiera_tiny",
            "'sam2_hiera_tiny' is of another family than the model, Sam, which takes sam_vit_b",
        ),
        ("sam2_mini", "repvti", "Did you mean 'repvit'"),
        *(
            ("sam_hq_vit_tiny", other, f"'{other}' is of another family .*, SamHq, which takes .*, sam_hq_vit_tiny\\.$")
            for other in ("tiny_vit_5m", "sam_vit_b", "timm/resnet18")
        ),
        ("mobile_sam", "sam_hq_vit_tiny", "'sam_hq_vit_tiny' is of another family than the model, Sam, which takes"),
    ],
)
def test_unknown_names_are_named(name: str, encoder: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_sam(name, encoder=encoder)
