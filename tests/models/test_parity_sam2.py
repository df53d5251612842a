"""SAM 2 on images against the official code, on random weights: embeddings, decoder, SegAny and SegEvery."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from support import RecordParity, relative_difference
from support.official_sam2 import calibrate_sam2, official_sam2_mini, ours_from_sam2, predictor_of

from mobilesamv2 import SegAny, SegEvery
from mobilesamv2.masks import decode
from mobilesamv2.models.pyramid import Levels, pack_levels, unpack_cells, unpack_levels
from mobilesamv2.models.sam import Sam
from mobilesamv2.prompts import Grid


@pytest.fixture
def official(photo: np.ndarray):
    sam = official_sam2_mini()
    calibrate_sam2(sam, photo)
    return sam


@pytest.fixture
def ours(official, tmp_path: Path) -> Sam:
    return ours_from_sam2(official, tmp_path)


def test_the_levels_are_the_official_ones(official, ours: Sam, photo: np.ndarray, record_parity: RecordParity) -> None:
    predictor, segany = predictor_of(official), SegAny(ours)
    predictor.set_image(photo)
    segany.set_image(photo)
    levels = unpack_levels(segany.image_embedding)
    fine, middle = predictor._features["high_res_feats"]
    theirs = (predictor._features["image_embed"], middle, fine)
    differences = [relative_difference(a, b) for a, b in zip(levels, theirs, strict=True)]
    print("levels:", *(f"{difference:.1e}" for difference in differences))
    record_parity("sam2_mini", "embedding", max(differences), "rf-sam-2")
    assert max(differences) < 1e-4


@pytest.mark.parametrize("multimask_output", [False, True])
def test_segany_is_the_image_predictor(
    official, ours: Sam, photo: np.ndarray, multimask_output: bool, record_parity: RecordParity
) -> None:
    predictor, segany = predictor_of(official), SegAny(ours)
    predictor.set_image(photo)
    segany.set_image(photo)
    points, labels = np.array([[20.0, 30.0], [100.5, 60.0]]), np.array([1, 0])
    box = np.array([10.0, 12.5, 90.0, 80.0])
    mask_input = predictor.predict(points, labels, multimask_output=False)[2]
    ours_fed_back = segany.predict(points, labels, multimask_output=False).low_res_logits[0]
    assert np.abs(mask_input).max() == 32  # of logits beyond, so that what is fed back is not what the decoder returned
    cases = [
        {"point_coords": points, "point_labels": labels},
        {"box": box},
        {"point_coords": points, "point_labels": labels, "box": box},
        {"point_coords": points, "point_labels": labels, "mask_input": mask_input},
        {"box": box, "mask_input": mask_input},
        {"mask_input": mask_input},
    ]
    names = {"point_coords": "points", "point_labels": "labels", "box": "boxes", "mask_input": "mask_input"}
    for case in cases:
        full, predicted_iou, low_res = predictor.predict(**case, multimask_output=multimask_output, return_logits=True)
        own = case | ({"mask_input": ours_fed_back} if "mask_input" in case else {})
        mine = segany.predict(**{names[k]: v for k, v in own.items()}, multimask_output=multimask_output)
        np.testing.assert_allclose(mine.predicted_iou[0], predicted_iou, atol=1e-5)
        logits = np.abs(mine.low_res_logits[0] - low_res).max() / np.abs(full).max()
        iou = np.abs(mine.predicted_iou[0] - predicted_iou).max()
        print(f"{', '.join(case)}: logits {logits:.1e}, IoU {iou:.1e}")
        record_parity("sam2_mini", "masks", float(logits), "rf-sam-2")
        assert logits < 1e-5
        differs = mine.masks[0] != (full > 0)
        assert np.abs(full[differs]).max(initial=0) < 1e-4
        assert 0 < (full > 0).mean() < 1


def test_an_unstable_single_mask_gives_way_to_the_best_of_three(official, ours: Sam, photo: np.ndarray) -> None:
    """As in the official code, at each of many points; both outcomes occur."""
    predictor, segany = predictor_of(official), SegAny(ours)
    predictor.set_image(photo)
    segany.set_image(photo)
    height, width = photo.shape[:2]
    grid = np.stack(np.meshgrid(np.linspace(4, width - 4, 6), np.linspace(4, height - 4, 6)), -1).reshape(-1, 1, 2)
    single = segany.predict(grid, np.ones(grid.shape[:2]), multimask_output=False)
    three = segany.predict(grid, np.ones(grid.shape[:2]), multimask_output=True)
    replaced = 0
    for i, point in enumerate(grid):
        _, iou, low_res = predictor.predict(point, np.array([1]), multimask_output=False)
        assert abs(single.predicted_iou[i, 0] - iou[0]) < 1e-5
        assert np.abs(single.low_res_logits[i, 0] - low_res[0]).max() < 1e-3
        replaced += bool((single.predicted_iou[i, 0] == three.predicted_iou[i]).any())
    print(f"{replaced} of {len(grid)} masks were replaced")
    assert 0 < replaced < len(grid)


@pytest.mark.parametrize("nms", [0.9, 1.0])
def test_segevery_with_a_grid_is_the_mask_generator(official, ours: Sam, photo: np.ndarray, nms: float) -> None:
    side = 12
    generator = SAM2AutomaticMaskGenerator(official, side, box_nms_thresh=nms, output_mode="coco_rle")
    generator.predictor = predictor_of(official)
    theirs = generator.generate(photo)
    masks = SegEvery(ours, Grid(points_per_side=side, box_nms_thresh=nms))(photo)
    print(f"{len(theirs)} masks of {3 * side**2} pass")
    assert (1 if nms < 1 else 0.05 * side**2) <= len(theirs) < 2 * side**2
    assert abs(len(theirs) - len(masks)) <= 1  # a mask may lie at a filter's threshold
    official_masks = np.stack([coco_mask.decode(record["segmentation"]) for record in theirs]).reshape(len(theirs), -1)
    our_masks = np.stack([decode(rle) for rle in masks.rles]).reshape(len(masks), -1)
    differing = (official_masks[:, None] != our_masks[None]).sum(2).min(1)  # pixels, of the nearest mask
    assert (differing <= 2).sum() >= len(theirs) - 1


def test_packing_loses_nothing_and_the_decoder_reads_it_cell_by_cell() -> None:
    torch.manual_seed(0)
    levels = Levels(torch.randn(2, 16, 3, 3), torch.randn(2, 4, 6, 6), torch.randn(2, 2, 12, 12))
    packed = pack_levels(levels)
    assert packed.shape == (2, 64, 3, 3)
    assert all(torch.equal(a, b) for a, b in zip(unpack_levels(packed), levels, strict=True))
    coarse, (twos, fours) = unpack_cells(packed, 16)
    assert torch.equal(coarse, levels.stride_16)
    cell = 1 * 3 + 2  # row 1, column 2
    assert torch.equal(twos[1, cell, 2], levels.stride_8[1, :, 2 + 1, 4 + 0])  # pixel 2 of 2 x 2: row 1, column 0
    # of the first 2 x 2 its pixel 1 (row 0, column 1), of that the pixel 2 (row 1, column 0)
    assert torch.equal(fours[1, cell, 1, 2], levels.stride_4[1, :, 4 + 0 + 1, 8 + 2 + 0])


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "base_plus"])
def test_a_full_size_file_of_the_official_package_loads_strictly(
    size: str, tmp_path: Path, record_parity: RecordParity
) -> None:
    from sam2.build_sam import build_sam2

    from mobilesamv2 import build_sam

    short = {"tiny": "t", "base_plus": "b+"}[size]
    from hydra import initialize_config_module

    with initialize_config_module("sam2", version_base="1.2"):
        theirs = build_sam2(f"configs/sam2.1/sam2.1_hiera_{short}.yaml", ckpt_path=None, device="cpu")
    path = tmp_path / f"sam2.1_hiera_{size}.pt"
    torch.save({"model": theirs.state_dict()}, path)
    ours = build_sam(f"sam2.1_hiera_{size}", path, allow_partial=False)
    pixels = torch.randn(1, 3, 1024, 1024)
    with torch.no_grad():
        backbone = theirs.forward_image(pixels)
        levels = unpack_levels(ours.image_encoder(pixels))
    coarse = backbone["backbone_fpn"][2] + theirs.no_mem_embed[0, 0, :, None, None]
    fine, middle = backbone["backbone_fpn"][:2]
    differences = [relative_difference(a, b) for a, b in zip(levels, (coarse, middle, fine), strict=True)]
    record_parity(f"sam2.1_hiera_{size}", "embedding", max(differences), "rf-sam-2")
    print(f"{size}, levels:", *(f"{difference:.1e}" for difference in differences))
    assert max(differences) < 1e-4
