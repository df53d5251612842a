"""Run lengths from low-res logits: what SAM's two bilinear steps and stability score give, without the floats."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.utils.amg import calculate_stability_score
from torch import Tensor

from mobilesamv2 import masks
from mobilesamv2.rle_encoder import RleEncoder
from mobilesamv2.transforms import ModelFrame, Resizing


def discs(number: int, cells: int, noise: float, seed: int = 0) -> Tensor:
    """Logits (D, cells, cells) of discs of all sizes, one logit a cell at their edge, with noise."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
    centre = torch.rand(number, 2, 1, 1, generator=generator) * cells
    radius = torch.rand(number, 1, 1, generator=generator) ** 3 * cells
    logits = radius - ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2).sqrt()
    return logits + noise * torch.randn(logits.shape, generator=generator)


def agree(logits: Tensor, size: tuple[int, int], side: int, resizing: Resizing = Resizing.LONGEST_SIDE) -> None:
    """Asserts that masks and stability are those of the enlarged logits."""
    frame = ModelFrame(size, side, resizing)
    rles, stability = RleEncoder.for_frame(frame, logits.device)(logits)
    full = frame.logits_to_original(logits)
    for rle, expected in zip(rles, masks.encode(full > masks.MASK_THRESHOLD), strict=True):
        assert rle == (expected if masks.areas([expected])[0] else None)
    official = calculate_stability_score(full, masks.MASK_THRESHOLD, 1.0)
    assert torch.equal(stability, official.nan_to_num(0.0))


SIZES = [(1500, 2250), (480, 640), (90, 130), (1, 300), (500, 3), (1, 1), (256, 256), (2, 2000)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_masks_are_those_of_two_bilinear_steps(size: tuple[int, int], noise: float) -> None:
    agree(discs(6, 64, noise), size, side=256)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("resizing", [Resizing.SQUARE, Resizing.EFFICIENT_SAM])
def test_masks_are_those_of_a_squares_one_step(size: tuple[int, int], noise: float, resizing: Resizing) -> None:
    agree(discs(6, 64, noise), size, 256, resizing)


def test_a_bicubic_mask_may_have_pixels_where_no_cell_is_positive() -> None:
    """Between two cells just below the threshold, beside two far below it."""
    logits = torch.full((1, 64, 64), -0.2)
    logits[..., [30, 33]] = -90.0
    frame = ModelFrame((90, 130), 256, Resizing.EFFICIENT_SAM)
    encoder = RleEncoder.for_frame(frame, logits.device)
    [rle], _ = encoder(logits)
    assert rle == masks.encode(frame.logits_to_original(logits) > 0)[0]
    boxes, found = encoder.boxes(logits)
    assert found.tolist() == [True]
    assert torch.equal(boxes, masks.boxes_from_rles([rle]))


@pytest.mark.parametrize("edge_cost", [-1e9, 1e9])
def test_half_precision_around_it_moves_no_edge(edge_cost: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobilesamv2.rle_encoder.EDGE_COST", edge_cost)
    with torch.autocast("cpu", torch.bfloat16):
        agree(discs(6, 64, noise=0.3), (300, 450), side=256)


@pytest.mark.parametrize("edge_cost", [-1e9, 1e9])
@pytest.mark.parametrize("size", [(300, 450), (90, 130), (1, 300), (500, 3)])
def test_both_ways_of_encoding(size: tuple[int, int], edge_cost: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobilesamv2.rle_encoder.EDGE_COST", edge_cost)
    agree(discs(6, 64, noise=0.3), size, side=256)


def test_full_size() -> None:
    agree(discs(4, 256, noise=0.5), (683, 1024), side=1024)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([16, 64, 128]), st.floats(0, 3), st.integers(0, 99))
def test_any_size(height: int, width: int, side: int, noise: float, seed: int) -> None:
    agree(discs(3, side // 4, noise, seed), (height, width), side)


def test_everything_and_nothing() -> None:
    empty, covered, faint = (torch.full((64, 64), value) for value in (-9.0, 9.0, -0.5))
    rles, stability = RleEncoder.for_frame(ModelFrame((30, 40), 256), empty.device)(
        torch.stack([empty, covered, faint])
    )
    assert rles[0] is None
    assert rles[2] is None
    assert masks.decode(rles[1] or {}).all()
    assert stability.tolist() == [0.0, 1.0, 0.0]


def test_no_masks() -> None:
    rles, stability = RleEncoder.for_frame(ModelFrame((30, 40), 256), torch.device("cpu"))(torch.zeros(0, 64, 64))
    assert rles == []
    assert stability.shape == (0,)


def test_unstable_masks_are_not_encoded() -> None:
    logits = discs(8, 64, noise=0.3)
    encoder = RleEncoder.for_frame(ModelFrame((90, 130), 256), logits.device)
    every, stability = encoder(logits)
    least = float(stability.median())
    stable, same = encoder(logits, stability_score_thresh=least)
    assert torch.equal(stability, same)
    assert 0 < sum(rle is None for rle in stable) < len(logits)
    assert stable == [rle if score >= least else None for rle, score in zip(every, stability.tolist(), strict=True)]


def test_one_by_one_is_the_same_as_together() -> None:
    logits = discs(9, 64, noise=0.5)
    encoder = RleEncoder.for_frame(ModelFrame((33, 57), 256), logits.device)
    together, stability = encoder(logits)
    parts = [encoder(one[None]) for one in logits]
    assert together == [rle for rles, _ in parts for rle in rles]
    assert torch.equal(stability, torch.cat([score for _, score in parts]))


def test_half_precision_logits() -> None:
    logits = discs(3, 64, noise=0.5).bfloat16()
    encoder = RleEncoder.for_frame(ModelFrame((90, 130), 256), logits.device)
    assert encoder(logits)[0] == encoder(logits.float())[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("level", [0.0, 6.0])
@pytest.mark.parametrize("resizing", [Resizing.LONGEST_SIDE, Resizing.EFFICIENT_SAM])
def test_boxes_are_those_of_the_encoded_masks(
    size: tuple[int, int], noise: float, level: float, resizing: Resizing
) -> None:
    logits = discs(80 if resizing is Resizing.LONGEST_SIDE else 8, 64, noise) - level  # thin masks, and none
    encoder = RleEncoder.for_frame(ModelFrame(size, 256, resizing), logits.device)
    boxes, filled = encoder.boxes(logits)
    rles, _ = encoder(logits)
    assert filled.tolist() == [rle is not None for rle in rles]
    assert torch.equal(boxes[filled], masks.boxes_from_rles([rle for rle in rles if rle is not None]))
