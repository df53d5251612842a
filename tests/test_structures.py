"""Masks as people use them: one, several, all, drawn."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobilesamv2.masks import boxes_from_rles, encode
from mobilesamv2.segany import Prediction
from mobilesamv2.structures import Masks, Prompts
from mobilesamv2.visualize import overlay

SIZE = (9, 13)


@pytest.fixture
def pixels() -> np.ndarray:
    pixels = np.zeros((4, *SIZE), dtype=bool)
    for i in range(4):
        pixels[i, i : i + 3, 2 * i : 2 * i + 4 + i] = True
    return pixels


@pytest.fixture
def masks(pixels: np.ndarray) -> Masks:
    rles = encode(torch.from_numpy(pixels).transpose(1, 2))
    scores, number = torch.tensor([0.9, 0.7, 0.5, 0.3]), torch.arange(4)
    return Masks(SIZE, rles, boxes_from_rles(rles), scores, scores, scores, Prompts(boxes_xyxy=torch.eye(4)), number)


def test_masks_are_a_sequence_of_boolean_arrays(masks: Masks, pixels: np.ndarray) -> None:
    assert len(masks) == 4
    for i in (0, -1, np.int64(2), torch.tensor(1)):
        assert masks[i].dtype == bool
        assert (masks[i] == pixels[int(i)]).all()
    assert all((mask == expected).all() for mask, expected in zip(masks, pixels, strict=True))
    assert (next(reversed(masks)) == pixels[3]).all()
    assert repr(masks) == "Masks(4 masks of 9 x 13 pixels)"
    assert masks == masks
    assert (np.asarray(pickle.loads(pickle.dumps(copy.deepcopy(masks)))) == pixels).all()


@pytest.mark.parametrize(
    ("index", "chosen"),
    [
        (slice(1, 3), [1, 2]),
        (slice(None, None, -2), [3, 1]),
        ([3, 0, -1], [3, 0, 3]),
        (np.array([2, 2]), [2, 2]),
        (torch.tensor([1, 0]), [1, 0]),
        ([], []),
        ([True, False, False, True], [0, 3]),
        (np.array([False] * 4), []),
        (torch.tensor([False, True, True, False]), [1, 2]),
    ],
)
def test_masks_are_chosen(masks: Masks, pixels: np.ndarray, index: Any, chosen: list[int]) -> None:
    part = masks[index]
    assert isinstance(part, Masks)
    assert part.rles == [masks.rles[i] for i in chosen]
    assert part.prompt_index.tolist() == [i % 4 for i in chosen]
    assert len(part.scores) == len(part.prompts) == len(part.boxes_xyxy) == len(chosen)
    assert np.asarray(part).shape == (len(chosen), *SIZE)


@pytest.mark.parametrize("index", [4, -5, [4], "a", None, 1.0, True, (0, 1), [[0]], [True], torch.tensor([0.5])])
def test_no_such_mask(masks: Masks, index: Any) -> None:
    with pytest.raises(IndexError):
        masks[index]


def test_all_masks_as_one_array(masks: Masks, pixels: np.ndarray) -> None:
    assert masks.to_numpy().dtype == bool
    assert (masks.to_numpy() == pixels).all()
    assert (np.asarray(masks) == pixels).all()
    assert np.array(masks, dtype=np.uint8).sum() == pixels.sum()
    assert (np.stack(list(masks)) == pixels).all()
    with pytest.raises(ValueError, match="copy must not be False"):
        np.array(masks, copy=False)


def test_overlay_takes_what_segmenting_returns(masks: Masks, pixels: np.ndarray) -> None:
    image = np.full((*SIZE, 3), 100, dtype=np.uint8)
    drawn = overlay(image, masks)
    assert (drawn != image).any(2).sum() == pixels.any(0).sum()
    for same in (masks.rles, pixels, list(masks), torch.from_numpy(pixels), pixels[:, None], pixels.astype(np.uint8)):
        assert (overlay(image, same) == drawn).all()
    assert (overlay(image, masks[0]) == overlay(image, masks[:1])).all()
    assert (overlay(image, masks[:0]) == image).all()
    for wrong in (
        masks.to_numpy().astype(np.float32),
        pixels[:, :5],
        pixels[0, 0],
        [pixels[0], pixels[1].astype(float)],
    ):
        with pytest.raises(ValueError, match=r"masks must be bool \(D, 9, 13\), as the image, got"):
            overlay(image, wrong)
    with pytest.raises(ValueError, match=r"image's size \[10, 13\] .* got \[9, 13\]"):
        overlay(np.zeros((10, 13, 3), np.uint8), masks)
    with pytest.raises(ValueError, match="An image must be"):
        overlay(image / 255, masks)


def test_overlay_takes_results_predictions_and_pictures(masks: Masks, pixels: np.ndarray) -> None:
    image = np.full((*SIZE, 3), 100, dtype=np.uint8)
    drawn, one = overlay(image, masks), overlay(image, masks[:1])
    runs = np.diff(np.flatnonzero(np.diff(pixels[0].T.ravel(), prepend=2, append=2)))
    counts = [0, *runs.tolist()] if pixels[0][0, 0] else runs.tolist()
    prediction = Prediction(pixels[None], np.zeros((1, len(pixels))), np.zeros((1, len(pixels), 4, 4)))
    assert (overlay(image, masks.to_coco(1)) == drawn).all()
    assert (overlay(image, prediction) == drawn).all()
    for same in (masks.rles[0], [{"size": list(SIZE), "counts": counts}], Image.fromarray(pixels[0])):
        assert (overlay(image, same) == one).all()
    for wrong, message in (
        (None, "masks must be bool"),
        ("masks", "masks must be bool"),
        ([pixels[0], pixels[0][:3]], "masks must be masks of the image"),
        ([{"counts": "0"}], "Mask number 0: a segmentation must be polygons or an RLE with size"),
        ([masks.rles[0], {"size": [3, 3], "counts": [9]}], "Mask number 1: an RLE must have its image's size"),
    ):
        with pytest.raises(ValueError, match=message):
            overlay(image, wrong)  # pyright: ignore[reportArgumentType]
