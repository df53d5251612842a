"""Finding image files in folders, and limits of what is decoded."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilesamv2.cli.main import main
from mobilesamv2.data.images import TooManyPixelsError, find_images, read_rgb, walk_files


def test_formats_of_cameras_phones_and_browsers_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = Image.new("RGB", (8, 6), "red")
    for suffix in (".jfif", ".gif", ".jp2", ".JPG", ".avif", ".jpx", ".jpf", ".mpo", ".pnm", ".tga"):
        image.save(tmp_path / f"a{suffix}")
    for name in ("._a.JPG", "b.heic", "c.CR2", "d.nef", "e.jxl", "f.dcm", "g.exr", "notes.txt"):
        (tmp_path / name).write_bytes(bytes(9))
    found = find_images([tmp_path])
    readable = ["JPG", "avif", "gif", "jfif", "jp2", "jpf", "jpx", "mpo", "pnm", "tga"]
    assert [path.name for path in found] == [f"a.{suffix}" for suffix in readable]
    assert all(read_rgb(path)[0, 0, 0] > 240 for path in found)
    passed_over = "1 .cr2, 1 .dcm, 1 .exr, 1 .heic, 1 .jxl, 1 .nef."
    assert f"Passed over, in formats that are not read here: {passed_over}" in caplog.text
    assert "pip install pillow-heif" in caplog.text
    assert find_images([f"{tmp_path}/*a.JPG"]) == [tmp_path / "a.JPG"]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.dng").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no image at .*raw\. Of a folder, \.jpg.* Passed over, .* 1 \.dng"):
        find_images([tmp_path / "raw"])


def test_folders_in_folders_are_walked_once_each(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/c d/3.jpg", "1.jpg", ".hidden/4.jpg", "b/._2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "other").symlink_to(tmp_path / "b")
    assert [str(path.relative_to(tmp_path)) for path in walk_files(tmp_path)] == ["1.jpg", "b/2.jpg", "b/c d/3.jpg"]


def blank_png(side: int) -> bytes:
    """A PNG of one bit per pixel: 17 megapixels of side 4,096 are 2 KB."""
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_the_limit_of_pixels_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = blank_png(4096)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # Pillow's own refuses this image
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(content))
    assert read_rgb(io.BytesIO(content), "big").shape == (4096, 4096, 3)
    assert Image.MAX_IMAGE_PIXELS == 1_000_000
    with pytest.raises(TooManyPixelsError, match=r"big can't be decoded: it has 4096 x 4096 pixels, more than max_pix"):
        read_rgb(io.BytesIO(content), "big", max_pixels=4096 * 4096 - 1)
    with pytest.raises(ValueError, match="max_pixels must be a positive number"):
        read_rgb(io.BytesIO(content), "big", max_pixels=0)
    Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(tmp_path / "a.png")
    given = ["--model", "mini_conv", "--sampler", "grid_proposals", "--points-per-side", "1", "--max-pixels", "599"]
    with pytest.raises(SystemExit, match=r"1 of 1 images were skipped\. .*a\.png .* 20 x 30 pixels, more than max_pix"):
        main(["segment", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), *given])
