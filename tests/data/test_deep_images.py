"""Images of more than 8 bits per value, in files of which Pillow would give the upper 8 alone."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, PpmImagePlugin

from mobilesamv2.data import pixel_values
from mobilesamv2.data.deep_images import uses_its_range
from mobilesamv2.data.images import TooManyPixelsError, read_rgb
from mobilesamv2.data.pixel_values import to_rgb


@pytest.fixture(autouse=True)
def new_run() -> None:
    pixel_values._warn_of_stretching.reset()


def values_of_12_bits(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, (40, 60, channels), dtype=np.uint16)


def png(values: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits per value (H, W, C)."""
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def ppm(values: np.ndarray, greatest: int, as_text: bool) -> bytes:
    """A PGM or PPM of values (H, W, 1 or 3)."""
    magic = {(1, True): 2, (3, True): 3, (1, False): 5, (3, False): 6}[values.shape[2], as_text]
    header = f"P{magic} # a comment\n{values.shape[1]} {values.shape[0]}\n{greatest}\n".encode()
    return header + (" ".join(map(str, values.ravel())).encode() if as_text else values.astype(">u2").tobytes())


def test_grey_with_alpha(caplog: pytest.LogCaptureFixture) -> None:
    """Pillow has no way to swap its bytes; such an image was refused where it is dark."""
    grey = values_of_12_bits(1)
    content = png(np.concatenate([grey, np.full_like(grey, 65535)], -1), 4)
    assert (read_rgb(io.BytesIO(content), "x") == to_rgb(grey)).all()
    assert "x has values from 0 to 4093" in caplog.text
    assert (read_rgb(io.BytesIO(content), "x", value_range=(0, 4095)) == to_rgb(grey, (0, 4095))).all()
    bright = png(np.concatenate([grey * 16, grey], -1), 4)
    assert (read_rgb(io.BytesIO(bright), "x") == grey * 16 // 256).all()


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("greatest", [65535, 4095, 1000])
def test_ppm_is_read_by_all_its_bits(channels: int, as_text: bool, greatest: int) -> None:
    dark = np.minimum(values_of_12_bits(channels), greatest)
    dark = dark if greatest == 65535 else dark // 8
    expected = to_rgb(np.round(dark / greatest * 65535).astype(np.uint16))
    content = ppm(dark, greatest, as_text)
    assert len(np.unique(expected)) > 120
    assert (read_rgb(io.BytesIO(content), "x") == expected).all()
    bright = (values_of_12_bits(channels) / 4095 * greatest).round().astype(np.uint16)
    image = read_rgb(io.BytesIO(ppm(bright, greatest, as_text)), "x")
    assert (image == np.round(bright / greatest * 255)).all()
    if channels == 3:  # Pillow's own, of colours
        assert (image == np.asarray(Image.open(io.BytesIO(ppm(bright, greatest, as_text))))).all()


def test_ppm_needs_no_loop_over_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's takes more than a second per megapixel."""
    monkeypatch.setattr(PpmImagePlugin.PpmDecoder, "decode", lambda *_: pytest.fail("decoded value by value"))
    content = ppm(values_of_12_bits(), 65535, as_text=False)
    assert read_rgb(io.BytesIO(content), "x").max() == 255
    with pytest.raises(ValueError, match=r"x can't be decoded: image file is truncated"):
        read_rgb(io.BytesIO(content[:-1]), "x")


@pytest.mark.parametrize("suffix", [".jp2", ".j2k"])
def test_jpeg_2000_in_colour_is_stretched(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Pillow gives the upper 8 of its bits; of 12 bits in 16 those are 17 values."""
    values, path = values_of_12_bits(), tmp_path / f"scan{suffix}"
    lossless = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
    content = cv2.imencode(".jp2", values[:, :, ::-1], lossless)[1].tobytes()
    path.write_bytes(content if suffix == ".jp2" else content[content.index(b"\xff\x4f\xff\x51") :])
    image = read_rgb(path)
    assert (image.min(), image.max(), len(np.unique(image))) == (0, 255, 17)
    assert np.abs(image - to_rgb(values).astype(int)).max() <= 9
    assert "scan.j" in caplog.text
    assert np.abs(read_rgb(path, value_range=(0, 8190)) - values / 8190 * 255).max() < 5
    path.write_bytes(cv2.imencode(".jp2", values[:, :, ::-1] * 16, lossless)[1].tobytes())
    assert (read_rgb(path) == np.asarray(Image.open(path))).all()
    path.write_bytes(cv2.imencode(".jp2", (values // 256).astype(np.uint8), lossless)[1].tobytes())
    assert read_rgb(path).max() == 15  # a dark image of 8 bits stays dark


def test_what_is_bright_is_a_percentile_of_all_values() -> None:
    draw = np.random.default_rng(0)
    for bright in (0, 1, 3, 4, 11, 12, 13, 200):
        values = draw.integers(0, 60, (40, 100, 3), dtype=np.uint8)
        values.reshape(-1)[:bright] = 200
        assert uses_its_range(Image.fromarray(values)) == (np.percentile(values, 99.9) >= 64)


def test_deep_images_have_a_limit_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("the image was decoded"))
    for content in (png(values_of_12_bits(), 2), ppm(values_of_12_bits(), 65535, False), png(values_of_12_bits(1), 0)):
        with pytest.raises(TooManyPixelsError, match=r"60 x 40 pixels, more than max_pixels=2399 allows"):
            read_rgb(io.BytesIO(content), "x", max_deep_pixels=2399)
