"""Photos of all kinds, sizes and bytes."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.corrupt_inputs import FUZZ, PHOTOS, as_file, outcome, wide
from support.runs import FAST

from mobilesamv2 import SegAny, SegEvery, build_sam, masks
from mobilesamv2.cli.main import main
from mobilesamv2.data.images import read_rgb
from mobilesamv2.prompts import GridProposals


@settings(FUZZ, max_examples=600)
@given(st.sampled_from(sorted(PHOTOS)), st.data())
@pytest.mark.filterwarnings("ignore")
def test_bytes_of_a_photo_may_be_anything(name: str, data: st.DataObject) -> None:
    content = bytearray(PHOTOS[name])
    for _ in range(data.draw(st.sampled_from([1, 2, 4]))):
        last = data.draw(st.sampled_from([60, len(content)]))
        content[data.draw(st.integers(0, min(last, len(content)) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    image, said = outcome(lambda: read_rgb(io.BytesIO(bytes(content)), name, upright="always"))
    assert said.startswith(f"{name} can't be decoded: ") or (image.dtype == np.uint8 and image.ndim == 3)


def bomb() -> bytes:
    """A PNG of a hundred bytes whose header promises 10 GB."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def broken_exif() -> bytes:
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\xff\xff\xff\xff\x06\x00"
    return as_file(Image.new("RGB", (13, 9)), "JPEG", exif=exif)


def test_segment_takes_every_kind_of_photo_and_names_what_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in (PHOTOS | {"exif.jpg": broken_exif(), "tall 貓.png": as_file(wide(), "PNG")}).items():
        (folder / name).write_bytes(content)
    strange = {"bomb.png": bomb(), "heic.jpg": b"\x00\x00\x00\x18ftypheic" + bytes(99), "empty.webp": b""}
    for name, content in strange.items():
        (folder / name).write_bytes(content)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        main(["segment", str(folder), "-o", str(out), *FAST])
    message = str(stopped.value)
    assert message.startswith("error: 3 of 18 images were skipped.")
    for name in strange:
        assert f"{name} can't be decoded" in message
    written = json.loads((out / "masks.json").read_text())
    assert len(written["images"]) == 15
    sizes = {(image["height"], image["width"]) for image in written["images"]}
    assert sizes == {(9, 13), (50, 10_000)}


@pytest.mark.parametrize("size", [(1, 1), (50, 10_000), (10_000, 3)])
def test_segany_and_segevery_on_extreme_sizes(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    sam = build_sam("micro_conv")
    segany = SegAny(sam)
    segany.set_image(image)
    assert segany.predict(points=[[[0, 0]]]).masks.shape == (1, 3, *size)
    for rle in SegEvery(sam, GridProposals(points_per_side=2))(image).rles:
        assert masks.decode(rle).shape == size
