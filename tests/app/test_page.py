"""The page in Chromium, by mouse, keyboard and touch; it leaves screenshots."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilesamv2.app.demo import DemoApp

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'mobilesamv2[app]'")

HEAVY_MS = 30_000
"""On a busy machine."""


class Page:
    """One browser's page."""

    def __init__(self, page: Any, folder: Path) -> None:
        self.page = page
        self.folder = folder
        self.requested: list[str] = []
        self.problems: list[str] = []
        page.set_default_timeout(HEAVY_MS)
        page.on("request", lambda request: self.requested.append(request.url))
        page.on("pageerror", lambda error: self.problems.append(str(error)))

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.page.wait_for_selector(".prompting .empty")

    def choose(self, file: Path) -> None:
        self.page.set_input_files("input[type=file]", file)
        self.page.wait_for_selector("#canvas .frame")

    def at(self, x: float, y: float) -> tuple[float, float]:
        box = self.page.locator("#canvas .frame").first.bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def click(self, x: float, y: float, **options: Any) -> None:
        self.page.mouse.move(*self.at(x, y))
        self.page.mouse.click(*self.at(x, y), **options)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.page.mouse.move(*self.at(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(*end), steps=4)
        self.page.mouse.up()

    def settled(self) -> str:
        """Wait for the answer, and return the address of the mask that is shown; empty without one."""
        self.page.wait_for_selector("#canvas .panes[aria-busy=false]")
        mask = self.page.locator("#canvas .mask").first
        return mask.get_attribute("src") or ""

    def marks(self) -> tuple[int, int, int]:
        """Return the number of object points, background points and boxes."""
        count = lambda selector: self.page.locator(f"#canvas .frame:first-child {selector}").count()  # noqa: E731
        return count(".point:not(.background)"), count(".point.background"), count(".marks .box")

    def says(self, text: str) -> None:
        self.page.locator("#canvas .line", has_text=text).wait_for()

    def download(self, button: str) -> Path:
        with self.page.expect_download() as started:
            self.page.get_by_role("button", name=button).click()
        path = self.folder / started.value.suggested_filename
        started.value.save_as(path)
        return path

    def shoot(self, name: str) -> None:
        self.page.screenshot(path=self.folder / f"{name}.png", full_page=True)


@pytest.fixture(scope="module")
def address(demo: DemoApp) -> Iterator[str]:
    from mobilesamv2.app.page import serving

    two_models = replace(demo, models={**demo.models, "mini_conv_again": demo.models["mini_conv"]})
    with serving(two_models) as page:
        yield page.local_url


@pytest.fixture
def desktop(browser: Any, address: str, tmp_path: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = Page(context.new_page(), tmp_path)
    page.open(address)
    yield page
    context.close()
    print(f"screenshots: {tmp_path}")
    assert page.problems == []
    assert not {url for url in page.requested if not url.startswith((address, "data:", "blob:"))}  # no other server


@pytest.fixture
def phone(browser: Any, address: str, tmp_path: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = Page(context.new_page(), tmp_path)
    page.open(address)
    yield page
    context.close()
    print(f"screenshots: {tmp_path}")
    assert page.problems == []


@pytest.fixture
def picture(photo: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.kron(photo, np.ones((4, 4, 1), np.uint8))).save(path)
    return path


def test_by_mouse(desktop: Page, picture: Path) -> None:
    desktop.choose(picture)
    box = desktop.page.locator("#canvas .frame").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(130 / 90, rel=0.01)
    desktop.page.mouse.move(*desktop.at(0.25, 0.5))
    preview = desktop.page.wait_for_selector("#canvas .preview:not([hidden])").get_attribute("src")
    assert desktop.marks() == (0, 0, 0)
    desktop.click(0.25, 0.5)
    assert desktop.settled() == preview  # the mask that a click would take, and takes
    desktop.says("predicted IoU")
    style = desktop.page.get_attribute("#canvas .point", "style")
    left, top = (float(part.split(":")[1].strip(" %")) for part in style.strip(";").split(";"))
    assert (left, top) == pytest.approx((25, 50), abs=0.5)

    desktop.drag((0.2, 0.2), (0.7, 0.8))
    with_box = desktop.settled()
    assert with_box not in ("", preview)
    desktop.click(0.6, 0.3, button="right")
    desktop.settled()
    assert desktop.marks() == (1, 1, 1)
    desktop.shoot("points and box")
    desktop.page.get_by_role("button", name="Undo").click()
    assert desktop.settled() == with_box
    assert desktop.marks() == (1, 0, 1)
    desktop.page.get_by_role("button", name="Redo").click()
    desktop.settled()
    assert desktop.marks() == (1, 1, 1)
    desktop.page.get_by_role("button", name="Clear").click()
    assert desktop.settled() == ""
    assert desktop.marks() == (0, 0, 0)
    desktop.page.get_by_role("radio", name="Background").click()
    desktop.click(0.1, 0.1)
    desktop.settled()
    assert desktop.marks() == (0, 1, 0)


def test_by_keyboard(desktop: Page, picture: Path) -> None:
    desktop.choose(picture)
    keys = desktop.page.keyboard
    desktop.page.locator("#canvas .panes").focus()
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowDown", "Enter"):
        keys.press(key)
    first = desktop.settled()
    assert first
    style = desktop.page.get_attribute("#canvas .point", "style")
    assert "left: 54%" in style
    assert "top: 50.5%" in style
    keys.press("ArrowLeft")
    keys.press("Shift+Enter")
    desktop.settled()
    assert desktop.marks() == (1, 1, 0)
    keys.press("b")
    assert desktop.page.get_by_role("radio", name="Background").get_attribute("aria-checked") == "true"
    keys.press("Enter")
    desktop.settled()
    assert desktop.marks() == (1, 2, 0)
    keys.press("b")
    keys.press("r")
    for key in ("ArrowLeft",) * 4 + ("ArrowUp",) * 5:
        keys.press(key)
    desktop.shoot("keyboard")
    keys.press("r")
    desktop.settled()
    assert desktop.marks() == (1, 2, 1)
    for marks in ((1, 2, 0), (1, 1, 0), (1, 0, 0)):
        keys.press("Control+z")
        desktop.settled()
        assert desktop.marks() == marks
    assert desktop.settled() == first
    keys.press("Control+Shift+z")
    desktop.settled()
    keys.press("Control+y")
    desktop.settled()
    assert desktop.marks() == (1, 2, 0)
    keys.press("Delete")
    assert desktop.settled() == ""
    keys.press("Control+z")
    desktop.settled()
    assert desktop.marks() == (1, 2, 0)  # clearing is undone too


def test_by_touch(phone: Page, picture: Path) -> None:
    phone.choose(picture)
    assert phone.page.locator("img:visible").count() == 1 + 3  # the photo once, beside the examples
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    frame = phone.page.locator("#canvas .frame").bounding_box()
    assert frame["y"] < 200
    assert frame["width"] > 330
    others = ["#choose-photo", "#examples", "#canvas .tools", "#downloads"]
    assert all(phone.page.locator(each).bounding_box()["y"] > frame["y"] for each in others)
    phone.page.touchscreen.tap(*phone.at(0.25, 0.5))
    point = phone.settled()
    assert point
    assert phone.marks() == (1, 0, 0)
    phone.page.get_by_role("radio", name="Background").tap()
    phone.page.touchscreen.tap(*phone.at(0.75, 0.5))
    phone.settled()
    assert phone.marks() == (1, 1, 0)
    phone.page.get_by_role("radio", name="Box").tap()
    touch_drag(phone, (0.2, 0.2), (0.7, 0.8))
    phone.settled()
    assert phone.marks() == (1, 1, 1)
    phone.shoot("phone")
    for _ in range(2):
        phone.page.get_by_role("button", name="Undo").tap()
        phone.settled()
    assert phone.settled() == point
    phone.page.get_by_role("radio", name="Object").tap()
    before = phone.page.evaluate("scrollY")
    touch_drag(phone, (0.5, 0.9), (0.5, 0.2))  # scrolls the page
    assert phone.marks() == (1, 0, 0)
    assert phone.page.evaluate("scrollY") > before


def touch_drag(phone: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag a finger, which playwright has no call for."""
    (x0, y0), (x1, y1) = phone.at(*start), phone.at(*end)
    session = phone.page.context.new_cdp_session(phone.page)
    steps = [(x0 + (x1 - x0) * i / 5, y0 + (y1 - y0) * i / 5) for i in range(6)]
    for number, (x, y) in enumerate(steps):
        kind = "touchMove" if number else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        phone.page.wait_for_timeout(30)
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_downloads(desktop: Page, picture: Path) -> None:
    desktop.page.get_by_role("button", name="Mask (PNG)").click()
    desktop.page.get_by_text("Open a photo first").first.wait_for()
    desktop.choose(picture)
    desktop.click(0.5, 0.5)
    desktop.settled()
    mask = np.asarray(Image.open(desktop.download("Mask (PNG)")))
    assert mask.shape == (360, 520)
    cutout = np.asarray(Image.open(desktop.download("Cut-out (PNG)")))
    assert (cutout[..., 3] > 0).sum() == mask.sum()
    saved = desktop.download("COCO (JSON)")
    assert saved.name == "photo_coco.json"
    content = json.loads(saved.read_text())
    assert content["annotations"][0]["area"] == mask.sum()
    assert content["annotations"][0]["point_coords"][0] == pytest.approx([260, 180], abs=2)


def test_photos_are_dropped_and_pasted_and_chosen(desktop: Page, picture: Path, tmp_path: Path) -> None:
    desktop.page.locator("#examples button").nth(1).click()
    desktop.says("600 x 400 pixels")
    give = """([selector, kind, base64]) => {
      const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
      const data = new DataTransfer();
      data.items.add(new File([bytes], 'given.png', { type: 'image/png' }));
      const event = kind === 'drop' ? new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })
        : new ClipboardEvent('paste', { clipboardData: data, bubbles: true });
      document.querySelector(selector).dispatchEvent(event);
    }"""
    import base64

    small = tmp_path / "small.png"
    Image.open(picture).resize((260, 180)).save(small)
    for selector, kind, file, size in (
        ("#canvas .frame", "drop", picture, "520 x 360"),
        ("body", "paste", small, "260 x 180"),
    ):
        desktop.page.evaluate(give, [selector, kind, base64.b64encode(file.read_bytes()).decode()])
        desktop.says(f"{size} pixels")
    desktop.page.locator("#examples button").nth(2).click()
    desktop.says("512 x 384 pixels")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a photo")
    desktop.page.set_input_files("input[type=file]", broken)
    desktop.page.get_by_text("can't be decoded").wait_for()
    desktop.page.wait_for_selector(".prompting .empty")


def test_everything_side_by_side(desktop: Page) -> None:
    desktop.page.locator("#examples button").nth(2).click()
    desktop.says("512 x 384 pixels")
    desktop.page.get_by_role("tab", name="Everything").click()
    desktop.page.wait_for_selector("#everything-A img")
    desktop.page.get_by_role("button", name="Segment everything").click()
    desktop.page.get_by_text("A: mini_conv, grid").first.wait_for()
    desktop.shoot("progress")
    desktop.page.wait_for_selector("#everything-B img", timeout=4 * HEAVY_MS)
    times = desktop.page.inner_text("#times")
    assert "mask decoder, ms" in times
    assert "1,024" in times
    assert "B: mini_conv, boxes" in times
    desktop.shoot("everything")
    content = json.loads(desktop.download("B: COCO (JSON)").read_text())
    assert len(content["annotations"]) > 1
    assert content["info"]["made_by"]["sampler"] == "ObjectAware"


def test_stop(desktop: Page) -> None:
    desktop.page.locator("#examples button").nth(2).click()
    desktop.says("512 x 384 pixels")
    desktop.page.get_by_role("tab", name="Everything").click()
    desktop.page.get_by_text("A: settings").click()
    desktop.page.get_by_label("number input for Points per side").first.fill("64")
    desktop.page.keyboard.press("Tab")
    desktop.page.get_by_role("button", name="Segment everything").click()
    desktop.page.get_by_text("/4.1k prompts").first.wait_for()
    desktop.page.get_by_role("button", name="Stop").click()
    desktop.page.wait_for_selector("#everything-A .progress-level", state="detached")
    assert desktop.page.locator("#everything-A img").count() == 0
    # the model is free again, for another run
    desktop.page.get_by_label("number input for Points per side").first.fill("4")
    desktop.page.keyboard.press("Tab")
    desktop.page.get_by_role("button", name="Segment everything").click()
    desktop.page.wait_for_selector("#everything-B img")
    assert "16" in desktop.page.inner_text("#times")


def test_two_models_side_by_side(desktop: Page, picture: Path) -> None:
    desktop.choose(picture)
    desktop.click(0.5, 0.5)
    desktop.settled()
    desktop.page.get_by_label("Compare with").click()
    desktop.page.get_by_role("option", name="mini_conv_again").click()
    desktop.page.wait_for_selector("#canvas .panes[data-count='2']")
    masks = desktop.page.locator("#canvas .mask")
    assert masks.nth(0).get_attribute("src") == masks.nth(1).get_attribute("src")
    captions = desktop.page.locator("#canvas figcaption")
    assert captions.nth(0).inner_text().startswith("mini_conv: Mask of")
    assert captions.nth(1).inner_text().startswith("mini_conv_again: Mask of")
    second = desktop.page.locator("#canvas .frame").nth(1).bounding_box()
    desktop.page.mouse.click(second["x"] + 20, second["y"] + 20)
    desktop.settled()
    assert desktop.page.locator("#canvas .point").count() == 4  # two points, on both
    desktop.shoot("two models")


def test_two_browsers(browser: Any, address: str, desktop: Page, picture: Path, tmp_path: Path) -> None:
    desktop.choose(picture)
    desktop.click(0.5, 0.5)
    mine = desktop.settled()
    other = Page(browser.new_context().new_page(), tmp_path)
    other.open(address)
    other.page.get_by_role("button", name="Mask (PNG)").click()
    other.page.get_by_text("Open a photo first").first.wait_for()
    other.page.locator("#examples button").nth(0).click()
    other.says("451 x 300 pixels")
    other.click(0.4, 0.4)
    assert other.settled() not in ("", mine)
    assert desktop.settled() == mine
    assert np.asarray(Image.open(desktop.download("Mask (PNG)"))).shape == (360, 520)
    other.page.context.close()
