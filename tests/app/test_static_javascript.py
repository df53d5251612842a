"""The page without a server computes what the Python does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.javascript import call_javascript

from mobilesamv2.export.runtime import labelled_points
from mobilesamv2.masks import encode, nms
from mobilesamv2.prompts import Grid
from mobilesamv2.structures import decode
from mobilesamv2.transforms import PIXEL_MEAN, PIXEL_STD, ModelFrame, Resizing, to_model_input

ABOUT = {"image_size": 64, "pixel_mean": PIXEL_MEAN, "pixel_std": PIXEL_STD}


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rgba(image: np.ndarray) -> list[int]:
    return np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]).ravel().tolist()


@pytest.mark.parametrize(
    ("size", "new_size"),
    [((90, 130), (44, 64)), ((90, 130), (177, 256)), ((1, 300), (1, 64)), ((211, 3), (64, 1)), ((64, 50), (64, 50))],
)
def test_images_are_resized_as_pillow_does(size: tuple[int, int], new_size: tuple[int, int], tmp_path: Path) -> None:
    """Bit for bit, shrunk and enlarged."""
    image = random_image(*size)
    call = "page.resize(given.image, given.size[1], given.size[0], given.newSize[1], given.newSize[0])"
    ours = call_javascript(tmp_path, "frame.js", call, image=rgba(image), size=size, newSize=new_size)
    theirs = Image.fromarray(image).resize(new_size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.reshape(ours, (*new_size, 3)), np.asarray(theirs))


@pytest.mark.parametrize("resizing", Resizing)
@pytest.mark.parametrize("size", [(90, 130), (200, 21), (40, 30), (1, 500)])
def test_the_models_frame(size: tuple[int, int], resizing: Resizing, tmp_path: Path) -> None:
    image, frame = random_image(*size), ModelFrame(size, 64, resizing)
    low_res = 10 * torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    call = (
        "(({ frame }) => ({ input: frame.modelInput(given.image), point: frame.toModel(7, 5),"
        " logits: frame.logitsToOriginal(given.logits) }))"
        "({ frame: new page.ModelFrame(given.size[1], given.size[0], given.about) })"
    )
    about = ABOUT | {key: getattr(resizing, key) for key in ("keep_aspect_ratio", "antialias", "bicubic_masks")}
    given = {"image": rgba(image), "size": size, "logits": low_res.flatten().tolist(), "about": about}
    ours = call_javascript(tmp_path, "frame.js", call, **given)
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    expected = to_model_input(image, 64, mean, std, resizing)
    np.testing.assert_allclose(np.reshape(ours["input"], expected.shape), expected, atol=1e-5)
    np.testing.assert_allclose(ours["point"], frame.coords_to_model(torch.tensor([7.0, 5.0])), rtol=1e-6)
    logits = frame.logits_to_original(low_res)[0].T
    np.testing.assert_allclose(np.reshape(ours["logits"], size), logits, atol=2e-4)


@pytest.mark.parametrize("kind", ["blobs", "empty", "full", "first pixel"])
def test_masks_are_encoded_as_pycocotools_does(kind: str, tmp_path: Path) -> None:
    y, x = np.mgrid[:150, :230]
    masks = {"blobs": np.sin(x / 9) * np.cos(y / 7) > 0.3, "empty": x < 0, "full": x >= 0, "first pixel": x + y == 0}
    mask = masks[kind]
    call = "{ rle: page.encode(given.mask, 230, 150), measured: page.measure(given.mask, 230) }"
    ours = call_javascript(tmp_path, "masks.js", call, mask=mask.astype(int).ravel().tolist())
    assert ours["rle"] == encode(torch.from_numpy(mask.T[None]))[0]
    np.testing.assert_array_equal(decode(ours["rle"]), mask)
    if mask.any():
        rows, columns = np.nonzero(mask)
        x0, y0 = columns.min(), rows.min()
        bbox = [x0, y0, columns.max() - x0 + 1, rows.max() - y0 + 1]
        assert ours["measured"] == {"area": mask.sum(), "bbox": bbox}
    else:
        assert ours["measured"] is None


@pytest.mark.parametrize("pad_boxes", [False, True])
@pytest.mark.parametrize(("num_points", "box"), [(1, None), (3, None), (2, [20, 10, 100, 80]), (0, [5, 5, 6, 6])])
def test_prompts_are_labelled_as_the_decoder_takes_them(
    num_points: int, box: list[int] | None, pad_boxes: bool, tmp_path: Path
) -> None:
    points = [{"x": 10 * i + 3, "y": 7 * i + 1, "foreground": i != 1} for i in range(num_points)]
    frame = ModelFrame((90, 130), 64)
    call = (
        "page.decoderInputs(given.prompts, { toModel: (x, y) => [x * given.scale[0], y * given.scale[1]] }, given.pad)"
    )
    scale = (frame.resized[1] / 130, frame.resized[0] / 90)
    given = {"prompts": {"points": points, "box": box}, "scale": scale, "pad": pad_boxes}
    ours = call_javascript(tmp_path, "prompts.js", call, **given)
    coords = torch.tensor([[[p["x"], p["y"]] for p in points]]).float()
    expected_points, expected_labels = labelled_points(
        frame.coords_to_model(coords).numpy() if points else None,
        np.array([[int(p["foreground"]) for p in points]]) if points else None,
        frame.boxes_to_model(torch.tensor([box])).numpy() if box else None,
        pad_boxes,
    )
    np.testing.assert_allclose(ours["points"], expected_points[0], rtol=1e-6)
    assert ours["labels"] == expected_labels[0].tolist()


@pytest.mark.parametrize(
    ("points", "box", "message"),
    [
        ([True] * 6, None, None),
        ([True] * 4, [1, 2, 3, 4], None),
        ([True, False], None, "m takes no points on the background"),
        ([True] * 5, [1, 2, 3, 4], "m takes 6 points at most, a box counting as two"),
    ],
)
def test_prompts_that_the_model_does_not_take(
    points: list[bool], box: list[int] | None, message: str | None, tmp_path: Path
) -> None:
    prompts = {"points": [{"x": 1, "y": 2, "foreground": foreground} for foreground in points], "box": box}
    about = {"model": "m", "takes_background": False, "max_points": 6}
    call = (
        "(() => { try { page.requireTaken(given.prompts, given.about); } catch (error) { return error.message; }"
        " return null; })()"
    )
    found = call_javascript(tmp_path, "prompts.js", call, prompts=prompts, about=about)
    assert (found and found.partition(": ")[0]) == message
    sam = {"model": "sam", "takes_background": True, "max_points": None}
    assert call_javascript(tmp_path, "prompts.js", call, prompts=prompts, about=sam) is None


def test_undo_and_redo(tmp_path: Path) -> None:
    steps = ["addPoint(1, 2, true)", "setBox(9, 8, 3, 4)", "setBox(1, 1, 5, 5)", "undo()", "undo()", "redo()"]
    steps += ["clear()", "undo()", "undo()", "addPoint(6, 7, false)", "redo()"]
    calls = "".join(f"history.{step}; seen();" for step in steps)
    call = (
        "(() => { const history = new page.History(); const states = [];"
        " const seen = () => states.push([history.prompts.points.length, history.prompts.box, history.canRedo]);"
        f" seen(); {calls} history.clear(); history.clear(); states.push(history.isEmpty, history.states.length);"
        " return states; })()"
    )
    first, second = [3, 4, 9, 8], [1, 1, 5, 5]
    assert call_javascript(tmp_path, "prompts.js", call) == [
        [0, None, False],
        [1, None, False],
        [1, first, False],  # from its upper left corner
        [1, second, False],
        [1, first, True],
        [1, None, True],
        [1, first, True],
        [0, None, False],  # a step that can be undone, and what was undone before is gone
        [1, first, True],
        [1, None, True],
        [2, None, False],
        [2, None, False],
        True,
        4,
    ]


def test_duplicates_are_suppressed_as_in_segevery(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    corners, spans = rng.integers(0, 40, (200, 2)), rng.integers(0, 30, (200, 2))
    boxes, iou = np.hstack([corners, corners + spans]), rng.permutation(200) / 200
    given = [
        {"bbox": [int(x0), int(y0), int(x1 - x0 + 1), int(y1 - y0 + 1)], "predictedIou": float(score), "i": i}
        for i, ((x0, y0, x1, y1), score) in enumerate(zip(boxes, iou, strict=True))
    ]
    ours = call_javascript(tmp_path, "everything.js", "page.suppress(given.all).map(({ i }) => i)", all=given)
    one_group = torch.zeros(200, dtype=torch.int64)
    theirs = nms(torch.tensor(boxes).double(), torch.tensor(iou), one_group, Grid().box_nms_thresh)
    assert ours == theirs.tolist()
    assert len(ours) < 200


def test_the_grid_and_the_stability_score(tmp_path: Path) -> None:
    call = "[page.gridPoints(4, 130, 90), page.stabilityScore([-3, -0.5, 0.5, 2, 4], 0), page.stabilityScore([-9], 0)]"
    points, score, of_none = call_javascript(tmp_path, "everything.js", call)
    rounds = Grid(points_per_side=4).rounds(np.zeros((90, 130, 3), np.uint8), torch.zeros(1, 1, 4, 4))
    expected = next(rounds).points
    np.testing.assert_allclose(points, expected[:, 0])
    assert (score, of_none) == (2 / 4, 0)
