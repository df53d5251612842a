"""The page without a server in Chromium: its masks are SegAny's, and it can be used by mouse, keys and touch."""

import functools
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilesamv2 import SegAny, SegEvery, load_pretrained
from mobilesamv2.app.onnxruntime_web import VERSION
from mobilesamv2.app.static import PHOTOS, write_static_page
from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.images import read_rgb
from mobilesamv2.data.synthetic.render import render_scene
from mobilesamv2.prompts import Grid
from mobilesamv2.structures import decode

pytestmark = pytest.mark.slow

LOADED = "/Click on an object|Mask of/.test(document.getElementById('status').textContent)"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with the model that ships."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: apt-get install npm")
    folder = tmp_path_factory.mktemp("static")
    done = subprocess.run(
        [npm, "pack", f"onnxruntime-web@{VERSION}"], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"npm can't download onnxruntime-web {VERSION}: {done.stderr[-300:]}")
    write_static_page(load_pretrained("mini_conv"), folder / "page", folder / f"onnxruntime-web-{VERSION}.tgz")
    return folder / "page"


@pytest.fixture(scope="module")
def address(page_folder: Path) -> Iterator[str]:
    """A server of plain files, without headers of its own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(page_folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


class User:
    """Someone at the page.

    Args:
        browser: Chromium.
        address: of the page.
        downloads: folder for what is saved.
        options: of playwright's context.
    """

    def __init__(self, browser: Any, address: str, downloads: Path, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.downloads = downloads
        self.problems: list[str] = []
        self.requested: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.goto(address)
        self.page.wait_for_function(LOADED, timeout=120_000)
        self.wait()

    def wait(self) -> str:
        """Waits for the model, and returns what the page says."""
        self.page.wait_for_selector("#stage[aria-busy=false]", timeout=60_000)
        return self.page.inner_text("#status")

    def at(self, x: float, y: float) -> tuple[float, float]:
        box = self.page.locator("#stage").bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def open(self, path: Path) -> None:
        self.page.set_input_files("#file", path)
        self.page.wait_for_function(f"{LOADED} && document.querySelector('#stage[aria-busy=false]')", timeout=60_000)

    def save(self, button: str) -> Path:
        with self.page.expect_download() as download:
            self.page.click(f"#save-{button}")
        path = self.downloads / download.value.suggested_filename
        download.value.save_as(path)
        return path

    def annotations(self) -> list[dict[str, Any]]:
        return json.loads(self.save("coco").read_text())["annotations"]

    def num_marks(self) -> int:
        return self.page.locator("#marks .point, #marks .box").count()


@pytest.fixture(scope="module")
def segany() -> SegAny:
    return SegAny.from_pretrained("mini_conv")


def iou(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float((ours & theirs).sum() / (ours | theirs).sum())


def iou_with_segany(segany: SegAny, annotation: dict[str, Any]) -> float:
    """Of the page's mask with SegAny's for the prompt that the page saved."""
    points, box = annotation.get("point_coords"), annotation.get("prompt_box_xyxy")
    is_ambiguous = box is None and len(points) == 1
    expected = segany.predict(points, annotation.get("point_labels"), box, multimask_output=is_ambiguous)
    best = expected.predicted_iou[0].argmax()
    assert annotation["predicted_iou"] == pytest.approx(expected.predicted_iou[0, best], abs=1e-3)
    mask = decode(annotation["segmentation"])
    assert annotation["area"] == mask.sum() > 0
    found = iou(mask, expected.masks[0, best])
    print(f"IoU with SegAny: {found:.6f}")
    return found


def test_masks_are_those_of_segany(browser: Any, address: str, segany: SegAny, tmp_path: Path) -> None:
    """Points, background points and boxes, on a PNG and on a JPEG; nothing is asked of any other server."""
    user = User(browser, address, tmp_path, viewport={"width": 1280, "height": 900})
    scene = render_scene(5, (300, 420))[0]
    Image.fromarray(scene).save(tmp_path / "scene.png")
    for path in (tmp_path / "scene.png", PHOTOS / "coffee.jpg"):
        image = read_rgb(path, upright="always")
        segany.set_image(image)
        user.open(path)
        for x, y in ((0.25, 0.5), (0.6, 0.25), (0.7, 0.8)):
            user.page.mouse.click(*user.at(x, y))
            assert "predicted IoU" in user.wait()
            (annotation,) = user.annotations()
            assert annotation["point_coords"][0] == pytest.approx([x * image.shape[1], y * image.shape[0]], abs=1)
            assert iou_with_segany(segany, annotation) > 0.999
            user.page.keyboard.press("Delete")
            user.wait()
        user.page.mouse.click(*user.at(0.5, 0.5))
        user.page.mouse.click(*user.at(0.1, 0.1), button="right")
        user.wait()
        (annotation,) = user.annotations()
        assert annotation["point_labels"] == [1, 0]
        assert iou_with_segany(segany, annotation) > 0.999
        user.page.mouse.move(*user.at(0.9, 0.9))
        user.page.mouse.down()
        user.page.mouse.move(*user.at(0.2, 0.1), steps=3)
        user.page.mouse.up()
        user.wait()
        (annotation,) = user.annotations()
        assert iou_with_segany(segany, annotation) > 0.999
        height, width = image.shape[:2]
        assert annotation["prompt_box_xyxy"] == pytest.approx(
            [0.2 * width, 0.1 * height, 0.9 * width, 0.9 * height], abs=1
        )
    assert user.problems == []
    assert {url for url in user.requested if not url.startswith((address, "blob:", "data:"))} == set()


def test_what_is_saved(browser: Any, address: str, tmp_path: Path) -> None:
    user = User(browser, address, tmp_path)
    scene = render_scene(5, (300, 420))[0]
    Image.fromarray(scene).save(tmp_path / "my.scene.png")
    user.open(tmp_path / "my.scene.png")
    assert user.page.locator("#save-mask").is_disabled()
    user.page.mouse.click(*user.at(0.3, 0.5))
    user.wait()
    (annotation,) = user.annotations()
    mask, (x, y, width, height) = decode(annotation["segmentation"]), annotation["bbox"]
    saved = Image.open(user.save("mask"))
    np.testing.assert_array_equal(np.asarray(saved.convert("L")), 255 * mask)
    cutout = np.asarray(Image.open(user.save("cutout")))
    inside = np.s_[y : y + height, x : x + width]
    assert cutout.shape == (height, width, 4)
    np.testing.assert_array_equal(cutout[..., 3], 255 * mask[inside])
    np.testing.assert_array_equal(cutout[mask[inside]][:, :3], scene[inside][mask[inside]])
    dataset = CocoDataset(tmp_path / "my.scene_coco.json", tmp_path)
    np.testing.assert_array_equal(decode(dataset.ground_truth(0).rles[0]), mask)
    np.testing.assert_array_equal(dataset.load_image(0), scene)


def test_everything_is_that_of_segevery(browser: Any, address: str, tmp_path: Path) -> None:
    """But for the few masks whose stability score lies at the threshold: the page measures it on fewer pixels."""
    user = User(browser, address, tmp_path)
    user.open(PHOTOS / "coffee.jpg")
    user.page.click("#everything")
    user.page.wait_for_selector("#stop", state="visible")
    user.page.click("#stop")
    user.page.get_by_text("Stopped").wait_for()
    user.page.click("#everything")
    user.page.wait_for_function("/masks of 256 points/.test(document.getElementById('status').textContent)")
    ours = user.annotations()
    theirs = SegEvery.from_pretrained("mini_conv", Grid(points_per_side=16))(read_rgb(PHOTOS / "coffee.jpg"))
    assert len(ours) == pytest.approx(len(theirs), abs=2)
    best = [max(iou(decode(annotation["segmentation"]), mask) for mask in theirs) for annotation in ours]
    print(f"{len(ours)} masks, SegEvery's are {len(theirs)}; IoU with the nearest: {np.sort(best).round(3)}")
    assert np.mean(np.array(best) > 0.99) > 0.8
    assert [a["predicted_iou"] for a in ours] == sorted((a["predicted_iou"] for a in ours), reverse=True)
    assert user.page.locator("#save-mask").is_disabled()
    user.page.click("#clear")
    user.wait()
    assert user.page.locator("#save-coco").is_disabled()


def test_keys(browser: Any, address: str, tmp_path: Path) -> None:
    """Those of the page with a server."""
    user = User(browser, address, tmp_path)
    press = user.page.keyboard.press
    user.page.focus("#stage")
    for key in ("ArrowLeft", "ArrowUp", "Enter", "Shift+ArrowRight", "Shift+Enter"):
        press(key)
    user.wait()
    (annotation,) = user.annotations()
    width, height = 512, 384  # of the scene that is shown first
    assert annotation["point_coords"] == [
        pytest.approx([0.48 * width, 0.48 * height]), pytest.approx([0.485 * width, 0.48 * height])
    ]  # fmt: skip
    assert annotation["point_labels"] == [1, 0]
    press("b")
    assert user.page.get_by_role("radio", name="Background").is_checked()
    user.page.focus("#stage")
    press("Enter")
    press("b")
    user.wait()
    assert user.annotations()[0]["point_labels"] == [1, 0, 0]
    user.page.focus("#stage")
    for key in ("r", "ArrowLeft", "Escape", "r", "ArrowLeft", "ArrowDown", "ArrowDown", "r"):
        press(key)
    user.wait()
    assert user.annotations()[0]["prompt_box_xyxy"] == pytest.approx(
        [0.445 * width, 0.48 * height, 0.465 * width, 0.52 * height]
    )
    marks = [user.num_marks()]
    for key in ("Control+z", "Control+z", "Control+Shift+z", "Control+y", "Delete", "Control+z"):
        press(key)
        user.wait()
        marks.append(user.num_marks())
    assert marks == [4, 3, 2, 3, 4, 0, 4]
    assert user.problems == []


def test_a_phone(browser: Any, address: str, tmp_path: Path) -> None:
    """Taps mark, a finger that moves scrolls the page or draws a box, and nothing is wider than the screen."""
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    user = User(browser, address, tmp_path, **phone)
    assert user.page.evaluate("document.documentElement.scrollWidth") == 390
    picture, tools = (user.page.locator(name).bounding_box() for name in ("#stage", ".tools"))
    assert picture["y"] + picture["height"] < tools["y"] < 844
    user.page.touchscreen.tap(*user.at(0.4, 0.5))
    assert "predicted IoU" in user.wait()
    user.page.get_by_text("\u2212 Background").tap()
    user.page.touchscreen.tap(*user.at(0.1, 0.1))
    user.wait()
    assert user.annotations()[0]["point_labels"] == [1, 0]
    finger = user.page.context.new_cdp_session(user.page)

    def drag() -> None:
        for kind, x, y in (("Start", 0.2, 0.2), ("Move", 0.5, 0.5), ("Move", 0.8, 0.7), ("End", 0, 0)):
            position = dict(zip("xy", user.at(x, y), strict=True))
            points = [] if kind == "End" else [position]
            finger.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})

    user.page.get_by_text("\u25a1 Box").tap()
    drag()
    user.wait()
    assert user.annotations()[0]["prompt_box_xyxy"] == pytest.approx(
        [0.2 * 512, 0.2 * 384, 0.8 * 512, 0.7 * 384], abs=3
    )
    user.page.get_by_text("+ Object").tap()
    drag()
    user.wait()
    assert user.num_marks() == 3
    assert user.problems == []


def test_a_photo_that_is_opened_while_the_model_loads(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    page.set_input_files("#file", PHOTOS / "chelsea.jpg")
    page.wait_for_function(LOADED, timeout=120_000)
    page.wait_for_selector("#stage[aria-busy=false]", timeout=60_000)
    with Image.open(PHOTOS / "chelsea.jpg") as photo:
        assert page.evaluate("[photo.width, photo.height]") == list(photo.size)


def test_bad_files(browser: Any, address: str, page_folder: Path, tmp_path: Path) -> None:
    user = User(browser, address, tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    user.page.set_input_files("#file", tmp_path / "broken.jpg")
    user.page.get_by_text("broken.jpg can't be decoded by this browser").wait_for()
    user.page.mouse.click(*user.at(0.5, 0.5))  # the picture before is still there
    user.page.get_by_text("predicted IoU").wait_for()
    missing = browser.new_page()
    missing.route("**/decoder.onnx", lambda route: route.fulfill(status=404))
    missing.goto(address)
    missing.get_by_text("model/decoder.onnx can't be loaded: HTTP status 404.").wait_for()
    missing.set_input_files("#file", PHOTOS / "chelsea.jpg")
    missing.get_by_text("The model is not loaded").wait_for()
    from_a_file = browser.new_page()
    from_a_file.goto((page_folder / "index.html").as_uri())
    assert "python -m http.server" in from_a_file.inner_text("#status")
