"""The mask decoder beyond parity: chunks, images of each prompt's own, early rejection, training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import relative_difference
from support.official import calibrate, official_mini, ours_from
from support.random_weights import stir

from mobilesamv2 import SegAny, SegEvery, build_sam
from mobilesamv2.models import mask_decoder
from mobilesamv2.models.mask_decoder import Decoded
from mobilesamv2.models.sam import Sam
from mobilesamv2.models.transformer import ImageContext
from mobilesamv2.prompts import Grid
from mobilesamv2.structures import Masks, Prompts


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    sam = build_sam("mini")
    stir(sam, seed=3)
    return sam


def inputs(sam: Sam, num_prompts: int, own_images: bool) -> tuple[torch.Tensor, ...]:
    """Image embedding, positions, sparse and dense prompts."""
    torch.manual_seed(5)
    corners = torch.rand(num_prompts, 2, 2) * 256
    sparse, dense = sam.prompt_encoder(boxes_xyxy=torch.cat([corners.amin(1), corners.amax(1)], 1))
    embedding = torch.randn(num_prompts if own_images else 1, 64, 16, 16)
    return embedding, sam.prompt_encoder.image_positions(), sparse, dense


@torch.no_grad()
@pytest.mark.parametrize("own_images", [False, True])
def test_chunks_change_nothing(sam: Sam, own_images: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, positions, sparse, dense = inputs(sam, 7, own_images)
    context = sam.mask_decoder.precompute_image(embedding, positions, dense)
    cells = context.image.shape[1]
    monkeypatch.setattr(mask_decoder, "CPU_CHUNK_CELLS", 7 * cells)
    expected = sam.mask_decoder.decode(context, sparse, multimask_output=True, pred_iou_thresh=0.0)
    assert len(expected.keep_index) > 0
    for chunk in (1, 3):
        monkeypatch.setattr(mask_decoder, "CPU_CHUNK_CELLS", chunk * cells)
        sizes: list[int] = []
        hook = sam.mask_decoder.transformer.register_forward_hook(
            lambda _m, _i, o, sizes=sizes: sizes.append(len(o[1]))
        )
        decoded = sam.mask_decoder.decode(context, sparse, multimask_output=True, pred_iou_thresh=0.0)
        hook.remove()
        assert max(sizes) == chunk
        assert sum(sizes) == 7
        assert torch.equal(decoded.keep_index, expected.keep_index)
        assert relative_difference(decoded.logits, expected.logits) < 1e-6
        assert relative_difference(decoded.predicted_iou, expected.predicted_iou) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("own_images", [False, True])
def test_prompts_on_their_own_images_are_decoded_as_alone(own_images: bool) -> None:
    official = official_mini()
    embedding, _, sparse, dense = inputs(build_sam("mini"), 6, own_images=True)
    positions = official.prompt_encoder.get_dense_pe()
    if not own_images:
        embedding = embedding[:1].expand(6, -1, -1, -1)
    sam = build_sam("sam_vit_mini")
    sam.mask_decoder.load_state_dict(official.mask_decoder.state_dict())
    logits, iou = sam.mask_decoder(embedding, positions, sparse, dense, True)
    for i in range(6):
        one = slice(i, i + 1)
        theirs, their_iou = official.mask_decoder(
            embedding[one], positions, sparse[one], dense.expand(1, -1, -1, -1), multimask_output=True
        )
        assert relative_difference(logits[one], theirs) < 1e-5
        assert relative_difference(iou[one], their_iou) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("multimask_output", [False, True])
def test_early_rejection_keeps_what_filtering_afterwards_keeps(sam: Sam, multimask_output: bool) -> None:
    embedding, positions, sparse, dense = inputs(sam, 9, own_images=False)
    logits, iou = sam.mask_decoder(embedding, positions, sparse, dense, multimask_output)
    context = sam.mask_decoder.precompute_image(embedding, positions, dense)
    upscaled = []
    hook = sam.mask_decoder._upscale
    for threshold in (float(iou.median()), float(iou.max()) + 1):
        upscaled.clear()

        def counted(part: ImageContext, *args, upscaled: list[int] = upscaled) -> torch.Tensor:
            upscaled.append(len(part.image))
            return hook(part, *args)

        sam.mask_decoder._upscale = counted
        try:
            decoded = sam.mask_decoder.decode(context, sparse, multimask_output, pred_iou_thresh=threshold)
        finally:
            del sam.mask_decoder._upscale
        passes = iou > threshold
        assert sum(upscaled) == passes.any(1).sum()
        assert decoded.keep_index.tolist() == passes.flatten().nonzero().flatten().tolist()
        assert len(decoded.keep_index) == 0 or relative_difference(decoded.logits, logits[passes]) < 1e-6
        assert torch.allclose(decoded.predicted_iou, iou, atol=1e-6)


def test_segevery_rejects_early_what_it_would_reject_late(photo: np.ndarray, tmp_path: Path) -> None:
    official = official_mini()
    calibrate(official, photo)
    sam = ours_from(official, tmp_path)

    class Late(SegAny):
        """Upscales everything, and rejects afterwards."""

        def predict_filtered(
            self, prompts: Prompts, multimask_output: bool, pred_iou_thresh: float | None = None
        ) -> Decoded:
            logits, iou, keep_index = super().predict_filtered(prompts, multimask_output)
            assert pred_iou_thresh is not None
            passes = iou.flatten() > pred_iou_thresh
            return Decoded(logits[passes], iou, keep_index[passes])

    def masks(late: bool) -> Masks:
        segevery = SegEvery(sam, Grid(points_per_side=9))
        if late:
            segevery.segany = Late(sam)
        return segevery(photo)

    early, late = masks(late=False), masks(late=True)
    assert 0 < len(early) < 81 * 3
    assert early.rles == late.rles
    assert torch.equal(early.prompt_index, late.prompt_index)
    assert torch.equal(early.scores, late.scores)


@torch.no_grad()
def test_no_prompts_no_masks(sam: Sam) -> None:
    embedding, positions, sparse, dense = inputs(sam, 2, own_images=False)
    logits, iou = sam.mask_decoder(embedding, positions, sparse[:0], dense, True)
    assert logits.shape == (0, 3, 64, 64)
    assert iou.shape == (0, 3)


@pytest.mark.parametrize("own_images", [False, True])
@pytest.mark.parametrize("precision", ["full", "autocast"])
def test_every_parameter_is_trained(own_images: bool, precision: str) -> None:
    """The bias of k too, which cancels: without a gradient, distributed training fails."""
    sam = build_sam("mini").train()
    stir(sam, seed=3)
    embedding, positions, sparse, dense = inputs(sam, 5, own_images)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        outputs = [
            sam.mask_decoder(embedding, positions, sparse, dense, multimask_output)
            for multimask_output in (False, True)
        ]
    sum(x.float().square().sum() for pair in outputs for x in pair).backward()
    gradients = {name: p.grad for name, p in sam.mask_decoder.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    flat = [n for n, g in gradients.items() if not g.any() and "k_proj.bias" not in n]
    assert flat == []


def test_gradients_are_the_official_ones() -> None:
    official = official_mini()
    sam = build_sam("sam_vit_mini")
    sam.mask_decoder.load_state_dict(official.mask_decoder.state_dict())
    embedding, _, sparse, dense = (x.detach() for x in inputs(sam, 3, own_images=False))
    positions = official.prompt_encoder.get_dense_pe()
    found = []
    for decoder in (official.mask_decoder, sam.mask_decoder):
        image = embedding.clone().requires_grad_()
        logits, iou = decoder(image, positions, sparse, dense, True)
        (logits.square().mean() + iou.square().mean()).backward()
        found.append({"image": image.grad, **{n: p.grad for n, p in decoder.named_parameters()}})
    theirs, ours = found
    for name, gradient in theirs.items():
        if gradient is not None and "k_proj.bias" not in name and gradient.any():
            assert relative_difference(ours[name], gradient) < 1e-4, name


@torch.no_grad()
def test_autocast_is_near_full_precision(sam: Sam) -> None:
    for own_images in (False, True):
        given = inputs(sam, 5, own_images)
        logits, iou = sam.mask_decoder(*given, True)
        with torch.autocast("cpu", torch.bfloat16):
            rough, rough_iou = sam.mask_decoder(*given, True)
        assert relative_difference(rough.float(), logits) < 0.05
        assert relative_difference(rough_iou.float(), iou) < 0.05


@pytest.mark.parametrize("name", ["mini", "edge_sam", "tinysam"])
def test_the_stages_hold_all_masks_whichever_a_family_returns(name: str) -> None:
    torch.manual_seed(0)
    sam = build_sam(name, image_size=256).train()
    embedding = torch.randn(1, sam.prompt_encoder.embed_dim, 16, 16)
    prompt = {"points": torch.rand(3, 2, 2) * 256, "labels": torch.ones(3, 2, dtype=torch.int64)}
    with torch.no_grad():
        stages = sam.decode_stages(embedding, **prompt)
        single, several = (sam.decode(embedding, **prompt, multimask_output=three) for three in (False, True))
    assert stages.tokens.shape == (3, 5, sam.prompt_encoder.embed_dim)
    assert torch.allclose(stages.logits, torch.cat([single[0], several[0]], dim=1), atol=1e-4)
    assert torch.allclose(stages.predicted_iou, torch.cat([single[1], several[1]], dim=1), atol=1e-5)
    if name == "tinysam":  # whose single mask is the best of three, outside training
        with torch.no_grad():
            assert torch.equal(sam.eval().decode_stages(embedding, **prompt).logits, stages.logits)
