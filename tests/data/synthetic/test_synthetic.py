"""Synthetic scenes: their masks, sizes, splits and layouts, and that they stay as they are."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from mobilesamv2.cli.main import main
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.synthetic.layout import LAYOUTS
from mobilesamv2.data.synthetic.rasterize import MIN_VISIBLE
from mobilesamv2.data.synthetic.render import SPLITS, render_scene
from mobilesamv2.masks import decode

splits = pytest.mark.parametrize("split", SPLITS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)

LVIS_SIDES = {5: 6, 25: 14, 50: 26, 75: 53, 95: 160}
"""Percentiles of the square roots of the areas of the objects of 100 LVIS images, pixels."""

LVIS_SHARES = {"small": 0.58, "medium": 0.30, "large": 0.12}

LVIS_OBJECTS = 9.8
"""An image."""


def test_scenes_are_seeded_and_differ() -> None:
    image, masks = render_scene(3)
    again, same = render_scene(3)
    assert (image == again).all()
    assert (masks == same).all()
    for other in (render_scene(4), render_scene((3, 0)), render_scene(3, split="test")):
        assert (other[0] != image).any()
        assert other[1].shape != masks.shape or (other[1] != masks).any()
    assert (SyntheticDataset(2, seed=0)[1][0] != SyntheticDataset(2, seed=1)[1][0]).any()


@splits
@layouts
def test_masks_are_exact(split: str, layout: str) -> None:
    """Of two masks that meet, one lies within the other, and at most four lie in one another."""
    nested = 0
    for seed in range(12):
        image, masks = render_scene(seed, (160, 200), split, layout)
        assert image.shape == (160, 200, 3)
        assert image.dtype == np.uint8
        flat = masks.reshape(len(masks), -1).astype(np.float32)
        areas = flat.sum(1)
        assert (areas >= MIN_VISIBLE).all()
        assert flat.sum(0).max() <= 4
        both = flat @ flat.T
        smaller = np.minimum(areas[:, None], areas)
        assert ((both == 0) | (both == smaller)).all()
        twins = (both == areas) & (both == areas[:, None])
        assert twins.sum() == len(masks)
        nested += ((both == smaller) & ~twins).sum() / 2
    assert nested > (60 if layout == "hard" else 4)


@pytest.mark.slow
@splits
def test_sizes_are_those_of_lvis(split: str) -> None:
    scenes = [render_scene((5, i), split=split)[1] for i in range(250)]
    areas = np.concatenate([masks.sum((1, 2)) for masks in scenes])
    for percentile, side in LVIS_SIDES.items():
        assert np.percentile(np.sqrt(areas), percentile) == pytest.approx(side, rel=0.2)
    small, large = (areas < 32**2).mean(), (areas > 96**2).mean()
    for share, name in ((small, "small"), (1 - small - large, "medium"), (large, "large")):
        assert share == pytest.approx(LVIS_SHARES[name], abs=0.06)
    assert np.mean([len(masks) for masks in scenes]) == pytest.approx(LVIS_OBJECTS, rel=0.15)


@splits
def test_hard_scenes_have_many_objects_mostly_small(split: str) -> None:
    scenes = [render_scene((5, i), split=split, layout="hard")[1] for i in range(30)]
    numbers = [len(masks) for masks in scenes]
    assert min(numbers) >= 10
    assert max(numbers) <= 60
    assert 20 < np.mean(numbers) < 45
    areas = np.concatenate([masks.sum((1, 2)) for masks in scenes])
    assert 0.5 < (areas < 12.8**2).mean() < 0.7
    assert (areas > 48**2).mean() > 0.05
    assert areas.max() > 0.12 * 256**2
    levels = [masks.sum(0).max() for masks in scenes]
    assert np.mean(np.array(levels) >= 3) > 0.3


@splits
def test_objects_differ_from_what_surrounds_them(split: str) -> None:
    """Within a mask colours are others than just beyond it, for nearly all objects."""
    differences = []
    for seed in range(6):
        image, masks = render_scene(seed, split=split, layout="hard")
        for mask in masks:
            near = mask.copy()
            for axis in (0, 1):
                near |= np.roll(near, 2, axis) | np.roll(near, -2, axis)
            beyond = near & ~mask
            if beyond.any():
                differences.append(np.abs(image[mask].mean(0) - image[beyond].mean(0)).max())
    assert np.mean(np.array(differences) > 8) > 0.85
    assert np.mean(np.array(differences) < 40) > 0.2  # and not every one stands out


def test_splits_share_nothing() -> None:
    train, test = SPLITS["train"], SPLITS["test"]
    for a, b in ((train.families, test.families), (train.textures, test.textures)):
        assert min(len(a), len(b)) >= 5
        assert not set(a) & set(b)
        assert not set(a.values()) & set(b.values())
    assert train.number != test.number


@splits
def test_families_and_textures_keep_to_their_bounds(split: str) -> None:
    rng = np.random.default_rng(0)
    for family in SPLITS[split].families.values():
        for _ in range(20):
            points = np.concatenate(family(rng))
            assert 0.6 < np.linalg.norm(points, axis=1).max() < 1.6
    x, y = np.meshgrid(np.arange(-20.0, 20, dtype=np.float32), np.arange(-9.0, 9, dtype=np.float32))
    for name, texture in SPLITS[split].textures.items():
        for radius in (2.5, 20.0, 300.0):
            blend = np.asarray(texture(rng, x, y, radius), np.float32)
            assert blend.shape == (18, 40), name
            assert blend.min() >= 0, name
            assert blend.max() <= 1, name


@pytest.mark.parametrize(
    ("split", "layout", "expected", "colours"),
    [
        (
            "train",
            "lvis",
            "790d153e4f32e328317a109c161a691364f1516bc3100b65512ab849b772790f",
            [[181.4, 164.3, 161.7], [123.7, 119.1, 118.0], [132.9, 84.2, 105.2], [96.2, 95.2, 91.9]],
        ),
        (
            "test",
            "lvis",
            "a2beae0612024914cdd60e745bfc2d3e75c11bed55025f34225c91c687eb034a",
            [[115.2, 114.6, 113.9], [113.5, 92.8, 71.9], [112.9, 105.4, 104.4], [74.6, 79.9, 78.7]],
        ),
        (
            "test",
            "hard",
            "d77b70196718b5cf6f687bc7e7fd22b0f406597e25b1d4ffebe391210a541a06",
            [[89.0, 102.0, 96.6], [107.4, 101.6, 67.2], [122.9, 90.9, 85.5], [71.3, 85.1, 73.6]],
        ),
    ],
)
def test_scenes_stay_as_they_are(split: str, layout: str, expected: str, colours: list[list[float]]) -> None:
    """What was measured on these scenes can be compared with what will be: a change here makes another data set."""
    digest, means = hashlib.sha256(), []
    for index in range(4):
        image, masks = render_scene((0, index), split=split, layout=layout)
        digest.update(np.packbits(masks).tobytes())
        means.append(image.mean((0, 1)))
    assert digest.hexdigest() == expected
    assert np.allclose(means, colours, atol=1)  # JPEG differs a little from one machine to another


def test_ground_truth_of_a_scene_is_its_masks() -> None:
    image, truth = SyntheticDataset(5, (96, 128), seed=9, split="test")[2]
    expected_image, masks = render_scene((9, 2), (96, 128), "test")
    assert (image == expected_image).all()
    assert truth.areas == masks.sum((1, 2)).tolist()
    for rle, mask in zip(truth.rles, masks, strict=True):
        assert (decode(rle) == mask).all()
    with pytest.raises(IndexError, match="5 scenes"):
        SyntheticDataset(5)[5]


def test_provenance_names_the_split_and_layout() -> None:
    assert "split test (version 1), layout lvis" in SyntheticDataset(1, split="test").provenance["annotations"]
    assert SyntheticDataset(1).provenance != SyntheticDataset(1, split="test").provenance


def test_scenes_of_any_shape() -> None:
    for size in ((16, 16), (16, 200), (700, 60)):
        image, masks = render_scene(1, size)
        assert image.shape == (*size, 3)
        assert masks.shape[1:] == size


def test_unknown_splits_and_layouts_are_named(tmp_path: Path) -> None:
    for draw in (lambda: SyntheticDataset(1, split="tset"), lambda: render_scene(1, split="tset")):
        with pytest.raises(ValueError, match=r"split must be one of train, test, got 'tset'"):
            draw()
    with pytest.raises(SystemExit, match="split must be one of train, test"):
        main(["synthesize", str(tmp_path / "a"), "--split", "tset"])
    with pytest.raises(ValueError, match=r"limit.* must be at least 1, got 0"):
        SyntheticDataset(0)


def test_synthesize_writes_either_split(tmp_path: Path) -> None:
    for split in SPLITS:
        main(["synthesize", str(tmp_path / split), "--scenes", "2", "--size", "64", "--workers", "0", "--split", split])
        written = json.loads((tmp_path / split / "annotations.json").read_text())["annotations"]
        scenes = SyntheticDataset(2, (64, 64), split=split)
        assert len(written) == sum(len(scenes[i][1].rles) for i in range(2))
