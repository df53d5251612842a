"""The folder of a page's uploads and downloads, whose size is bounded."""

import asyncio
import os
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="it comes with Gradio: pip install 'mobilesamv2[app]'")
from mobilesamv2.app.page_folder import EMPTY_S, FullError, PageFolder, UploadLimit

PATIENCE_S = 10.0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def write(folder: Path, name: str, size: int, time: int) -> None:
    (folder / name).write_bytes(bytes(size))
    os.utime(folder / name, (time, time))


def upload(limit: UploadLimit, num_bytes: int) -> Any:
    """Send the head of an upload; returns the statuses that were answered once it is awaited."""
    statuses = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def answer() -> list[int]:
        headers = [(b"content-length", str(num_bytes).encode())]
        scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": headers}
        await limit(scope, receive, send)
        return statuses

    return answer()


async def takes_all(scope: Any, receive: Any, send: Any) -> None:
    """The page behind the limit."""
    await send({"type": "http.response.start", "status": 200, "headers": []})


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    folder = PageFolder(tmp_path, max_bytes=100)
    write(tmp_path, "own", 1000, 0)
    folder.keep_present()
    for name, time_ in (("b", 2), ("a", 3), ("c", 1)):
        write(tmp_path, name, 30, time_)
    with folder.reserve(10):
        folder.make_room()
        assert names(tmp_path) == ["a", "b", "c", "own"]
    with folder.reserve(11):
        folder.make_room()
        assert names(tmp_path) == ["a", "b", "own"]
        with folder.reserve(39):
            folder.make_room()
            assert names(tmp_path) == ["a", "own"]  # 30 and the 50 that are expected; b would make 110
    written = Path(folder.write("d", bytes(50)))
    assert written.read_bytes() == bytes(50)
    assert names(tmp_path) == ["a", "d", "own"]


def test_the_number_of_files_is_bounded(tmp_path: Path) -> None:
    folder = PageFolder(tmp_path, max_files=3)
    for number in range(6):
        write(tmp_path, str(number), 0, number)
    folder.make_room()
    assert names(tmp_path) == ["4", "5"]


def run(work: Coroutine[Any, Any, list[int]]) -> list[int]:
    """In a thread, since the browser of other tests leaves this one a running loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def test_slow_uploads_keep_no_download_waiting(tmp_path: Path) -> None:
    folder = PageFolder(tmp_path, max_bytes=100)
    limit = UploadLimit(takes_all, folder, max_bytes=50)
    with folder.reserve(25), folder.reserve(25):
        for content in (bytes(30), bytes(40)):
            assert Path(folder.write("mask.png", content)).read_bytes() == content
        assert [path.stat().st_size for path in tmp_path.rglob("mask.png")] == [40]  # of the 50 that are not reserved
        assert run(upload(limit, 1)) == [503]
        with pytest.raises(FullError), folder.reserve(1):
            pass
    assert run(upload(limit, 1)) == [200]


def test_an_upload_that_stalls_gives_its_room_back(tmp_path: Path) -> None:
    async def waits_for_all(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    folder = PageFolder(tmp_path, max_bytes=100)
    assert run(upload(UploadLimit(waits_for_all, folder, max_bytes=50, max_seconds=0.05), 50)) == [408]
    with folder.reserve(50):
        pass


def test_no_folder_is_left_of_files_that_made_room(tmp_path: Path) -> None:
    folder = PageFolder(tmp_path, max_files=5)
    for number in range(40):
        folder.write(f"{number}.png", b"1")
    assert len(list(tmp_path.iterdir())) == 5
    folder.max_bytes = 0
    folder.make_room()
    os.utime(tmp_path, (1, 1))
    folder.make_room()
    assert not list(tmp_path.iterdir())  # and it is still there


def test_folders_that_gradio_leaves_empty_are_removed(tmp_path: Path) -> None:
    long_ago = time.time() - 2 * EMPTY_S
    for name in ("old", "new", "outer/inner", "used"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "used", "file", 1, 1)
    for name in ("old", "outer/inner", "used", ""):
        os.utime(tmp_path / name, (long_ago, long_ago))
    folder = PageFolder(tmp_path)
    folder.make_room()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "outer", "used"]
    os.utime(tmp_path / "outer", (long_ago, long_ago))  # it was changed just now
    folder.make_room()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "used"]


def test_the_page_answers_while_room_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "old", 90, 1)
    deleting, go_on = threading.Event(), threading.Event()

    def delete_slowly(path: Path, missing_ok: bool = False) -> None:
        deleting.set()
        assert go_on.wait(PATIENCE_S)
        os.unlink(path)

    async def page() -> list[int]:
        answer = asyncio.create_task(upload(limit, 20))
        deadline = time.monotonic() + PATIENCE_S
        while not deleting.is_set() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        with folder.reserve(1):  # takes no lock that is held while files are deleted
            go_on.set()
        return await answer

    folder = PageFolder(tmp_path, max_bytes=100)
    limit = UploadLimit(takes_all, folder, max_bytes=50)
    monkeypatch.setattr(Path, "unlink", delete_slowly)
    assert run(page()) == [200]
    assert names(tmp_path) == []
