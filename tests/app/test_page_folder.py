"""The folder of a page's uploads and downloads, whose size is bounded."""

import os
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="it comes with Gradio: pip install 'mobilesamv2[app]'")
from mobilesamv2.app.page_folder import FullError, PageFolder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def write(folder: Path, name: str, size: int, time: int) -> None:
    (folder / name).write_bytes(bytes(size))
    os.utime(folder / name, (time, time))


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    folder = PageFolder(tmp_path, max_bytes=100)
    write(tmp_path, "own", 1000, 0)
    folder.keep_present()
    for name, time in (("b", 2), ("a", 3), ("c", 1)):
        write(tmp_path, name, 30, time)
    with folder.room_for(10):
        assert names(tmp_path) == ["a", "b", "c", "own"]
    with folder.room_for(11):
        assert names(tmp_path) == ["a", "b", "own"]
        with folder.room_for(39):
            assert names(tmp_path) == ["a", "own"]  # 30 and the 50 that are expected; b would make 110
            with pytest.raises(FullError), folder.room_for(1):
                pass
            with pytest.raises(ValueError, match="The page is busy"):
                folder.write("late", b"1")
    written = Path(folder.write("d", bytes(50)))
    assert written.read_bytes() == bytes(50)
    assert names(tmp_path) == ["a", "d", "own"]


def test_the_number_of_files_is_bounded(tmp_path: Path) -> None:
    folder = PageFolder(tmp_path, max_files=3)
    for number in range(6):
        write(tmp_path, str(number), 0, number)
    with folder.room_for(1):
        assert names(tmp_path) == ["4", "5"]
