"""Samples of the detector: what augmentation does to pixels, boxes and masks at once."""

from support.training import STILL
import numpy as np
import pytest
import torch
from torchvision.ops import box_convert

from mobilesamv2.data.augment import Augmentation, Placement, letterbox_placement
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.detection_samples import DetectionSamples, instance_map, visible_objects
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.masks import areas, boxes_from_rles, clip, decode, encode
from mobilesamv2.structures import GroundTruth



def rectangles(boxes: list[list[int]], size: tuple[int, int], image_id: int = 0) -> GroundTruth:
    """Objects that fill boxes, xyxy, the last column and row not covered."""
    masks = np.zeros((len(boxes), *size), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    rles = encode(torch.from_numpy(masks).transpose(1, 2))
    return GroundTruth(image_id, size, rles, [float(m.sum()) for m in masks], [None] * len(boxes))


class Coloured:
    """Grey images of unlike sizes, each with three rectangles that no other image has the colours of."""

    sizes = ((80, 120), (100, 60), (64, 64), (50, 110), (90, 90))

    def __init__(self) -> None:
        self.requested: list[int] = []

    def __len__(self) -> int:
        return len(self.sizes)

    def colour(self, index: int, i: int) -> list[int]:
        return [20 + 50 * index, 20 + 100 * i, 250]

    def __getitem__(self, index: int) -> tuple[np.ndarray, GroundTruth]:
        self.requested.append(index)
        height, width = self.sizes[index]
        boxes = [[2, 3, 20, 17], [width // 2, 20, width, 45], [10, height - 16, 35, height - 2]]
        image = np.full((height, width, 3), 114, dtype=np.uint8)
        for i, (x0, y0, x1, y1) in enumerate(boxes):
            image[y0:y1, x0:x1] = self.colour(index, i)
        return image, rectangles(boxes, (height, width), index)


def more_than_half(above_grey: torch.Tensor, colour: list[int]) -> torch.Tensor:
    """(H, W) bool: pixels that mix a colour with less grey than of itself."""
    direction = torch.tensor(colour) - 114.0
    share = above_grey @ direction / direction.dot(direction)
    return (share > 0.5) & ((above_grey - share[..., None] * direction).abs().amax(-1) < 4)


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_boxes_and_masks_are_where_the_pixels_are(mosaic: float) -> None:
    """Every rectangle is found in the pixels by its colour, for many draws, and its box and mask are there."""
    images, compared = Coloured(), 0
    still = STILL | {"mosaic": mosaic, "scale": 0.5, "translate": 0.2, "flip": 0.5}
    samples = DetectionSamples(images, 128, Augmentation(**still), masks=True)
    for seed in range(30):
        sample = samples.draw(seed % 5, np.random.default_rng(seed))
        assert sample["img"].shape == (3, 128, 128)
        assert sample["masks"].shape == (32, 32)
        boxes = box_convert(sample["bboxes"] * 128, "cxcywh", "xyxy")
        assert ((boxes >= -1e-4) & (boxes <= 128 + 1e-4)).all()
        sizes = boxes[:, 2:] - boxes[:, :2]
        assert (sizes >= 1 - 1e-3).all()
        assert (sizes.prod(1).diff() <= 1e-2).all()  # the largest first
        seen = sample["img"].permute(1, 2, 0).float() - 114
        for index in range(5):
            for i in range(3):
                there = more_than_half(seen, images.colour(index, i))
                if there.sum() < 30:
                    continue
                rows, columns = there.any(1).nonzero()[:, 0], there.any(0).nonzero()[:, 0]
                tight = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
                off = (boxes - tight).abs().amax(1)
                if mosaic and off.min() > 1:  # the same image may come twice in a mosaic
                    assert images.requested[-4:].count(index) > 1, (seed, index, i)
                    continue
                assert off.min() <= 1
                number = int(off.argmin()) + 1
                rows, columns = (sample["masks"] == number).nonzero().unbind(1)
                if len(rows):
                    edges = 4 * torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                    assert (edges - boxes[number - 1]).abs().max() <= 4
                compared += 1
    assert compared > 50


def test_boxes_enclose_what_is_in_sight_of_a_mask() -> None:
    """Against masks that are transformed pixel by pixel, at four times the resolution."""
    scenes, side, kept, gone = SyntheticDataset(8, (120, 200)), 128, 0, 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        truths = [scenes[int(i)][1] for i in rng.integers(8, size=4)]
        for truth, place in zip(truths, Augmentation().placements([t.size for t in truths], side, rng), strict=True):
            found = visible_objects(truth, place)
            x0, y0, x1, y1 = place.window
            expected = []
            for rle in truth.rles:
                mask = decode(rle)
                axes = []
                for low, high, offset, length in ((y0, y1, 1, mask.shape[0]), (x0, x1, 0, mask.shape[1])):
                    fine = np.arange(low + 0.125, high, 0.25)
                    places = np.floor((fine - place.offset[offset]) / place.scale).astype(int)
                    inside = (places >= 0) & (places < length)
                    axes.append((fine[inside], places[inside]))
                (ys, rows), (xs, columns) = axes
                sampled = mask[np.ix_(rows, columns)]
                if sampled.any():
                    y, x = ys[sampled.any(1)], xs[sampled.any(0)]
                    box = torch.tensor([x[0], y[0], x[-1], y[-1]]) + torch.tensor([-0.125, -0.125, 0.125, 0.125])
                    expected.append(box)
            for box in expected:
                if (box[2:] - box[:2]).min() >= 1.5:
                    assert (found.boxes_xyxy - box).abs().amax(1).min() <= 1
                    kept += 1
            assert len(found.boxes_xyxy) <= len(expected)
            gone += len(truth.rles) - len(expected)
    assert kept > 100
    assert gone > 20


def test_small_boxes_are_dropped_and_duplicates_merged() -> None:
    truth = rectangles([[0, 0, 40, 20], [5, 5, 6, 30], [0, 0, 40, 20], [50, 50, 51, 51], [60, 60, 62, 62]], (100, 200))
    found = visible_objects(truth, letterbox_placement(truth.size, 100))  # half the size
    assert found.boxes_xyxy.tolist() == [[0, 0, 20, 10], [30, 30, 31, 31]]
    assert (found.dropped, found.merged) == (2, 1)
    assert found.areas.tolist() == [800, 4]
    samples = DetectionSamples([(np.zeros((100, 200, 3), np.uint8), truth)] * 2, 100)  # pyright: ignore
    batch = samples.collate([samples[0], samples[1]])
    assert (batch["boxes_dropped"], batch["boxes_merged"]) == (4, 2)
    assert batch["batch_idx"].tolist() == [0, 0, 1, 1]
    assert batch["cls"].tolist() == [[0]] * 4
    nothing = visible_objects(rectangles([], (100, 200)), letterbox_placement((100, 200), 100))
    assert nothing.boxes_xyxy.shape == (0, 4)
    sample = DetectionSamples([(np.zeros((9, 9, 3), np.uint8), rectangles([], (9, 9)))], 32, masks=True)[0]  # pyright: ignore
    assert sample["bboxes"].shape == (0, 4)
    assert not sample["masks"].any()


def test_of_masks_that_overlap_the_smaller_box_lies_above() -> None:
    truth = rectangles([[8, 8, 16, 16], [0, 0, 32, 32]], (32, 32))
    sample = DetectionSamples([(np.zeros((32, 32, 3), np.uint8), truth)], 32, masks=True)[0]  # pyright: ignore
    assert (sample["bboxes"] * 32).tolist() == [[16, 16, 32, 32], [12, 12, 8, 8]]
    assert sample["masks"].unique().tolist() == [1, 2]
    assert (sample["masks"] == 2).nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert instance_map([], 32).tolist() == [[0] * 8] * 8


def test_nothing_left_to_chance_is_the_image_itself() -> None:
    scenes = SyntheticDataset(3, (120, 200))
    for flip in (0.0, 1.0):
        samples = DetectionSamples(scenes, 256, Augmentation(**STILL | {"flip": flip}), masks=True)
        for i in range(3):
            plain, drawn = samples[i], samples.draw(i, np.random.default_rng(0))
            assert torch.equal(plain["img"].flip(2) if flip else plain["img"], drawn["img"])
            assert torch.equal(plain["masks"].flip(1) if flip else plain["masks"], drawn["masks"])
            x = drawn["bboxes"][:, 0]
            assert torch.allclose(plain["bboxes"][:, 0], 1 - x if flip else x)
            assert torch.equal(plain["bboxes"][:, 1:], drawn["bboxes"][:, 1:])
            boxes = box_convert(plain["bboxes"], "cxcywh", "xyxy") * 200
            rles = scenes[i][1].rles
            expected = boxes_from_rles(rles) + torch.tensor([0, 0, 1, 1.0])
            assert {tuple(b.round().int().tolist()) for b in boxes} == {tuple(b.int().tolist()) for b in expected}


def test_chance_is_the_generators_alone_and_keeps_to_the_training_split() -> None:
    images = Coloured()
    samples = DetectionSamples(images, 64, Augmentation(), masks=True)
    data = TrainingData(samples, batch_size=1, validation_images=2)
    images.requested.clear()
    one, other = (data.samples[(0, 1)] for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in ("img", "bboxes", "masks", "areas"))
    assert not torch.equal(one["img"], data.samples[(1, 1)]["img"])
    for epoch in range(20):
        data.samples[(epoch, 0)]
    assert set(images.requested) == {0, 1, 2}
    validation_images = [data.samples[(-1, 4)]["img"] for _ in range(2)]
    assert torch.equal(*validation_images)


def test_colours_change_and_geometry_does_not() -> None:
    image = SyntheticDataset(1)[0][0]
    rng = np.random.default_rng(0)
    assert Augmentation(**STILL).recolour(image, rng) is image
    brighter = Augmentation(**STILL | {"brightness": 1.0})
    means = [brighter.recolour(image, np.random.default_rng(i)).mean() for i in range(5)]
    assert len(set(means)) == 5
    grey = np.full((4, 4, 3), 90, np.uint8)
    assert (Augmentation(**STILL | {"hue": 0.5, "saturation": 1.0}).recolour(grey, rng) == 90).all()


def test_what_makes_no_sense_is_refused() -> None:
    for given in ({"mosaic": 1.5}, {"scale": 1.0}, {"flip": -0.1}):
        with pytest.raises(ValueError, match=f"augmentation.{next(iter(given))} must be"):
            Augmentation(**given)


def test_masks_are_clipped_to_a_box() -> None:
    scenes = SyntheticDataset(2, (50, 70))
    rles = scenes[0][1].rles
    for rle, part in zip(rles, clip(rles, (10, 5, 40, 33)), strict=True):
        expected = decode(rle)
        expected[:5], expected[33:], expected[:, :10], expected[:, 40:] = False, False, False, False
        assert (decode(part) == expected).all()
    assert areas(clip(rles, (0, 0, 70, 50))).tolist() == areas(rles).tolist()
    assert clip([], (0, 0, 1, 1)) == []


def test_a_place_outside_shows_nothing() -> None:
    place = Placement(1.0, (-100.0, 0.0), (0, 0, 0, 10))
    assert len(visible_objects(rectangles([[0, 0, 5, 5]], (10, 10)), place).boxes_xyxy) == 0
