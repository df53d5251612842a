"""Which prompts the samplers give: hierarchical rounds, and crops as SAM's mask generator has them."""

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, automatic_mask_generator
from segment_anything.utils.amg import generate_crop_boxes, is_box_near_crop_edge
from support.official import calibrate, official_mini, ours_from

from mobilesamv2 import SegEvery, segevery
from mobilesamv2.masks import decode, encode, uncrop, union
from mobilesamv2.metrics.stage_time import STAGES
from mobilesamv2.prompts import Grid, GridProposals, Hierarchical
from mobilesamv2.prompts.grid import generate_crops
from mobilesamv2.structures import Masks, Prompts

SIZE = (64, 96)
IMAGE = np.zeros((*SIZE, 3), np.uint8)
EMBEDDING = torch.zeros(1, 1, 1, 1)


def found(*covers: np.ndarray, predicted_iou: float = 0.95) -> Masks:
    """Masks (H, W) bool as a round brings them back."""
    number = len(covers)
    rles = encode(torch.from_numpy(np.stack(covers)).transpose(1, 2)) if covers else []
    prompts = Prompts(points=torch.zeros(number, 1, 2), labels=torch.ones(number, 1, dtype=torch.int64))
    iou = torch.full((number,), predicted_iou)
    return Masks(SIZE, rles, torch.zeros(number, 4), iou, iou, iou, prompts, torch.zeros(number, dtype=torch.int64))


def asked(prompts: Prompts) -> set[tuple[float, float]]:
    assert prompts.points is not None
    assert (prompts.labels == 1).all()
    points = [(x, y) for x, y in prompts.points[:, 0].tolist()]
    assert len(set(points)) == len(points)
    return set(points)


def grid(points_per_side: int) -> set[tuple[float, float]]:
    return asked(next(Grid(points_per_side=points_per_side).rounds(IMAGE, EMBEDDING)))


def second(masks: Masks, **settings: float) -> set[tuple[float, float]]:
    """Points of the second round, none where there is no such round."""
    rounds = Hierarchical(points_per_side=8, **settings).rounds(IMAGE, EMBEDDING)
    next(rounds)
    try:
        return asked(rounds.send(masks))
    except StopIteration:
        return set()


def test_the_first_round_is_every_fourth_point() -> None:
    first = asked(next(Hierarchical(points_per_side=8).rounds(IMAGE, EMBEDDING)))
    assert first == {(30.0, 20.0), (78.0, 20.0), (30.0, 52.0), (78.0, 52.0)}
    assert first < grid(8)


def test_the_second_round_asks_the_rest() -> None:
    first = asked(next(Hierarchical(points_per_side=8).rounds(IMAGE, EMBEDDING)))
    assert second(found()) == grid(8) - first


def test_what_is_covered_is_not_asked_again() -> None:
    left, low = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    left[:, :48] = True
    low[40:, 40:] = True
    first = asked(next(Hierarchical(points_per_side=8).rounds(IMAGE, EMBEDDING)))
    assert second(found(left, low)) == {p for p in grid(8) - first if p[0] >= 48 and p[1] < 40}
    assert second(found(np.ones(SIZE, bool))) == set()


def test_masks_without_confidence_cover_nothing() -> None:
    everything = found(np.ones(SIZE, bool), predicted_iou=0.9)
    assert second(everything, high_confidence_iou=0.9) == second(found())
    assert second(everything, high_confidence_iou=0.89) == set()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (500, 3), (37, 41)])
def test_hierarchical_on_any_size(size: tuple[int, int]) -> None:
    rounds = Hierarchical(points_per_side=5, coarse_stride=2).rounds(np.zeros((*size, 3), np.uint8), EMBEDDING)
    assert len(asked(next(rounds))) == 4
    everywhere = Masks(
        size, encode(torch.ones(1, size[1], size[0], dtype=torch.bool)), torch.zeros(1, 4), *[torch.ones(1)] * 3,
        prompts=Prompts(boxes_xyxy=torch.zeros(1, 4)), prompt_index=torch.zeros(1, dtype=torch.int64),
    )  # fmt: skip
    with pytest.raises(StopIteration):
        rounds.send(everywhere)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coarse_stride": 1}, "coarse_stride must be at least 2, got 1"),
        ({"coarse_stride": 9}, "coarse_stride must be between 2 and points_per_side"),
        ({"points_per_side": 0}, "points_per_side must be at least 1"),
        ({"crop_n_layers": -1}, "crop_n_layers must be at least 0"),
        ({"crop_overlap_ratio": 1.0}, "crop_overlap_ratio must be at least 0 and below 1"),
        ({"crop_n_layers": 2, "crop_n_points_downscale_factor": 4}, "in layer 2, got 4 with points_per_side=8"),
        ({"crop_n_points_downscale_factor": 0}, "crop_n_points_downscale_factor must be above 0, got 0"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hierarchical(**{"points_per_side": 8, **settings})


@pytest.mark.parametrize("size", [(1500, 2250), (333, 501), (90, 130)])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_crops_are_sams(size: tuple[int, int], layers: int) -> None:
    boxes, layer_of = generate_crop_boxes(size, layers, 512 / 1500)
    crops = generate_crops(size, layers, 512 / 1500)
    assert [list(crop.box) for crop in crops] == boxes
    assert [crop.layer for crop in crops] == layer_of


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3, 2)])
def test_every_crop_has_a_pixel(size: tuple[int, int]) -> None:
    for _, (x0, y0, x1, y1) in generate_crops(size, 3, 0.34):
        assert 0 <= x0 < x1 <= size[1]
        assert 0 <= y0 < y1 <= size[0]


def test_masks_of_a_crop_lie_where_it_does() -> None:
    crop = np.random.default_rng(0).random((20, 30)) > 0.5
    image = np.zeros(SIZE, bool)
    image[7:27, 11:41] = crop
    rles = encode(torch.from_numpy(np.stack([crop, ~crop])).transpose(1, 2))
    moved = uncrop(rles, (11, 7), SIZE)
    assert (decode(moved[0]) == image).all()
    everywhere = np.zeros(SIZE, bool)
    everywhere[7:27, 11:41] = True
    assert (decode(union(moved)) == everywhere).all()
    assert uncrop([], (0, 0), SIZE) == []


def test_masks_at_a_crops_edge_are_cut() -> None:
    corner = torch.randint(0, 260, (5000, 2), generator=torch.Generator().manual_seed(0))
    side = torch.randint(0, 260, (5000, 2), generator=torch.Generator().manual_seed(1))
    boxes = torch.cat([corner, corner + side], dim=1).float()
    crop = (150, 0, 451, 280)
    size = (300, 460)
    expected = is_box_near_crop_edge(boxes - torch.tensor([150, 0, 150, 0]), list(crop), [0, 0, 460, 300])
    assert torch.equal(segevery._touches_crop_edge(boxes, crop, size), expected)
    assert 0.1 < expected.float().mean() < 0.9


@pytest.mark.parametrize(
    ("layers", "downscale", "nms"), [(1, 1, 1.0), pytest.param(2, 2, 1.0, marks=pytest.mark.slow), (1, 1, 0.7)]
)
def test_segevery_with_crops_is_the_mask_generator(
    photo: np.ndarray, tmp_path, monkeypatch: pytest.MonkeyPatch, layers: int, downscale: int, nms: float
) -> None:
    """Masks at the edge of a crop stay, and NMS is off but once, since masks of random weights are everywhere."""
    monkeypatch.setattr(segevery, "CROP_EDGE", -1)
    monkeypatch.setattr(
        automatic_mask_generator, "is_box_near_crop_edge", lambda boxes, *_: torch.zeros(len(boxes)) > 0
    )
    image = np.kron(photo, np.ones((2, 2, 1), np.uint8))
    official = official_mini()
    calibrate(official, image)
    settings = {"points_per_side": 8, "crop_n_layers": layers, "crop_n_points_downscale_factor": downscale}
    ours = SegEvery(
        ours_from(official, tmp_path),
        Grid(**settings, stability_score_thresh=0.9, box_nms_thresh=nms, crop_nms_thresh=nms),
    )
    results = ours(image).to_coco(image_id=1)
    records = SamAutomaticMaskGenerator(
        official,
        **settings,
        stability_score_thresh=0.9,
        box_nms_thresh=nms,
        crop_nms_thresh=nms,
        output_mode="coco_rle",
    ).generate(image)

    def key(result: dict) -> tuple:
        return (*np.round(result["point_coords"][0], 4), *result["crop_box"], round(result["predicted_iou"], 3))

    mine, theirs = ({key(result): result for result in part} for part in (results, records))
    assert nms < 1 or len({result["crop_box"][2] for result in results}) > layers  # of the image and of crops
    assert len(mine.keys() & theirs.keys()) >= 0.9 * len(mine.keys() | theirs.keys()) > 0
    for shared in mine.keys() & theirs.keys():
        a, b = (decode(part[shared]["segmentation"]) for part in (mine, theirs))
        assert (a != b).mean() < 1e-4
    assert ours.timer.num_prompts == 64 + sum((8 // downscale**i) ** 2 * 4**i for i in range(1, layers + 1))
    assert all(ours.timer.ms[stage] > 0 for stage in STAGES)


def test_hierarchical_finds_what_the_grid_does_with_fewer_prompts(photo: np.ndarray, tmp_path) -> None:
    official = official_mini()
    calibrate(official, photo)
    sam = ours_from(official, tmp_path)
    every, few = (
        SegEvery(sam, Grid(points_per_side=12, box_nms_thresh=1.0)),
        SegEvery(sam, Hierarchical(12, box_nms_thresh=1.0)),
    )
    all_masks, masks = every(photo), few(photo)
    assert 9 < few.timer.num_prompts < every.timer.num_prompts == 144
    counts = {rle["counts"] for rle in all_masks.rles}
    assert 0 < len(masks) < len(all_masks)
    assert sum(rle["counts"] in counts for rle in masks.rles) >= 0.9 * len(masks)
    assert masks.prompt_index.max() < few.timer.num_prompts


def test_a_round_is_of_one_crop(photo: np.ndarray, tmp_path) -> None:
    class TwoCrops(GridProposals):
        def rounds(self, image: np.ndarray, embedding: torch.Tensor):
            crops = torch.tensor([[0, 0, 20, 20], [5, 5, 30, 30]])
            yield Prompts(points=torch.full((2, 1, 2), 9.0), labels=torch.ones(2, 1).long(), crops_xyxy=crops)

    with pytest.raises(ValueError, match="must be of one crop, got 2"):
        SegEvery(ours_from(official_mini(), tmp_path), TwoCrops())(photo)
