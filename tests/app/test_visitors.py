"""Requests of visitors, as no browser would send them too: files, sessions, the queue."""

import io
import json
import runpy
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import ROOT

from mobilesamv2.app.demo import DemoApp
from mobilesamv2.app.session import NO_PHOTO

httpx = pytest.importorskip("httpx", reason="it comes with Gradio: pip install 'mobilesamv2[app]'")
pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'mobilesamv2[app]'")
VISITORS = runpy.run_path(str(ROOT / "benchmarks" / "page_visitors.py"))
Visitor = VISITORS["Visitor"]
SECRET = "the server's own"


@pytest.fixture(scope="module")
def address(demo: DemoApp) -> Iterator[str]:
    from mobilesamv2.app.page import serving

    with serving(demo) as page:
        yield page.local_url


def upload(visitor: Any, name: str, content: bytes) -> str:
    """Upload a file as a browser does, and return its path on the server."""
    files = {"files": (name, content)}
    [path] = visitor.http.post(f"{visitor.address}/gradio_api/upload", files=files).raise_for_status().json()
    return path


def file_data(path: str) -> dict[str, Any]:
    return {"path": path, "orig_name": "photo.png", "meta": {"_type": "gradio.FileData"}}


def download(visitor: Any, button: str) -> bytes:
    """Press a button, and fetch the file that it writes."""
    [output] = visitor.send("click", button)
    return fetch(visitor, output["path"]).content


def fetch(visitor: Any, path: str) -> Any:
    return visitor.http.get(f"{visitor.address}/gradio_api/file={path}")


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_masks_are_the_visitors_own(address: str, photo: np.ndarray) -> None:
    first, second = Visitor(address), Visitor(address)
    assert first.open_example(0)["photo"]["width"] == 451
    assert second.click(0.5, 0.5)["text"] == NO_PHOTO
    path = upload(second, "mine.png", png(photo))
    shown = second.send("upload", "choose-photo", [file_data(path)])[1]
    assert shown["photo"]["width"] == 130
    assert first.click(0.5, 0.5)["kind"] == second.click(0.2, 0.3)["kind"] == "masks"
    masks = [np.asarray(Image.open(io.BytesIO(download(each, "\u2193 Mask (PNG)")))) for each in (first, second)]
    assert [mask.shape for mask in masks] == [(300, 451), (90, 130)]
    content = json.loads(download(second, "\u2193 COCO (JSON)"))
    assert content["images"][0]["file_name"] == "mine.png"
    assert content["annotations"][0]["area"] == masks[1].sum()
    cutout = Image.open(io.BytesIO(download(second, "\u2193 Cut-out (PNG)")))
    assert np.asarray(cutout)[..., 3].astype(bool).sum() == masks[1].sum()


def test_downloads_need_a_mask(address: str) -> None:
    visitor = Visitor(address)
    with pytest.raises(RuntimeError, match="Open a photo first"):
        visitor.send("click", "\u2193 Mask (PNG)")
    visitor.open_example()
    with pytest.raises(RuntimeError, match="There is no mask yet"):
        visitor.send("click", "\u2193 Cut-out (PNG)")
    with pytest.raises(RuntimeError, match="There are no masks here yet"):
        visitor.send("click", "\u2193 B: COCO (JSON)")


@pytest.mark.parametrize("how", ["{}", "../../../../../../..{}", "%2e%2e/%2e%2e/%2e%2e/%2e%2e{}", "file://{}", "//{}"])
def test_no_file_of_the_server_is_sent(address: str, tmp_path: Path, how: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    visitor = Visitor(address)
    for path in (secret, Path("/etc/passwd"), ROOT / "pyproject.toml", ROOT / "conf" / "train.yaml"):
        answer = fetch(visitor, how.format(path))
        assert answer.status_code in (400, 403, 404), (answer.status_code, path)
        assert SECRET not in answer.text
        assert "root:" not in answer.text


@pytest.mark.parametrize("how", ["{}", "../../../../../../..{}", "file://{}"])
def test_no_file_of_the_server_is_opened(address: str, tmp_path: Path, photo: np.ndarray, how: str) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(photo))
    visitor = Visitor(address)
    for data in (file_data(how.format(secret)), {"path": how.format(secret)}, how.format(secret)):
        try:
            shown = visitor.send("upload", "choose-photo", [data])[1]
        except RuntimeError:
            continue
        assert shown["photo"] is None
    assert visitor.click(0.5, 0.5)["kind"] == "error"


def test_an_upload_stays_in_the_pages_folder(address: str, demo: DemoApp, photo: np.ndarray, tmp_path: Path) -> None:
    visitor = Visitor(address)
    written = {
        Path(upload(visitor, name, png(photo))) for name in ("a.png", "../../../b.png", "/tmp/c.png", "..\\d.png")
    }
    [folder] = {path.parents[1] for path in written}
    assert folder.name.startswith("mobilesamv2-app-")
    assert (folder.stat().st_mode & 0o077) == 0  # no other user of this computer reads it
    assert all(path.resolve().is_relative_to(folder) for path in written)


def test_odd_requests_are_answered(address: str) -> None:
    visitor = Visitor(address)
    visitor.open_example()
    for event_data in (None, {}, [], "x", {"interactions": {"points": [[2, 2, 1]]}}, {"interactions": {"box": [1]}}):
        [answer] = visitor.send("prompt", "canvas", event_data=event_data)
        assert answer["kind"] == "error"
    for number in (-1, 99, "two", None, {"path": "/etc/passwd"}):
        try:
            visitor.send("click", "examples", [number])
        except RuntimeError:
            continue
    values = visitor.values(visitor.function("click", "Segment everything"))
    with pytest.raises(RuntimeError):
        visitor.send("click", "Segment everything", [10**6 if value == 32 else value for value in values])
    assert visitor.open_example()["photo"]["width"] == 451  # and the page lives on


def test_a_broken_photo_closes_the_one_before(address: str) -> None:
    visitor = Visitor(address)
    visitor.open_example()
    shown = visitor.send("upload", "choose-photo", [file_data(upload(visitor, "broken.png", b"not a photo"))])[1]
    assert shown["photo"] is None
    assert visitor.click(0.5, 0.5)["kind"] == "error"


def test_many_visitors_at_once(address: str) -> None:
    waits, failures = VISITORS["run"](address, visitors=12, clicks=2)
    assert failures == []
    assert len(waits) == 24


def test_the_queue_has_a_limit(demo: DemoApp, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilesamv2.app import page as page_module

    monkeypatch.setattr(page_module, "MAX_WAITING", 3)
    refused: list[str] = []

    def come(visitor: Any) -> None:
        try:
            visitor.open_example()
        except RuntimeError as error:
            refused.append(str(error))

    with page_module.serving(demo) as page:
        threads = [threading.Thread(target=come, args=(Visitor(page.local_url),)) for _ in range(8)]
        with demo.lock:  # the first request is held up, and three wait behind it
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + 30
            while len(refused) < 4 and time.monotonic() < deadline:
                time.sleep(0.05)
        for thread in threads:
            thread.join()
    assert len(refused) == 4
    assert all("Queue is full" in text for text in refused)


def test_nobody_goes_past_the_queue(address: str) -> None:
    visitor = Visitor(address)
    visitor.open_example()
    for event, component in (("prompt", "canvas"), ("click", "Segment everything"), ("click", "examples")):
        number = visitor.function(event, component)
        body = {"data": visitor.values(number), "fn_index": number, "session_hash": visitor.session}
        for path in ("run/predict", "api/predict"):
            assert visitor.http.post(f"{visitor.address}/gradio_api/{path}", json=body).status_code in (403, 404)


def test_the_last_sessions_are_kept(demo: DemoApp, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilesamv2.app import page as page_module

    monkeypatch.setattr(page_module, "MAX_SESSIONS", 2)
    with page_module.serving(demo) as page:
        visitors = [Visitor(page.local_url) for _ in range(3)]
        for visitor in visitors:
            visitor.open_example()
        kinds = [visitor.click(0.5, 0.5)["kind"] for visitor in reversed(visitors)]
    assert kinds == ["masks", "masks", "error"]


UPLOAD_BYTES = 400 * 600 * 3 + 10_000
"""Of a PNG of noise, which can't be compressed, as a request."""


def noise(seed: int) -> bytes:
    return png(np.random.default_rng(seed).integers(0, 256, (400, 600, 3), np.uint8))


@pytest.fixture
def small(demo: DemoApp, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A page whose folder has room for three uploads."""
    from mobilesamv2.app import page as page_module
    from mobilesamv2.app.page_folder import PageFolder

    monkeypatch.setattr(page_module, "MAX_UPLOAD_BYTES", UPLOAD_BYTES)
    monkeypatch.setattr(page_module, "PageFolder", lambda path: PageFolder(path, max_bytes=3 * UPLOAD_BYTES))
    with page_module.serving(demo) as page:
        yield page.local_url


def test_many_uploads_take_bounded_space(small: str) -> None:
    first, second = Visitor(small), Visitor(small)
    path = Path(upload(first, "first.png", noise(0)))
    examples = {each for each in path.parents[1].rglob("*") if each.is_file()} - {path}
    first.send("upload", "choose-photo", [file_data(str(path))])
    assert first.click(0.5, 0.5)["kind"] == "masks"
    for number in range(1, 8):
        last = Path(upload(second, f"{number}.png", noise(number)))
        files = {each for each in last.parents[1].rglob("*") if each.is_file()} - examples
        assert sum(each.stat().st_size for each in files) <= 3 * UPLOAD_BYTES
    assert last.is_file()
    assert not path.is_file()
    assert first.click(0.2, 0.2)["kind"] == "masks"  # the photo that is open needs no file
    assert all(each.is_file() for each in examples)


def test_uploads_that_are_refused(small: str) -> None:
    visitor = Visitor(small)
    address = f"{visitor.address}/gradio_api/upload"
    several = [("files", (f"{number}.png", noise(number))) for number in range(2)]
    assert visitor.http.post(address, files=several).status_code == 413
    form = {"content-type": "multipart/form-data; boundary=x"}
    without_size = visitor.http.post(address, content=iter([b"x"]), headers=form)
    assert (without_size.status_code, without_size.text) == (411, "An upload must state its size.")
