"""Drawn scenes: their masks, their two worlds, and that they stay as they are."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from mobilesamv2.cli import main
from mobilesamv2.data.drawing import MIN_VISIBLE, draw_scene
from mobilesamv2.data.shapes import ShapesDataset
from mobilesamv2.data.worlds import WORLDS
from mobilesamv2.masks import decode

worlds = pytest.mark.parametrize("world", WORLDS)


def test_scenes_are_seeded_and_differ() -> None:
    image, masks = draw_scene(3)
    again, same = draw_scene(3)
    assert (image == again).all()
    assert (masks == same).all()
    for other in (draw_scene(4), draw_scene((3, 0)), draw_scene(3, world="test")):
        assert (other[0] != image).any()
        assert other[1].shape != masks.shape or (other[1] != masks).any()
    assert (ShapesDataset(2, seed=0)[1][0] != ShapesDataset(2, seed=1)[1][0]).any()


@worlds
def test_masks_are_exact(world: str) -> None:
    """Of two masks that meet, one lies within the other, and at most four lie in one another."""
    nested = 0
    for seed in range(12):
        image, masks = draw_scene(seed, (160, 200), world)
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
    assert nested > 60


@worlds
def test_objects_are_many_and_mostly_small(world: str) -> None:
    """As in LVIS, where over half of the objects have less than 32 x 32 pixels of 640: here 12.8 x 12.8 of 256."""
    scenes = [draw_scene((5, i), world=world)[1] for i in range(30)]
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


@worlds
def test_objects_differ_from_what_surrounds_them(world: str) -> None:
    """Within a mask colours are others than just beyond it, for nearly all objects."""
    differences = []
    for seed in range(6):
        image, masks = draw_scene(seed, world=world)
        for mask in masks:
            near = mask.copy()
            for axis in (0, 1):
                near |= np.roll(near, 2, axis) | np.roll(near, -2, axis)
            beyond = near & ~mask
            if beyond.any():
                differences.append(np.abs(image[mask].mean(0) - image[beyond].mean(0)).max())
    assert np.mean(np.array(differences) > 8) > 0.85
    assert np.mean(np.array(differences) < 40) > 0.2  # and not every one stands out


def test_worlds_share_nothing() -> None:
    train, test = WORLDS["train"], WORLDS["test"]
    for a, b in ((train.families, test.families), (train.textures, test.textures)):
        assert min(len(a), len(b)) >= 5
        assert not set(a) & set(b)
        assert not set(a.values()) & set(b.values())
    assert train.number != test.number


@worlds
def test_families_and_textures_keep_to_their_bounds(world: str) -> None:
    rng = np.random.default_rng(0)
    for family in WORLDS[world].families.values():
        for _ in range(20):
            points = np.concatenate(family(rng))
            assert 0.6 < np.linalg.norm(points, axis=1).max() < 1.6
    x, y = np.meshgrid(np.arange(-20.0, 20, dtype=np.float32), np.arange(-9.0, 9, dtype=np.float32))
    for name, texture in WORLDS[world].textures.items():
        for radius in (2.5, 20.0, 300.0):
            blend = np.asarray(texture(rng, x, y, radius), np.float32)
            assert blend.shape == (18, 40), name
            assert blend.min() >= 0, name
            assert blend.max() <= 1, name


@pytest.mark.parametrize(
    ("world", "expected", "colours"),
    [
        (
            "train",
            "c2355f0dacbdc1f1887c63d1cccd287b49b6db07d8e593101ce67a8d1512bd61",
            [[108.3, 111.8, 115.8], [131.8, 158.7, 104.9], [122.8, 137.0, 152.2], [107.4, 117.2, 107.8]],
        ),
        (
            "test",
            "d77b70196718b5cf6f687bc7e7fd22b0f406597e25b1d4ffebe391210a541a06",
            [[89.0, 102.0, 96.6], [107.4, 101.6, 67.2], [122.9, 90.9, 85.5], [71.3, 85.1, 73.6]],
        ),
    ],
)
def test_scenes_stay_as_they_are(world: str, expected: str, colours: list[list[float]]) -> None:
    """What was measured on these scenes can be compared with what will be: a change here makes another data set."""
    digest, means = hashlib.sha256(), []
    for index in range(4):
        image, masks = draw_scene((0, index), world=world)
        digest.update(np.packbits(masks).tobytes())
        means.append(image.mean((0, 1)))
    assert digest.hexdigest() == expected
    assert np.allclose(means, colours, atol=1)  # JPEG differs a little from one machine to another


def test_ground_truth_of_a_scene_is_its_masks() -> None:
    image, truth = ShapesDataset(5, (96, 128), seed=9, world="test")[2]
    expected_image, masks = draw_scene((9, 2), (96, 128), "test")
    assert (image == expected_image).all()
    assert truth.areas == masks.sum((1, 2)).tolist()
    for rle, mask in zip(truth.rles, masks, strict=True):
        assert (decode(rle) == mask).all()
    with pytest.raises(IndexError, match="5 scenes"):
        ShapesDataset(5)[5]


def test_provenance_names_the_world() -> None:
    assert "world test" in ShapesDataset(1, world="test").provenance["annotations"]
    assert ShapesDataset(1).provenance != ShapesDataset(1, world="test").provenance


def test_scenes_of_any_shape() -> None:
    for size in ((16, 16), (16, 200), (700, 60)):
        image, masks = draw_scene(1, size)
        assert image.shape == (*size, 3)
        assert masks.shape[1:] == size


def test_unknown_worlds_are_named(tmp_path: Path) -> None:
    for draw in (lambda: ShapesDataset(1, world="tset"), lambda: draw_scene(1, world="tset")):
        with pytest.raises(ValueError, match=r"no world 'tset'.*train, test"):
            draw()
    with pytest.raises(SystemExit, match="no world 'tset'"):
        main(["draw", str(tmp_path / "a"), "--world", "tset"])
    with pytest.raises(ValueError, match="1 or more; got 0"):
        ShapesDataset(0)


def test_draw_writes_either_world(tmp_path: Path) -> None:
    for world in WORLDS:
        main(["draw", str(tmp_path / world), "--scenes", "2", "--size", "64", "--workers", "0", "--world", world])
        written = json.loads((tmp_path / world / "annotations.json").read_text())["annotations"]
        scenes = ShapesDataset(2, (64, 64), world=world)
        assert len(written) == sum(len(scenes[i][1].rles) for i in range(2))
