"""The interactive demo: its logic, and the page itself in a browser."""

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobilesamv2 import build_sam
from mobilesamv2.app.session import (
    MAX_SIDE,
    NO_IMAGE,
    AutoMasks,
    Box,
    DemoApp,
    Point,
    Session,
    add_interaction,
    open_demo,
    synthetic_scene,
    times_table,
)
from mobilesamv2.cli.main import main
from mobilesamv2.segany import SegAny
from mobilesamv2.structures import Filters


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoApp:
    """The demo with the weights that ship, without a detector."""
    return open_demo(None, tmp_path_factory.mktemp("weights"), None)


def write(path: Path, image: np.ndarray, mode: str = "RGB", **options: object) -> Path:
    Image.fromarray(image).convert(mode).save(path, **options)
    return path


def test_a_click_and_a_drag_agree_with_segany(demo: DemoApp) -> None:
    scene = synthetic_scene(3)
    segany = SegAny(demo.sam)
    segany.set_image(scene)
    session = Session(demo.sam, scene)
    assert session.predict() is None
    np.testing.assert_array_equal(session.overlay(None), scene)

    add_interaction(session, (0.25, 0.5))
    prediction = session.predict()
    expected = segany.predict(points=[(128, 192)])
    best = expected.predicted_iou[0].argmax()
    np.testing.assert_array_equal(prediction.mask, expected.masks[0, best])
    assert prediction.predicted_iou == pytest.approx(expected.predicted_iou[0, best])
    assert prediction.ms > 0
    assert session.encoder_ms > 0

    add_interaction(session, (0.75, 0.75), foreground=False)
    add_interaction(session, (0.5, 0.75), (0.125, 0.25))  # upwards and to the left
    assert session.box == Box(64, 96, 256, 288)
    expected = segany.predict(
        points=[(128, 192), (384, 288)], labels=[1, 0], boxes=[64, 96, 256, 288], multimask_output=False
    )
    prediction = session.predict()
    np.testing.assert_array_equal(prediction.mask, expected.masks[0, 0])
    assert (session.overlay(prediction) != scene).any() == prediction.mask.any()


def test_undo_and_clear(demo: DemoApp) -> None:
    session = Session(demo.sam, synthetic_scene(3))
    session.undo()
    session.add(Box(1, 2, 30, 40))
    session.add(Box(5, 6, 70, 80))
    session.add(Point(9, 9))
    session.undo()
    assert session.points == []
    assert session.box == Box(5, 6, 70, 80)
    session.undo()
    assert session.box == Box(1, 2, 30, 40)  # the earlier one is back
    session.clear()
    assert session.predict() is None


def test_the_encoder_runs_once_and_sessions_are_separate(
    demo: DemoApp, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    forward = demo.sam.image_encoder.forward
    monkeypatch.setattr(demo.sam.image_encoder, "forward", lambda x: passes.append(1) or forward(x))
    first, second = Session(demo.sam, synthetic_scene(1)), Session(demo.sam, photo)
    first.add(Box(100, 100, 300, 300))
    alone = first.predict().mask
    second.add(Point(3, 4))
    assert second.predict().mask.shape == photo.shape[:2]
    np.testing.assert_array_equal(first.predict().mask, alone)
    assert len(passes) == 2


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (900, 5)])
def test_extreme_sizes(demo: DemoApp, size: tuple[int, int]) -> None:
    session = Session(demo.sam, np.zeros((*size, 3), np.uint8))
    add_interaction(session, (0, 0), (1, 1))
    assert session.predict().mask.shape == size


def test_invalid_interactions(demo: DemoApp) -> None:
    with pytest.raises(ValueError, match=NO_IMAGE):
        add_interaction(None, (0.5, 0.5))
    session = Session(demo.sam, synthetic_scene(3))
    for interaction in (Point(-1, 5), Point(5, 385), Box(5, 5, 600, 9), Point(float("nan"), 5)):
        with pytest.raises(ValueError, match=r"inside the image, which has 512 x 384 pixels"):
            session.add(interaction)
    with pytest.raises(ValueError, match="A box must have a width and a height"):
        session.add(Box(5, 5, 5, 9))
    assert session.interactions == []


def test_images_of_any_kind(demo: DemoApp, photo: np.ndarray, tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "1", "P"):
        session = demo.open(write(tmp_path / f"{mode}.png", photo, mode))
        assert session.image.shape == (90, 130, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert demo.open(write(tmp_path / "sideways.jpg", photo, exif=exif)).image.shape == (130, 90, 3)
    long = np.zeros((300, 2 * MAX_SIDE, 3), np.uint8)
    assert demo.open(write(tmp_path / "long.png", long)).image.shape == (150, MAX_SIDE, 3)
    Image.fromarray(np.linspace(0, 4095, 900).reshape(30, 30).astype(np.uint16)).save(tmp_path / "deep.png")
    assert demo.open(tmp_path / "deep.png").image.mean() == pytest.approx(127.5, abs=2)
    windowed = replace(demo, value_range=(0, 65535))
    assert windowed.open(tmp_path / "deep.png").image.max() == 16
    Image.new("1", (13_000, 13_000)).save(tmp_path / "vast.png")  # 169 megapixels in 20 KB
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"This image has more than 50 megapixels, the most that this page decodes"):
        demo.open(tmp_path / "vast.png")
    assert time.monotonic() - begin < 1
    (tmp_path / "broken.jpg").write_bytes(b"not a photo")
    with pytest.raises(ValueError, match="This image can't be decoded"):
        demo.open(tmp_path / "broken.jpg")


def test_everything_by_grid(demo: DemoApp) -> None:
    scene = synthetic_scene(3)
    found = demo.by_grid(scene, 8)
    assert found.prompts == 64
    assert found.masks > 0
    assert (found.overlay != scene).any()
    assert found.ms["image_encoder"] > 0
    assert found.ms["mask_decoder"] > 0
    assert demo.by_grid(scene, 8, Filters(0.999, 0.999)).masks == 0
    with pytest.raises(
        ValueError, match=r"require a detector. There is no weight file ObjectAwareModel.pt.*--detector FILE"
    ):
        demo.by_boxes(scene)


def test_everything_by_boxes(demo: DemoApp) -> None:
    class TwoBoxes:
        def detect(self, image: np.ndarray, **options: float) -> tuple[torch.Tensor, torch.Tensor]:
            assert options["confidence"] == 0.2
            return torch.tensor([[10.0, 10, 90, 90], [200, 100, 300, 250]]), torch.tensor([0.9, 0.8])

    found = DemoApp(demo.sam, TwoBoxes(), "").by_boxes(synthetic_scene(3), 0.2)
    assert found.prompts == 2
    assert found.masks <= 2


def test_a_detector_from_a_file(tmp_path: Path) -> None:
    from mobilesamv2.models.object_detector import build_detector, save_detector

    save_detector(build_detector("yolov8n"), tmp_path / "ObjectAwareModel.pt")
    demo = open_demo("mini_conv", tmp_path, None, detector_size=64)
    assert demo.no_detector == ""
    assert demo.by_boxes(synthetic_scene(1), 0.99).prompts == 0
    with pytest.raises(FileNotFoundError, match=r"There is no weight file .*other.pt"):
        open_demo("mini_conv", tmp_path, tmp_path / "other.pt")


def test_which_model(demo: DemoApp, tmp_path: Path) -> None:
    assert "mini_conv" in demo.about
    assert "mobilesamv2 download mobile_sam" in demo.about
    torch.save(build_sam("mobile_sam").state_dict(), tmp_path / "mobile_sam.pt")
    published = open_demo(None, tmp_path, None)
    assert "mobile_sam: image encoder tiny_vit_5m" in published.about
    assert "download" not in published.about
    assert published.filters.pred_iou_thresh == 0.88
    with pytest.raises(FileNotFoundError, match=r"mobilesamv2 download mobile_sam\.pt"):
        open_demo("mobile_sam", tmp_path / "empty", None)


def test_table_of_times() -> None:
    ms = {"image_encoder": 1234.5, "prompt_sampling": 0.24, "mask_decoder": 99.6, "postprocessing": 5.0}
    table = times_table({"grid": AutoMasks(np.zeros((1, 1, 3)), ms, 1024, 0), "object-aware": None})
    assert table.splitlines() == [
        "| | grid | object-aware |",
        "|---|--:|--:|",
        "| image encoder, ms | 1,234 | - |",
        "| prompt sampling, ms | 0.2 | - |",
        "| mask decoder, ms | 100 | - |",
        "| post-processing, ms | 5.0 | - |",
        "| **total, ms** | **1,339** | **-** |",
        "| prompts | 1,024 | - |",
        "| masks | 0 | - |",
        "",
        "No mask of grid passed the thresholds; try lower ones.",
    ]


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "mobilesamv2.app.page", raising=False)
    with pytest.raises(SystemExit, match=r"error: .*isn't installed: pip install 'mobilesamv2\[app\]'"):
        main(["app", "--model", "mini_conv"])


def test_a_port_in_use(demo: DemoApp) -> None:
    import socket

    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'mobilesamv2[app]'")
    from mobilesamv2.app.page import build_page, serve

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match=f"can't be served: .*{taken.getsockname()[1]}"):
            serve(build_page(demo), taken.getsockname()[1])


@pytest.mark.slow
def test_the_page_in_a_browser(demo: DemoApp, photo: np.ndarray, tmp_path: Path) -> None:
    """Two users; no request to any other server."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'mobilesamv2[app]'")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    from mobilesamv2.app.page import build_page, serve

    page = build_page(demo)
    address = serve(page, block=False)
    try:
        with playwright.sync_playwright() as starting:
            browser = starting.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            requested: list[str] = []
            users = [browser.new_page(viewport={"width": 1280, "height": 900}) for _ in range(2)]
            for user in users:
                user.on("request", lambda request: requested.append(request.url))
                user.goto(address)
            play(users[0], write(tmp_path / "photo.png", np.kron(photo, np.ones((4, 4, 1), np.uint8))), tmp_path)
            # the other user sees none of it, and has no image to segment
            assert NO_IMAGE in users[1].inner_text("#canvas")
            users[1].get_by_role("tab", name="Everything").click()
            users[1].get_by_role("button", name="Segment everything").click()
            users[1].get_by_text(NO_IMAGE).last.wait_for()
            (tmp_path / "broken.png").write_bytes(b"not a photo")
            users[1].set_input_files("input[type=file]", tmp_path / "broken.png")
            users[1].get_by_text("can't be decoded").wait_for(timeout=8000)
            browser.close()
    finally:
        page.close()
    print(f"screenshots: {tmp_path}")
    elsewhere = {url for url in requested if not url.startswith((address, "data:", "blob:"))}
    assert not elsewhere


def play(user, photo: Path, screenshots: Path) -> None:
    """A click, a drag, undo, everything, and a synthetic scene."""
    user.set_input_files("input[type=file]", photo)
    user.wait_for_selector("#canvas .demo-image")
    shown = user.locator("#canvas .demo-image img")
    plain = shown.get_attribute("src")
    box = user.locator("#canvas .demo-image").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(130 / 90, rel=0.01)

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    user.mouse.click(*at(0.25, 0.5))
    user.wait_for_selector("#canvas .point")
    style = user.get_attribute("#canvas .point", "style")
    left, top = (float(part.split(":")[1].rstrip("%;")) for part in style.rstrip(";").split(";"))
    assert (left, top) == pytest.approx((25, 50), abs=0.5)
    assert "predicted IoU" in user.inner_text("#prediction")

    user.mouse.move(*at(0.2, 0.2))
    user.mouse.down()
    user.mouse.move(*at(0.7, 0.8), steps=3)
    user.mouse.up()
    user.wait_for_selector("#canvas .box")
    assert shown.get_attribute("src") != plain  # a mask is drawn over the image
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
    user.get_by_role("button", name="Use a synthetic scene").click()
    user.wait_for_selector("#grid img", state="detached")
    assert user.inner_text("#times").strip() == ""
