"""Masks, boxes and frames of any kind, against NumPy, pycocotools and a few lines that can be read at a glance."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from support.corrupt_inputs import FUZZ, outcome

from mobilesamv2 import masks
from mobilesamv2.transforms import ModelFrame

some_masks = st.tuples(st.integers(1, 5), st.integers(1, 24), st.integers(1, 24)).flatmap(
    lambda shape: hnp.arrays(bool, shape)
)


def rles_of(array: np.ndarray) -> list[dict[str, Any]]:
    """Masks (D, H, W) as RLE."""
    return masks.encode(torch.from_numpy(array.copy()).transpose(1, 2))


@FUZZ
@given(some_masks, st.data())
def test_union_clip_uncrop_and_iou_are_numpys(array: np.ndarray, data: st.DataObject) -> None:
    count, height, width = array.shape
    rles = rles_of(array)
    assert (masks.decode(masks.union(rles)) == array.any(0)).all()
    x0, y0 = data.draw(st.integers(0, width)), data.draw(st.integers(0, height))
    x1, y1 = data.draw(st.integers(x0, width)), data.draw(st.integers(y0, height))
    inside = np.zeros((height, width), dtype=bool)
    inside[y0:y1, x0:x1] = True
    for rle, mask in zip(masks.clip(rles, (x0, y0, x1, y1)), array, strict=True):
        assert (masks.decode(rle) == (mask & inside)).all()
    x, y = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))
    size = (height + y + data.draw(st.integers(0, 4)), width + x + data.draw(st.integers(0, 4)))
    for rle, mask in zip(masks.uncrop(rles, (x, y), size), array, strict=True):
        whole = np.zeros(size, dtype=bool)
        whole[y : y + height, x : x + width] = mask
        assert (masks.decode(rle) == whole).all()
        alone = masks.encode_crop(mask.T, (x, y), size)
        assert alone == (rle if mask.any() else None)
    flat = array.reshape(count, -1).astype(np.int64)
    common = flat @ flat.T
    either = flat.sum(1)[:, None] + flat.sum(1) - common
    expected = np.divide(common, either, out=np.zeros(common.shape), where=either > 0)
    np.testing.assert_allclose(masks.iou(rles, rles), expected, rtol=1e-12)


@FUZZ
@given(st.integers(0, 30), st.integers(0, 999), st.sampled_from([0, 0.25, 0.5, 0.7, 0.9, 1]))
def test_nms_is_the_greedy_one(count: int, seed: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 20, (count, 2), generator=generator).float()
    boxes = torch.cat([corners, corners + torch.randint(1, 20, (count, 2), generator=generator)], dim=1)
    scores, groups = torch.rand(count, generator=generator), torch.randint(0, 2, (count,), generator=generator)
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        sides = [
            (torch.minimum(boxes[i, 2:], boxes[j, 2:]) - torch.maximum(boxes[i, :2], boxes[j, :2])).clamp(min=0).prod()
            for j in kept
            if groups[i] == groups[j]
        ]
        sizes = [(boxes[j, 2:] - boxes[j, :2]).prod() for j in kept if groups[i] == groups[j]]
        own = (boxes[i, 2:] - boxes[i, :2]).prod()
        if all(s / (own + size - s) <= threshold for s, size in zip(sides, sizes, strict=True)):
            kept.append(i)
    assert masks.nms(boxes, scores, groups, threshold).tolist() == kept


@FUZZ
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30), st.integers(1, 9), st.integers(1, 9))
def test_any_text_is_a_mask_or_refused(text: str, height: int, width: int) -> None:
    """pycocotools runs past its memory, or for ever, on run lengths that do not add up."""
    rle, _ = outcome(lambda: masks.to_rle({"size": [height, width], "counts": text}, (height, width)))
    if rle:
        mask = masks.decode(rle)
        assert mask.shape == (height, width)
        assert int(mask.sum()) == int(masks.areas([rle])[0])


@FUZZ
@given(st.lists(st.floats(-40, 80), min_size=6, max_size=16).filter(lambda p: len(p) % 2 == 0))
def test_polygons_are_pycocotools(polygon: list[float]) -> None:
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon], 30, 20)))
    assert (masks.decode(masks.to_rle([polygon], (30, 20))) == expected).all()


@pytest.mark.parametrize("reach", [500, 4000])
def test_a_polygon_that_zigzags_is_refused_at_once(reach: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pycocotools would walk its outline in fifths of a pixel, 2.5 s for the longer of these; it is not called."""
    monkeypatch.setattr(masks.coco_mask, "frPyObjects", lambda *_: pytest.fail("the outline was walked"))
    x = np.where(np.arange(2000) % 2, reach, -reach)
    zigzag = np.stack([x, np.linspace(0, 400, 2000)], axis=1).ravel().tolist()
    with pytest.raises(
        ValueError, match=r"outline must have at most as many pixels as its image, 200,000, got [0-9,]+:"
    ):
        masks.to_rle([zigzag], (400, 500))


def test_thousands_of_polygons_are_pycocotools_and_merged_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The union of all at once takes pycocotools 5 s for these."""
    corners = np.random.default_rng(0).uniform(0, 990, (16_000, 2))
    squares = (np.tile(corners, 4) + np.array([0, 0, 4, 0, 4, 4, 0, 4])).tolist()
    merge, numbers = coco_mask.merge, []
    monkeypatch.setattr(masks.coco_mask, "merge", lambda rles: numbers.append(len(rles)) or merge(rles))
    found = masks.to_rle(squares, (1000, 1000))
    assert max(numbers) <= masks.POLYGONS_PER_UNION
    assert sum(numbers) < 1.2 * len(squares)
    few = squares[:900]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(few, 1000, 1000)))
    assert (masks.decode(masks.to_rle(few, (1000, 1000))) == expected).all()
    assert masks.areas([found]) > masks.areas([masks.to_rle(few, (1000, 1000))])


def test_a_polygon_of_two_points_is_refused() -> None:
    """Pycocotools takes its four numbers for a box."""
    with pytest.raises(ValueError, match="at least three points"):
        masks.to_rle([[1, 1, 5, 5]], (30, 20))


@FUZZ
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([64, 256, 1024]), st.integers(0, 99))
def test_frames_go_there_and_back(height: int, width: int, side: int, seed: int) -> None:
    frame = ModelFrame((height, width), side)
    rows, columns = frame.resized
    assert max(rows, columns) == side
    assert min(rows, columns) >= 1
    coords = torch.rand(5, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    coords = coords * torch.tensor([width, height])
    there = frame.coords_to_model(coords)
    back = there.double() * torch.tensor([width / columns, height / rows], dtype=torch.float64)
    assert torch.allclose(back, coords, rtol=1e-6, atol=1e-3)
    corner = frame.coords_to_model(torch.tensor([[float(width), float(height)]]))
    assert torch.allclose(corner, torch.tensor([[float(columns), float(rows)]]), rtol=1e-6)
    boxes = torch.cat([coords, coords + 2], dim=1)
    assert torch.equal(frame.boxes_to_model(boxes)[:, :2], there)


@FUZZ
@given(st.integers(1, 60), st.integers(1, 60), st.floats(-20, 20, width=32))
def test_constant_logits_stay_constant(height: int, width: int, value: float) -> None:
    full = ModelFrame((height, width), 64).logits_to_original(torch.full((1, 16, 16), value))
    assert full.shape == (1, width, height)
    assert torch.allclose(full, torch.full_like(full, value), rtol=1e-5)
