"""Small regions are removed as the official mask generator removes them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import MaskData, batched_mask_to_box, mask_to_rle_pytorch, remove_small_regions
from support.official import calibrate, official_mini, ours_from

from mobilesamv2 import SegEvery
from mobilesamv2.mask_regions import remove_small_regions as remove_from_masks
from mobilesamv2.mask_regions import without_small_regions
from mobilesamv2.masks import boxes_from_rles, decode, encode
from mobilesamv2.prompts import Grid
from mobilesamv2.structures import Masks, Prompts


def as_masks(pixels: np.ndarray) -> Masks:
    rles, n = encode(torch.from_numpy(pixels).transpose(1, 2)), len(pixels)
    none = torch.zeros(n)
    return Masks(
        pixels.shape[1:],
        rles,
        boxes_from_rles(rles),
        none,
        none,
        none,
        Prompts(boxes_xyxy=torch.zeros(n, 4)),
        torch.arange(n),
    )


def blobs(size: tuple[int, int], number: int) -> np.ndarray:
    """Boxes with noise in and around them, somewhere in the image, none empty."""
    rng = np.random.default_rng(sum(size))
    pixels = np.zeros((number, *size), dtype=bool)
    for mask in pixels:
        y, x = (rng.integers(0, n) for n in size)
        part = mask[y : y + rng.integers(1, 30), x : x + rng.integers(1, 40)]
        part[:] = rng.random(part.shape) < rng.choice([0.1, 0.5, 0.9, 1.0])
        mask[y, x] = True
    return pixels


@pytest.mark.parametrize("size", [(50, 70), (3, 400), (90, 12), (1, 1)])
@pytest.mark.parametrize("min_area", [1, 6, 40, 1000])
def test_masks_are_those_of_the_official_code(size: tuple[int, int], min_area: int) -> None:
    pytest.importorskip("cv2", reason="the official code needs OpenCV")
    changed = 0
    for mask, rle in zip(pixels := blobs(size, 40), encode(torch.from_numpy(pixels).transpose(1, 2)), strict=True):
        holes_filled, first = remove_small_regions(mask, min_area, mode="holes")
        expected, second = remove_small_regions(holes_filled, min_area, mode="islands")
        cleaned, had_small = without_small_regions(rle, min_area)
        assert (decode(cleaned) == expected).all()
        assert had_small == (first or second)
        changed += had_small
    assert changed or min_area == 1 or size == (1, 1)


def test_by_hand() -> None:
    """A ring of 8 pixels around a hole of 1, and 2 pixels that touch at a corner, apart from it."""
    mask = np.zeros((6, 9), dtype=bool)
    mask[1:4, 1:4] = True
    mask[2, 2] = False
    mask[4, 6] = mask[5, 7] = True
    cleaned = decode(without_small_regions(encode(torch.from_numpy(mask.T[None]))[0], 3)[0])
    expected = np.zeros_like(mask)
    expected[1:4, 1:4] = True
    assert (cleaned == expected).all()


def test_duplicates_that_this_leaves_are_dropped() -> None:
    """Two masks become one and the same: the one that had no small region stays."""
    pixels = np.zeros((3, 40, 60), dtype=bool)
    pixels[:2, 10:30, 10:30] = True
    pixels[0, 2, 50] = True
    pixels[2, 35:, 40:] = True
    masks = remove_from_masks(as_masks(pixels), 5, 0.7)
    assert masks.prompt_index.tolist() == [1, 2]
    assert remove_from_masks(as_masks(pixels), 5, 1.0).prompt_index.tolist() == [1, 2, 0]


def test_segevery_is_the_official_mask_generator(photo: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="the official code needs OpenCV")
    official = official_mini()
    calibrate(official, photo)
    given = {"points_per_side": 8, "min_mask_region_area": 60, "box_nms_thresh": 1.0}
    theirs = SamAutomaticMaskGenerator(official, output_mode="coco_rle", **given).generate(photo)
    sam = ours_from(official, tmp_path)
    ours = SegEvery(sam, Grid(**given))(photo)
    plain = SegEvery(sam, Grid(**given | {"min_mask_region_area": 0}))(photo)
    assert len(ours) == len(theirs) > 3
    assert {rle["counts"] for rle in ours.rles} - {rle["counts"] for rle in plain.rles}  # some masks were changed
    found = {(tuple(result["point_coords"][0]), result["segmentation"]["counts"]) for result in ours.to_coco(1)}
    expected = {(tuple(record["point_coords"][0]), record["segmentation"]["counts"]) for record in theirs}
    assert len(found & expected) >= 0.9 * len(expected)


def test_the_official_postprocessing_keeps_the_same_masks() -> None:
    pytest.importorskip("cv2", reason="the official code needs OpenCV")
    pixels = blobs((50, 70), 60)
    ours = remove_from_masks(as_masks(pixels), 20, 0.5)
    tensor = torch.from_numpy(pixels)
    data = MaskData(
        rles=mask_to_rle_pytorch(tensor), boxes=batched_mask_to_box(tensor), index=torch.arange(len(pixels))
    )
    data = SamAutomaticMaskGenerator.postprocess_small_regions(data, 20, 0.5)
    assert ours.prompt_index.tolist() == data["index"].tolist()
    assert ours.boxes_xyxy.tolist() == data["boxes"].tolist()
    assert len(ours) < len(pixels)
