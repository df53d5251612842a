"""EfficientSAM at a small size: its published layout, its prompts, its masks, and what it refuses."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support import relative_difference
from support.random_weights import pass_filters, stir
from torch.nn import functional as F

from mobilesamv2 import SegAny, SegEvery, build_sam
from mobilesamv2.evaluation.clicks import EvaluateClicks
from mobilesamv2.evaluation.prompts import EvaluatePrompts
from mobilesamv2.models.sam import Sam
from mobilesamv2.prompts import Grid
from mobilesamv2.structures import PointLabel, decode
from mobilesamv2.tasks.distill_masks import DistillMasks
from mobilesamv2.tasks.teacher import Teacher
from mobilesamv2.tasks.train_prompted_masks import TrainPromptedMasks
from mobilesamv2.transforms import to_model_input

SIDE = 128
TO_PUBLISHED = (
    (r"^image_encoder\.backbone\.", "image_encoder."),
    (r"\.mlp\.lin1\.", ".mlp.layers.0.0."),
    (r"\.mlp\.lin2\.", ".mlp.fc."),
    (r"output_upscaling\.([01])\.", r"final_output_upscaling_layers.0.\1."),
    (r"output_upscaling\.3\.", "final_output_upscaling_layers.1.0."),
    (r"((?:mlps\.\d|prediction_head)\.layers\.[01])\.", r"\1.0."),
    (r"(mlps\.\d|prediction_head)\.layers\.2\.", r"\1.fc."),
)


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    sam = build_sam("efficient_sam_vitt", image_size=SIDE)
    stir(sam, seed=0)
    pass_filters(sam.mask_decoder, logit_scale=400.0)
    return sam


def published(sam: Sam) -> dict[str, torch.Tensor]:
    """A model's weights under the names of the released files."""
    state = {}
    for key, value in sam.state_dict().items():
        for pattern, replacement in TO_PUBLISHED:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    return state


def boxes_of(number: int) -> torch.Tensor:
    corners = torch.rand(number, 2, 2, generator=torch.Generator().manual_seed(1)) * SIDE
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


def embedding_of(sam: Sam) -> torch.Tensor:
    return torch.randn(1, 256, SIDE // 16, SIDE // 16, generator=torch.Generator().manual_seed(2))


def test_the_published_layout_loads_strictly(sam: Sam, tmp_path: Path) -> None:
    state = published(sam)
    for key in (  # of the released code
        "image_encoder.pos_embed",
        "image_encoder.patch_embed.proj.weight",
        "image_encoder.blocks.11.attn.qkv.bias",
        "image_encoder.neck.3.weight",
        "prompt_encoder.bbox_bottom_right_embeddings.weight",
        "mask_decoder.transformer.layers.1.mlp.layers.0.0.weight",
        "mask_decoder.transformer.layers.1.mlp.fc.bias",
        "mask_decoder.final_output_upscaling_layers.0.1.weight",
        "mask_decoder.final_output_upscaling_layers.1.0.weight",
        "mask_decoder.output_hypernetworks_mlps.3.layers.1.0.weight",
        "mask_decoder.iou_prediction_head.fc.weight",
    ):
        assert key in state
    torch.save({"model": state}, tmp_path / "efficient_sam_vitt.pt")
    loaded = build_sam("efficient_sam_vitt", tmp_path / "efficient_sam_vitt.pt", image_size=SIDE, allow_partial=False)
    for key, value in sam.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    del state["prompt_encoder.invalid_points.weight"]
    torch.save({"model": state}, tmp_path / "broken.pt")
    with pytest.raises(ValueError, match=r"missing key\(s\) in prompt_encoder: invalid_points\.weight"):
        build_sam("efficient_sam_vitt", tmp_path / "broken.pt", image_size=SIDE)
    with pytest.raises(ValueError, match=r"does not fit efficient_sam_vits: size mismatch in image_encoder: backbone"):
        build_sam("efficient_sam_vits", tmp_path / "efficient_sam_vitt.pt", image_size=SIDE)


@pytest.mark.parametrize(("name", "millions"), [("efficient_sam_vitt", 10.2), ("efficient_sam_vits", 26.4)])
def test_sizes(name: str, millions: float) -> None:
    """Millions of parameters, as many as in the publisher's code."""
    with torch.device("meta"):
        sam = build_sam(name)
    assert sum(p.numel() for p in sam.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert (sam.thresholds.pred_iou_thresh, sam.thresholds.stability_score_thresh) == (0.7, 0.9)


def test_every_prompt_is_six_tokens(sam: Sam) -> None:
    """Padded by points at (-1, -1) that are embedded as padding wherever they are said to be."""
    encoder = sam.prompt_encoder
    point = torch.tensor([[[30.0, 40.0]]])
    alone, dense = encoder(point, torch.ones(1, 1))
    assert alone.shape == (1, 6, 256)
    assert dense.shape == (1, 256, 8, 8)
    assert not dense.any()
    anywhere = torch.cat([point, torch.tensor([[[9.0, 9.0], [0.0, 0.0]]])], dim=1)
    for more in (anywhere, torch.cat([anywhere] * 3, dim=1)):  # a seventh one and later ones may be padding
        padded, _ = encoder(more, torch.tensor([[1, *[PointLabel.PADDING] * (more.shape[1] - 1)]]))
        assert torch.equal(padded, alone)
    position = encoder.pe_layer(torch.full((2,), -0.5) / SIDE) + encoder.invalid_points.weight[0]
    assert torch.allclose(alone[0, 1:], position.expand(5, -1), atol=1e-6)
    assert torch.allclose(
        alone[0, 0], encoder.pe_layer((point[0, 0] + 0.5) / SIDE) + encoder.point_embeddings.weight[0]
    )


def test_a_box_is_two_labelled_points(sam: Sam) -> None:
    boxes, points = boxes_of(3), torch.rand(3, 2, 2) * SIDE
    together, _ = sam.prompt_encoder(points, torch.ones(3, 2), boxes)
    coords = torch.cat([boxes.reshape(3, 2, 2), points], dim=1)
    assert torch.equal(together, sam.prompt_encoder.embed_labelled(coords, torch.tensor([[2, 3, 1, 1]] * 3)))
    embedding = embedding_of(sam)
    with torch.no_grad():
        first, _ = sam.decode(embedding, points, torch.ones(3, 2), boxes)
        turned, _ = sam.decode(embedding, points.flip(1), torch.ones(3, 2), boxes)
    assert relative_difference(turned, first) < 1e-5


@torch.no_grad()
def test_the_single_mask_is_the_best_of_three(sam: Sam) -> None:
    embedding, boxes = embedding_of(sam), boxes_of(5)
    three, iou = sam.decode(embedding, boxes_xyxy=boxes)
    one, best = sam.decode(embedding, boxes_xyxy=boxes, multimask_output=False)
    assert torch.allclose(best[:, 0], iou.amax(1))
    assert relative_difference(one[:, 0], three[torch.arange(5), iou.argmax(1)]) < 1e-5
    context = sam.image_context(embedding)
    threshold = float(iou.median())
    kept = sam.decode_filtered(context, boxes_xyxy=boxes, pred_iou_thresh=threshold)
    assert kept.keep_index.tolist() == (iou.flatten() > threshold).nonzero()[:, 0].tolist()
    assert relative_difference(kept.logits, three.flatten(0, 1)[kept.keep_index]) < 1e-5
    assert len(sam.decode_filtered(context, boxes_xyxy=boxes, pred_iou_thresh=99.0).logits) == 0


def test_the_image_fills_the_square_without_antialiasing(sam: Sam, photo: np.ndarray) -> None:
    mean, std = sam.pixel_mean, sam.pixel_std
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255  # as torchvision's ToTensor
    square = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear")
    expected = (square - mean / 255) / (std / 255)
    assert torch.allclose(to_model_input(photo, SIDE, mean, std, sam.resizing), expected, atol=1e-5)
    segany = SegAny(sam)
    segany.set_image(photo)
    found = segany.predict(points=[[65.0, 45.0]])
    full = F.interpolate(torch.from_numpy(found.low_res_logits), photo.shape[:2], mode="bicubic").numpy()
    assert np.abs(full[found.masks != (full > 0)]).max(initial=0) < 1e-4
    assert 0 < found.masks.mean() < 1


def test_everything_is_segmented_by_the_models_thresholds(sam: Sam, photo: np.ndarray) -> None:
    found = SegEvery(sam, Grid(points_per_side=4, box_nms_thresh=0.99))(photo)
    assert len(found) > 0
    assert float(found.predicted_iou.min()) > sam.thresholds.pred_iou_thresh
    assert float(found.stability_score.min()) >= sam.thresholds.stability_score_thresh
    segany = SegAny(sam)
    segany.set_image(photo)
    assert found.prompts.points is not None
    again = segany.predict(points=found.prompts.points[0])
    assert any(np.array_equal(decode(found.rles[0]), mask) for mask in again.masks[0])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            {"points": [[5, 5], [9, 9]], "labels": [1, 0]},
            r"EfficientSAM takes no background points, got a label 0: use",
        ),
        (
            {"boxes": [1, 2, 60, 50], "mask_input": np.zeros((32, 32))},
            r"takes no mask as a prompt, got a mask_input: leave",
        ),
        ({"points": np.full((7, 2), 9.0)}, r"must have at most 6 points, of which a box is two, got 7\."),
        (
            {"points": np.full((5, 2), 9.0), "boxes": [1, 2, 60, 50]},
            r"at most 6 points, of which a box is two, got 7\.",
        ),
    ],
)
def test_prompts_that_it_does_not_take(sam: Sam, photo: np.ndarray, prompt: dict, message: str) -> None:
    segany = SegAny(sam)
    segany.set_image(photo)
    with pytest.raises(ValueError, match=message):
        segany.predict(**prompt)


def test_tasks_that_need_other_prompts_say_so(sam: Sam) -> None:
    with pytest.raises(
        ValueError, match=r"efficient_sam_vitt can't be evaluated by clicks: it takes no background points"
    ):
        EvaluateClicks(sam)
    with pytest.raises(ValueError, match=r"efficient_sam_vitt can't be trained on masks from prompts: it takes no"):
        TrainPromptedMasks(sam, optimizer=lambda groups: torch.optim.AdamW(groups))
    teacher = Teacher(build_sam("efficient_sam_vitt", image_size=SIDE))
    with pytest.raises(ValueError, match=r"task\.rounds must be 0 for efficient_sam_vitt, got 1: it takes no"):
        DistillMasks(sam, teacher, lambda groups: torch.optim.AdamW(groups), rounds=1)
    with pytest.raises(ValueError, match=r"task\.mask_refinements must be 0 for efficient_sam_vitt, got 2"):
        EvaluatePrompts(sam, mask_refinements=2)
