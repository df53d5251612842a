"""Masks and transforms: round trips, hand-computed values, and the official transforms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from segment_anything.utils.amg import batched_mask_to_box, build_point_grid
from segment_anything.utils.transforms import ResizeLongestSide
from torch.nn import functional as F

from mobilesamv2 import masks
from mobilesamv2.transforms import ModelFrame, check_image, to_model_input

boolean_masks = hnp.arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)))


@settings(max_examples=50, deadline=None)
@given(boolean_masks)
def test_rle_round_trip(array: np.ndarray) -> None:
    rles = masks.encode(torch.from_numpy(array).transpose(1, 2))
    assert [rle["size"] for rle in rles] == [list(array.shape[1:])] * len(array)
    for rle, mask in zip(rles, array, strict=True):
        assert (masks.decode(rle) == mask).all()
        assert masks.to_rle(rle, mask.shape) == rle
    assert masks.areas(rles).tolist() == array.sum((1, 2)).tolist()


@settings(max_examples=50, deadline=None)
@given(boolean_masks.filter(lambda array: array.any((1, 2)).all()))
def test_boxes_are_the_official_ones(array: np.ndarray) -> None:
    boxes = masks.boxes_from_rles(masks.encode(torch.from_numpy(array).transpose(1, 2)))
    assert torch.equal(boxes, batched_mask_to_box(torch.from_numpy(array)).float())


def test_nms_keeps_the_better_of_two() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    scores = torch.tensor([0.5, 0.9, 0.1])
    together, apart = torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, 0])
    assert masks.nms(boxes, scores, together, 0.7).tolist() == [1, 2]
    assert masks.nms(boxes, scores, together, 0.95).tolist() == [1, 0, 2]
    assert masks.nms(boxes, scores, apart, 0.7).tolist() == [1, 0, 2]


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (321, 481), (1024, 1024), (1500, 1000), (50, 10000)])
def test_model_frame_is_the_official_one(size: tuple[int, int]) -> None:
    frame, official = ModelFrame(size, 1024), ResizeLongestSide(1024)
    assert frame.resized == official.get_preprocess_shape(*size, 1024)
    coords = np.random.default_rng(0).uniform(0, 1, (5, 2)) * size[::-1]
    expected = torch.from_numpy(official.apply_coords(coords, size)).float()
    assert torch.equal(frame.coords_to_model(torch.from_numpy(coords)), expected)
    boxes = np.concatenate([coords, coords + 3], axis=1)
    expected = torch.from_numpy(official.apply_boxes(boxes, size)).float()
    assert torch.equal(frame.boxes_to_model(torch.from_numpy(boxes)), expected)


def test_a_side_never_rounds_to_zero() -> None:
    frame = ModelFrame((1, 5000), 1024)
    assert frame.resized == (1, 1024)
    assert frame.logits_to_original(torch.ones(1, 256, 256)).shape == (1, 5000, 1)


def test_resizing_and_normalising(photo: np.ndarray) -> None:
    mean, std = torch.tensor([120.0, 110, 100]).view(3, 1, 1), torch.tensor([50.0, 60, 70]).view(3, 1, 1)
    pixels = to_model_input(photo, 256, mean, std)
    resized = torch.from_numpy(ResizeLongestSide(256).apply_image(photo)).permute(2, 0, 1)
    assert pixels.shape == (1, 3, 256, 256)
    assert torch.equal(pixels[0, :, : resized.shape[1]], (resized - mean) / std)
    assert (pixels[0, :, resized.shape[1] :] == 0).all()


@pytest.mark.parametrize("size", [(90, 130), (200, 40), (700, 500)])
def test_upscaling_is_sams_two_steps(size: tuple[int, int]) -> None:
    frame = ModelFrame(size, 256)
    low_res = torch.randn(3, 64, 64) * 10
    height, width = frame.resized
    full = F.interpolate(low_res[None], (256, 256), mode="bilinear", align_corners=False)
    full = F.interpolate(full[..., :height, :width], size, mode="bilinear", align_corners=False)[0]
    assert torch.allclose(frame.logits_to_original(low_res).transpose(1, 2), full, atol=1e-5)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        [[1]],
        None,
    ],
)
def test_what_is_no_image_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r"RGB uint8 \(H, W, 3\)"):
        check_image(bad)


def test_grid_is_the_official_one() -> None:
    from mobilesamv2.prompts import Grid

    prompts = next(Grid(points_per_side=7).rounds(np.zeros((50, 90, 3), np.uint8), torch.zeros(1, 1, 1, 1)))
    assert prompts.points is not None
    np.testing.assert_allclose(prompts.points[:, 0].numpy(), build_point_grid(7) * [90, 50], rtol=1e-12)


def test_iou_at_least_finds_every_pair_that_reaches_the_least() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.nn.functional.interpolate(torch.randn(40, 1, 5, 6, generator=generator), (40, 50), mode="bilinear")[
        :, 0
    ]
    blobs = low > torch.linspace(-0.5, 1.5, 40).view(-1, 1, 1)
    blobs[3] = False  # an empty mask
    rles = masks.encode(blobs.transpose(1, 2))
    rles += rles[:5]  # twins
    full = masks.iou(rles, rles[::-1])
    for least in (0.1, 0.5, 1.0):
        some = masks.iou_at_least(rles, rles[::-1], least)
        reaches = full >= least
        assert reaches.sum() >= 45
        assert (some[reaches] == full[reaches]).all()
        assert ((some == full) | (some == 0)).all()
    assert masks.iou_at_least([], rles, 0.5).shape == (0, 45)


def test_many_rles_are_checked_as_one_by_one() -> None:
    sound = masks.encode(torch.rand(30, 13, 11, generator=torch.Generator().manual_seed(1)) > 0.4)
    assert masks.to_rles(sound, (11, 13), str) == [masks.to_rle(rle, (11, 13)) for rle in sound]
    assert masks.to_rles([], (11, 13), str) == []
    for i in (0, 7, 29):
        for counts in ("", "0", sound[i]["counts"][:-1], sound[i]["counts"] + "1", "\x7f", "oooooooooo0"):
            broken = [*sound[:i], {"size": [11, 13], "counts": counts}, *sound[i + 1 :]]
            with pytest.raises(ValueError, match=rf"^mask {i}: .*(must be non-negative and add up|polygons or an RLE)"):
                masks.to_rles(broken, (11, 13), lambda i: f"mask {i}")
    mixed = [sound[0], {"size": [11, 13], "counts": [5, 10, 128]}, [[1, 1, 5, 1, 5, 5]]]
    assert masks.to_rles(mixed, (11, 13), str) == [masks.to_rle(one, (11, 13)) for one in mixed]
    with pytest.raises(ValueError, match=r"size \[13, 11\]"):
        masks.to_rles([*sound, {"size": [13, 11], "counts": sound[0]["counts"]}], (11, 13), str)


def test_counts_of_an_uncompressed_rle_are_whole_numbers() -> None:
    expected = masks.to_rle({"size": [20, 30], "counts": [100, 50, 450]}, (20, 30))
    for counts in ([100.0, 50, 450.0], [np.int64(100), 50, np.float32(450)]):
        assert masks.to_rle({"size": [20, 30], "counts": counts}, (20, 30)) == expected
    for counts, got in (
        ([100.7, 50.6, 450.9], r"got 100\.7"),
        (["100", "50", "450"], "got '100'"),
        ([True, 599], "got True"),
        ([1, None], "got None"),
        ([float("inf"), 1], "got inf"),
    ):
        with pytest.raises(ValueError, match=f"run lengths of an RLE must be whole numbers, {got}"):
            masks.to_rle({"size": [20, 30], "counts": counts}, (20, 30))
    with pytest.raises(ValueError, match="must be non-negative and add up to its size"):  # modulo 2**64 they do
        masks.to_rle({"size": [20, 30], "counts": [2**62] * 4 + [600]}, (20, 30))
