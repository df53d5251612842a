"""A visitor's photo, and the masks of their points and box."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from mobilesamv2.app.demo import DemoApp, synthetic_scene
from mobilesamv2.app.session import (
    MAX_POINTS,
    MAX_SIDE,
    Box,
    Interactions,
    Photo,
    Point,
    Session,
    open_photo,
    read_interactions,
)
from mobilesamv2.segany import SegAny


def session_of(demo: DemoApp, image: np.ndarray) -> Session:
    return Session(demo.models, Photo(image, (image.shape[0], image.shape[1])))


def write(path: Path, image: np.ndarray, mode: str = "RGB", **options: object) -> Path:
    Image.fromarray(image).convert(mode).save(path, **options)
    return path


def test_a_click_and_a_box_agree_with_segany(demo: DemoApp) -> None:
    scene = synthetic_scene(3)
    segany = SegAny(demo.models["mini_conv"])
    segany.set_image(scene)
    session = session_of(demo, scene)
    assert session.segment(Interactions(), ["mini_conv"]) == {}

    found = session.segment(Interactions((Point(128, 192),)), ["mini_conv"])["mini_conv"]
    expected = segany.predict(points=[(128, 192)])
    best = expected.predicted_iou[0].argmax()
    np.testing.assert_array_equal(found.mask, expected.masks[0, best])
    assert found.predicted_iou == pytest.approx(expected.predicted_iou[0, best])
    assert found.ms > 0
    assert session.encoder_ms["mini_conv"] > 0

    all_of_them = Interactions((Point(128, 192), Point(384, 288, False)), Box(64, 96, 256, 288))
    expected = segany.predict(
        points=[(128, 192), (384, 288)], labels=[1, 0], boxes=[64, 96, 256, 288], multimask_output=False
    )
    found = session.segment(all_of_them, ["mini_conv"])["mini_conv"]
    np.testing.assert_array_equal(found.mask, expected.masks[0, 0])
    assert session.predictions["mini_conv"] is found


def test_a_photo_is_encoded_once_and_sessions_are_separate(
    demo: DemoApp, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    encoder = demo.models["mini_conv"].image_encoder
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda x: passes.append(1) or forward(x))
    first, second = session_of(demo, synthetic_scene(1)), session_of(demo, photo)
    box = Interactions(box=Box(100, 100, 300, 300))
    alone = first.segment(box, ["mini_conv"])["mini_conv"].mask
    assert second.segment(Interactions((Point(3, 4),)), ["mini_conv"])["mini_conv"].mask.shape == photo.shape[:2]
    np.testing.assert_array_equal(first.segment(box, ["mini_conv"])["mini_conv"].mask, alone)
    assert len(passes) == 2


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (900, 5)])
def test_extreme_sizes(demo: DemoApp, size: tuple[int, int]) -> None:
    session = session_of(demo, np.zeros((*size, 3), np.uint8))
    whole = read_interactions({"points": [], "box": [0, 0, 1, 1]}, size)
    assert session.segment(whole, ["mini_conv"])["mini_conv"].mask.shape == size


def test_interactions_as_the_page_sends_them() -> None:
    sent = {"points": [[0.25, 0.5, 1], [0.75, 0.75, 0]], "box": [0.5, 0.75, 0.125, 0.25]}  # dragged upwards
    read = read_interactions(sent, (384, 512))
    assert read == Interactions((Point(128, 192), Point(384, 288, False)), Box(64, 96, 256, 288))
    assert not read_interactions({"points": [], "box": None}, (384, 512))
    assert read_interactions({"points": [[1, 0, 1]]}, (384, 512)).points == (Point(512, 0),)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (None, "must be points and a box"),
        ([], "must be points and a box"),
        ({"points": "all"}, "must be points and a box"),
        ({"points": [[0.5, 0.5]]}, "A point must be x, y and whether"),
        ({"points": ["abc"]}, "A point must be x, y and whether"),
        ({"points": [[-0.1, 0.5, 1]]}, "inside the photo"),
        ({"points": [[float("nan"), 0.5, 1]]}, "inside the photo"),
        ({"points": [["0", 0.5, 1]]}, "inside the photo"),
        ({"points": [[True, 0.5, 1]]}, "inside the photo"),
        ({"points": [[0.5, 0.5, 1]] * (MAX_POINTS + 1)}, "At most 100 points are taken, got 101"),
        ({"box": [0, 0, 1]}, "A box must be x0, y0, x1, y1"),
        ({"box": {"path": "/etc/passwd"}}, "A box must be x0, y0, x1, y1"),
        ({"box": [0, 0, 1, 1.01]}, "inside the photo"),
        ({"box": [0.5, 0, 0.5, 1]}, "A box must have a width and a height"),
    ],
)
def test_interactions_that_are_none(sent: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_interactions(sent, (384, 512))


def test_photos_of_any_kind(photo: np.ndarray, tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "1", "P"):
        assert open_photo(write(tmp_path / f"{mode}.png", photo, mode)).image.shape == (90, 130, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_photo(write(tmp_path / "sideways.jpg", photo, exif=exif)).image.shape == (130, 90, 3)
    long = open_photo(write(tmp_path / "long.png", np.zeros((300, 2 * MAX_SIDE, 3), np.uint8)))
    assert long.image.shape == (150, MAX_SIDE, 3)
    assert long.size == (300, 2 * MAX_SIDE)
    assert long.full_size().shape == (300, 2 * MAX_SIDE, 3)
    Image.fromarray(np.linspace(0, 4095, 900).reshape(30, 30).astype(np.uint16)).save(tmp_path / "deep.png")
    assert open_photo(tmp_path / "deep.png").image.mean() == pytest.approx(127.5, abs=2)
    assert open_photo(tmp_path / "deep.png", (0, 65535)).image.max() == 16


def test_photos_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (13_000, 13_000)).save(tmp_path / "vast.png")  # 169 megapixels in 20 KB
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("the photo was decoded"))
        with pytest.raises(ValueError, match=r"This photo has more than 50 megapixels, the most that this page decode"):
            open_photo(tmp_path / "vast.png")
        Image.new("I;16", (5001, 5001)).save(tmp_path / "deep.png")
        with pytest.raises(ValueError, match=r"\(25 of more than 8 bits per colour\)"):
            open_photo(tmp_path / "deep.png")
    (tmp_path / "broken.jpg").write_bytes(b"not a photo")
    for path in (tmp_path / "broken.jpg", tmp_path / "missing.jpg", tmp_path):
        with pytest.raises(ValueError, match=r"This photo can't be decoded\. Supported formats: ") as caught:
            open_photo(path)
        assert str(tmp_path) not in str(caught.value)  # the server's folders are none of a visitor's business
