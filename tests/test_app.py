"""The page to play with: its logic, and the page itself in a browser."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobilesamv2 import build_sam
from mobilesamv2.cli import main
from mobilesamv2.interactive import (
    LONGEST,
    NO_PHOTO,
    Box,
    Found,
    Playground,
    Point,
    Sitting,
    add_gesture,
    drawn_scene,
    open_playground,
    times_table,
)
from mobilesamv2.segany import SegAny
from mobilesamv2.structures import Filters


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Playground:
    """Of the weights that ship, without a detector."""
    return open_playground(None, tmp_path_factory.mktemp("weights"), None)


def write(path: Path, image: np.ndarray, mode: str = "RGB", **options: object) -> Path:
    Image.fromarray(image).convert(mode).save(path, **options)
    return path


def test_a_click_and_a_drag_give_what_segany_gives(playground: Playground) -> None:
    scene = drawn_scene(3)
    segany = SegAny(playground.sam)
    segany.set_image(scene)
    sitting = Sitting(playground.sam, scene)
    assert sitting.answer() is None
    np.testing.assert_array_equal(sitting.picture(None), scene)

    add_gesture(sitting, (0.25, 0.5))
    answer = sitting.answer()
    expected = segany.predict(points=[(128, 192)])
    best = expected.predicted_iou[0].argmax()
    np.testing.assert_array_equal(answer.mask, expected.masks[0, best])
    assert answer.predicted_iou == pytest.approx(expected.predicted_iou[0, best])
    assert answer.ms > 0
    assert sitting.encoder_ms > 0

    add_gesture(sitting, (0.75, 0.75), foreground=False)
    add_gesture(sitting, (0.5, 0.75), (0.125, 0.25))  # upwards and to the left
    assert sitting.box == Box(64, 96, 256, 288)
    expected = segany.predict(points=[(128, 192), (384, 288)], labels=[1, 0], boxes=[64, 96, 256, 288], multimask=False)
    answer = sitting.answer()
    np.testing.assert_array_equal(answer.mask, expected.masks[0, 0])
    assert (sitting.picture(answer) != scene).any() == answer.mask.any()


def test_undo_and_clear(playground: Playground) -> None:
    sitting = Sitting(playground.sam, drawn_scene(3))
    sitting.undo()
    sitting.add(Box(1, 2, 30, 40))
    sitting.add(Box(5, 6, 70, 80))
    sitting.add(Point(9, 9))
    sitting.undo()
    assert sitting.points == []
    assert sitting.box == Box(5, 6, 70, 80)
    sitting.undo()
    assert sitting.box == Box(1, 2, 30, 40)  # the earlier one is back
    sitting.clear()
    assert sitting.answer() is None


def test_the_encoder_runs_once_and_sittings_keep_apart(
    playground: Playground, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    forward = playground.sam.image_encoder.forward
    monkeypatch.setattr(playground.sam.image_encoder, "forward", lambda x: passes.append(1) or forward(x))
    first, second = Sitting(playground.sam, drawn_scene(1)), Sitting(playground.sam, photo)
    first.add(Box(100, 100, 300, 300))
    alone = first.answer().mask
    second.add(Point(3, 4))
    assert second.answer().mask.shape == photo.shape[:2]
    np.testing.assert_array_equal(first.answer().mask, alone)
    assert len(passes) == 2


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (900, 5)])
def test_extreme_sizes(playground: Playground, size: tuple[int, int]) -> None:
    sitting = Sitting(playground.sam, np.zeros((*size, 3), np.uint8))
    add_gesture(sitting, (0, 0), (1, 1))
    assert sitting.answer().mask.shape == size


def test_gestures_that_are_none(playground: Playground) -> None:
    with pytest.raises(ValueError, match=NO_PHOTO):
        add_gesture(None, (0.5, 0.5))
    sitting = Sitting(playground.sam, drawn_scene(3))
    for gesture in (Point(-1, 5), Point(5, 385), Box(5, 5, 600, 9), Point(float("nan"), 5)):
        with pytest.raises(ValueError, match=r"outside of the photo, which is 512 x 384 pixels"):
            sitting.add(gesture)
    with pytest.raises(ValueError, match="A box has a width and a height"):
        sitting.add(Box(5, 5, 5, 9))
    assert sitting.gestures == []


def test_photos_of_any_kind(playground: Playground, photo: np.ndarray, tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "1", "P"):
        sitting = playground.sit(write(tmp_path / f"{mode}.png", photo, mode))
        assert sitting.image.shape == (90, 130, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert playground.sit(write(tmp_path / "sideways.jpg", photo, exif=exif)).image.shape == (130, 90, 3)
    long = np.zeros((300, 2 * LONGEST, 3), np.uint8)
    assert playground.sit(write(tmp_path / "long.png", long)).image.shape == (150, LONGEST, 3)
    (tmp_path / "broken.jpg").write_bytes(b"not a photo")
    with pytest.raises(ValueError, match="This photo can't be decoded"):
        playground.sit(tmp_path / "broken.jpg")


def test_everything_by_grid(playground: Playground) -> None:
    scene = drawn_scene(3)
    found = playground.by_grid(scene, 8)
    assert found.prompts == 64
    assert found.masks > 0
    assert (found.picture != scene).any()
    assert found.ms["image_encoder"] > 0
    assert found.ms["mask_decoder"] > 0
    assert playground.by_grid(scene, 8, Filters(0.9, 0.9)).masks == 0
    with pytest.raises(ValueError, match=r"need a detector, and there is no .*ObjectAwareModel.pt.*--detector FILE"):
        playground.by_boxes(scene)


def test_everything_by_boxes(playground: Playground) -> None:
    class TwoBoxes:
        def detect(self, image: np.ndarray, **asked: float) -> tuple[torch.Tensor, torch.Tensor]:
            assert asked["confidence"] == 0.2
            return torch.tensor([[10.0, 10, 90, 90], [200, 100, 300, 250]]), torch.tensor([0.9, 0.8])

    found = Playground(playground.sam, TwoBoxes(), "").by_boxes(drawn_scene(3), 0.2)
    assert found.prompts == 2
    assert found.masks <= 2


def test_a_detector_from_a_file(tmp_path: Path) -> None:
    from mobilesamv2.models.object_detector import build_detector, save_detector

    save_detector(build_detector("yolov8n"), tmp_path / "ObjectAwareModel.pt")
    playground = open_playground("mini_conv", tmp_path, None, detector_size=64)
    assert playground.no_detector == ""
    assert playground.by_boxes(drawn_scene(1), 0.99).prompts == 0
    with pytest.raises(FileNotFoundError, match=r"There is no weight file .*other.pt"):
        open_playground("mini_conv", tmp_path, tmp_path / "other.pt")


def test_which_model(playground: Playground, tmp_path: Path) -> None:
    assert "mini_conv" in playground.about
    assert "mobilesamv2 download mobile_sam" in playground.about
    torch.save(build_sam("mobile_sam").state_dict(), tmp_path / "mobile_sam.pt")
    released = open_playground(None, tmp_path, None)
    assert "mobile_sam: image encoder tiny_vit_5m" in released.about
    assert "download" not in released.about
    assert released.filters.predicted_iou == 0.88
    with pytest.raises(FileNotFoundError, match=r"mobilesamv2 download mobile_sam\.pt"):
        open_playground("mobile_sam", tmp_path / "empty", None)


def test_table_of_times() -> None:
    ms = {"image_encoder": 1234.5, "prompt_sampling": 0.24, "mask_decoder": 99.6, "postprocessing": 5.0}
    table = times_table({"grid": Found(np.zeros((1, 1, 3)), ms, 1024, 0), "object-aware": None})
    assert table.splitlines() == [
        "| | grid | object-aware |",
        "|---|--:|--:|",
        "| image encoder, ms | 1,234 | - |",
        "| prompt sampling, ms | 0.2 | - |",
        "| mask decoder, ms | 100 | - |",
        "| post-processing, ms | 5.0 | - |",
        "| **all, ms** | **1,339** | **-** |",
        "| prompts | 1,024 | - |",
        "| masks | 0 | - |",
        "",
        "No mask is left of grid: its thresholds may be too high.",
    ]


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "mobilesamv2.app", raising=False)
    with pytest.raises(SystemExit, match=r"error: .*isn't installed: pip install 'mobilesamv2\[app\]'"):
        main(["app", "--model", "mini_conv"])


def test_a_port_that_is_taken(playground: Playground) -> None:
    import socket

    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'mobilesamv2[app]'")
    from mobilesamv2.app import build_page, serve

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match=f"can't be served: .*{taken.getsockname()[1]}"):
            serve(build_page(playground), taken.getsockname()[1])


@pytest.mark.slow
def test_the_page_in_a_browser(playground: Playground, photo: np.ndarray, tmp_path: Path) -> None:
    """Two users; nothing is asked of any other server."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'mobilesamv2[app]'")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    from mobilesamv2.app import build_page, serve

    page = build_page(playground)
    address = serve(page, block=False)
    try:
        with playwright.sync_playwright() as starting:
            browser = starting.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            asked: list[str] = []
            users = [browser.new_page(viewport={"width": 1280, "height": 900}) for _ in range(2)]
            for user in users:
                user.on("request", lambda request: asked.append(request.url))
                user.goto(address)
            play(users[0], write(tmp_path / "photo.png", np.kron(photo, np.ones((4, 4, 1), np.uint8))), tmp_path)
            # the other one has seen none of it, and may not ask
            assert NO_PHOTO in users[1].inner_text("#canvas")
            users[1].get_by_role("tab", name="Everything").click()
            users[1].get_by_role("button", name="Segment everything").click()
            users[1].get_by_text(NO_PHOTO).last.wait_for()
            (tmp_path / "broken.png").write_bytes(b"not a photo")
            users[1].set_input_files("input[type=file]", tmp_path / "broken.png")
            users[1].get_by_text("can't be decoded").wait_for(timeout=8000)
            browser.close()
    finally:
        page.close()
    print(f"screenshots: {tmp_path}")
    elsewhere = {url for url in asked if not url.startswith((address, "data:", "blob:"))}
    assert not elsewhere


def play(user, photo: Path, screenshots: Path) -> None:
    """A click, a drag, undo, everything, and a drawn scene."""
    user.set_input_files("input[type=file]", photo)
    user.wait_for_selector("#canvas .photo")
    shown = user.locator("#canvas .photo img")
    plain = shown.get_attribute("src")
    box = user.locator("#canvas .photo").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(130 / 90, rel=0.01)

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    user.mouse.click(*at(0.25, 0.5))
    user.wait_for_selector("#canvas .point")
    style = user.get_attribute("#canvas .point", "style")
    left, top = (float(part.split(":")[1].rstrip("%;")) for part in style.rstrip(";").split(";"))
    assert (left, top) == pytest.approx((25, 50), abs=0.5)
    assert "predicted IoU" in user.inner_text("#answer")

    user.mouse.move(*at(0.2, 0.2))
    user.mouse.down()
    user.mouse.move(*at(0.7, 0.8), steps=3)
    user.mouse.up()
    user.wait_for_selector("#canvas .box")
    assert shown.get_attribute("src") != plain  # a mask lies over the photo
    user.screenshot(path=screenshots / "point_and_box.png")
    user.get_by_role("button", name="Undo").click()
    user.wait_for_selector("#canvas .box", state="detached")
    user.get_by_role("button", name="Clear").click()
    user.wait_for_selector("#canvas .point", state="detached")
    assert shown.get_attribute("src") == plain

    user.get_by_role("tab", name="Everything").click()
    user.get_by_role("button", name="Segment everything").click()
    user.wait_for_selector("#grid img")
    assert "mask decoder, ms" in user.inner_text("#times")
    assert "1,024" in user.inner_text("#times")
    user.screenshot(path=screenshots / "everything.png")
    user.get_by_role("button", name="Draw a scene instead").click()
    user.wait_for_selector("#grid img", state="detached")
    assert user.inner_text("#times").strip() == ""
