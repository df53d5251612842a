"""Files that a visitor downloads."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobilesamv2 import load_pretrained
from mobilesamv2.app.downloads import cutout_png, mask_layer, mask_png, masks_json, prediction_json, resize_mask
from mobilesamv2.app.session import Box, Interactions, Photo, Point, Prediction, open_photo
from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.masks import decode
from mobilesamv2.prompts.grid import Grid
from mobilesamv2.segevery import SegEvery


def read(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.fixture
def large(tmp_path: Path) -> Photo:
    """A photo of twice the size at which it is shown."""
    y, x = np.mgrid[:1000, :2560]
    Image.fromarray(np.stack([x // 10, y // 4, x % 256], 2).astype(np.uint8)).save(tmp_path / "large.png")
    return open_photo(tmp_path / "large.png")


def prediction(mask: np.ndarray) -> Prediction:
    return Prediction(mask, 0.75, 1.0, Interactions((Point(100, 50), Point(3, 4, False)), Box(10, 20, 110, 70)))


def test_a_mask_and_a_cutout_have_the_size_of_the_file(large: Photo) -> None:
    assert large.image.shape == (500, 1280, 3)
    mask = np.zeros((500, 1280), bool)
    mask[20:70, 10:110] = True
    found = read(mask_png(large, prediction(mask)))
    expected = np.zeros((1000, 2560), bool)
    expected[40:140, 20:220] = True
    np.testing.assert_array_equal(found[41:139, 21:219], expected[41:139, 21:219])
    assert found.shape == expected.shape
    assert (found != expected).sum() <= 4  # the corners are rounded
    cutout = read(cutout_png(large, prediction(mask)))
    assert cutout.shape == (100, 200, 4)
    original = np.asarray(Image.open(large.path))
    np.testing.assert_array_equal(cutout[..., :3], original[40:140, 20:220])
    np.testing.assert_array_equal(cutout[..., 3], np.where(found[40:140, 20:220], 255, 0))


def test_coco_of_a_prediction(large: Photo, tmp_path: Path) -> None:
    mask = np.zeros((500, 1280), bool)
    mask[20:70, 10:110] = True
    content = json.loads(prediction_json(large, prediction(mask), "mini_conv"))
    assert content["images"] == [{"id": 1, "file_name": "large.png", "width": 2560, "height": 1000}]
    assert content["info"]["made_by"] == {"model": "mini_conv"}
    [annotation] = content["annotations"]
    assert annotation["bbox"] == [20, 40, 200, 100]
    assert annotation["area"] == decode(annotation["segmentation"]).sum()
    assert annotation["point_coords"] == [[200, 100], [6, 8]]
    assert annotation["point_labels"] == [1, 0]
    assert annotation["prompt_box_xyxy"] == [20, 40, 220, 140]
    (tmp_path / "masks.json").write_text(json.dumps(content))
    assert CocoDataset(tmp_path / "masks.json", tmp_path).ground_truth(0).size == (1000, 2560)


def test_an_empty_mask(large: Photo) -> None:
    empty = prediction(np.zeros((500, 1280), bool))
    assert not read(mask_png(large, empty)).any()
    assert json.loads(prediction_json(large, empty, "mini_conv"))["annotations"] == []
    with pytest.raises(ValueError, match="The mask is empty"):
        cutout_png(large, empty)


def test_a_file_that_was_deleted(large: Photo) -> None:
    Path(large.path).unlink()
    with pytest.raises(ValueError, match="was deleted, after an hour or to make room"):
        cutout_png(large, prediction(np.ones((500, 1280), bool)))


def test_coco_of_everything(large: Photo) -> None:
    sam = load_pretrained("mini_conv").for_inference()
    masks = SegEvery(sam, Grid(8, pred_iou_thresh=0, stability_score_thresh=0))(large.image)
    content = json.loads(masks_json(large, masks, {"model": "mini_conv"}))
    assert len(content["annotations"]) == len(masks) > 0
    assert all(annotation["segmentation"]["size"] == [1000, 2560] for annotation in content["annotations"])
    best = int(masks.scores.argsort(descending=True, stable=True)[0])
    first = content["annotations"][0]
    assert first["point_coords"][0] == pytest.approx((2 * masks.prompts.points[best][0]).tolist())
    assert first["area"] == pytest.approx(4 * masks[best].sum(), rel=0.05, abs=20)
    small = Photo(large.image, (500, 1280))
    assert json.loads(masks_json(small, masks, {}))["annotations"][0]["segmentation"] == masks.rles[best]


def test_no_mask_vanishes_when_it_is_enlarged() -> None:
    one = np.zeros((50, 60), bool)
    one[7, 9] = True
    for size in ((50, 60), (51, 61), (75, 90), (1000, 1200)):
        assert resize_mask(one, size).shape == size
        assert resize_mask(one, size).any()


def test_the_layer_over_the_photo() -> None:
    mask = np.zeros((40, 50), bool)
    mask[10:30, 10:40] = True
    layer = np.asarray(Image.open(io.BytesIO(mask_layer(mask))).convert("RGBA"))
    assert (layer[~mask][:, 3] == 0).all()
    assert (layer[20, 25] == [30, 136, 255, 128]).all()  # inside
    assert (layer[10, 25] == [255, 255, 255, 235]).all()  # the outline
    assert torch.equal(torch.from_numpy(layer[..., 3] > 0), torch.from_numpy(mask))
