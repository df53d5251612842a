"""Images of more than 8 bits become RGB of 8 bits by one rule."""

import io
import json
import logging
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from mobilesamv2 import SegAny, build_sam
from mobilesamv2.cli.main import main
from mobilesamv2.data import pixel_values
from mobilesamv2.data.images import read_rgb
from mobilesamv2.data.photos import PhotosDataset
from mobilesamv2.data.pixel_values import to_rgb


@pytest.fixture(autouse=True)
def new_run() -> None:
    pixel_values._warn_of_stretching.reset()


def ramp(low: float, high: float, dtype: Any) -> np.ndarray:
    """(50, 50) values that rise evenly."""
    return np.linspace(low, high, 2500).reshape(50, 50).astype(dtype)


@pytest.mark.parametrize(
    ("values", "brightest"),
    [
        (ramp(0, 65535, np.uint16), 255),
        (ramp(0, 1, np.float32), 255),
        (ramp(0, 200, np.float32), 200),
        (ramp(0, 255, np.int32), 255),
        (ramp(0, 32767, np.uint16), 127),
        (ramp(0, 0.5, np.float64), 128),
    ],
)
def test_a_common_range_that_is_used_is_kept(
    values: np.ndarray, brightest: int, caplog: pytest.LogCaptureFixture
) -> None:
    image = to_rgb(values)
    assert (image.dtype, image.shape, image.max(), image.min()) == (np.uint8, (50, 50, 3), brightest, 0)
    assert not caplog.text


@pytest.mark.parametrize(
    "values",
    [
        ramp(0, 4095, np.uint16),  # 12 bits in 16
        ramp(-1024, 3071, np.int16),  # a CT
        ramp(0, 2**31 - 1, np.int32),
        ramp(-3.5, 4.5, np.float32),
        ramp(0, 0.001, np.float32),
    ],
)
def test_what_fits_no_common_range_is_stretched_and_said(values: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    image = to_rgb(values, name="scan 7")
    assert (image.min(), image.max()) == (0, 255)
    assert 126 < image.mean() < 129
    assert "scan 7 has values from" in caplog.text
    assert "value_range sets one range for all" in caplog.text
    to_rgb(values)
    assert len(caplog.records) == 1  # once a run


def test_one_outlier_changes_nothing_else() -> None:
    values = ramp(0, 255, np.uint16)
    expected = to_rgb(values)
    values[0, 0] = 256
    assert (to_rgb(values) == np.where(np.indices((50, 50, 3)).sum(0) - np.arange(3) == 0, 255, expected)).all()
    values[0, 0] = 65535
    assert (to_rgb(values)[1:] == expected[1:]).all()


def test_odd_values() -> None:
    values = ramp(0, 1, np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    assert to_rgb(values)[0, :3, 0].tolist() == [0, 255, 0]
    assert not to_rgb(np.full((4, 4), np.nan)).any()
    assert not to_rgb(np.full((4, 4), 300, np.uint16)).any()
    assert to_rgb(np.array([[True, False]])).tolist() == [[[255] * 3, [0] * 3]]
    few = np.zeros((100, 100), np.uint16)
    few[3, 3] = 3000  # too few for the percentiles
    assert to_rgb(few)[3, 3].tolist() == [255] * 3
    for wrong in (np.zeros((2, 2, 2)), np.zeros((2, 2), complex), np.zeros((0, 4)), np.zeros(5)):
        with pytest.raises(ValueError, match=r"must have shape \(H, W\)"):
            to_rgb(wrong)


def test_one_range_for_all_images() -> None:
    window = to_rgb(np.array([[-1000, -160, 60, 240, 3000]], np.int16), (-160, 240))
    assert window[0, :, 0].tolist() == [0, 0, 140, 255, 255]
    eight = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert (to_rgb(eight, (0, 10)) == eight).all()  # of 8 bits
    mistakes: list[Any] = [(5, 5), (1, 0), (1,), (0, float("inf")), 3, "ab"]
    for wrong in mistakes:
        with pytest.raises(ValueError, match="value_range must be two numbers, the lower one first"):
            to_rgb(eight, wrong)


@pytest.mark.parametrize("dtype", [">u2", np.int16, np.int32, np.float32])
@pytest.mark.parametrize("shape", [(600, 500, 4), (3, 200_000, 1), (200_000, 2, 1)])
def test_large_images_take_little_memory(dtype: Any, shape: tuple[int, ...]) -> None:
    """They are converted in parts; ten times the memory of the values was taken before."""
    values = np.random.default_rng(0).integers(0, 4096, shape).astype(dtype)
    expected = np.round(np.clip(values[..., :3].astype(float) / 4000, 0, 1) * 255)
    tracemalloc.start()
    image = to_rgb(values, (0, 4000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (image == expected).all()
    assert peak < image.nbytes + 12 * 2**20


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colour_of_12_bits_in_16(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    """Pillow reads the upper byte of each colour alone, of which there would be 16 values."""
    values = np.random.default_rng(0).integers(0, 4096, (40, 60, 3), dtype=np.uint16)
    path = tmp_path / f"colour{suffix}"
    cv2.imwrite(str(path), values[:, :, ::-1])
    expected = to_rgb(values)
    assert len(np.unique(expected)) == 256
    assert (read_rgb(path) == expected).all()
    assert (read_rgb(io.BytesIO(path.read_bytes()), "x") == expected).all()
    assert (read_rgb(path, value_range=(0, 4095)) == np.round(values / 4095 * 255)).all()
    cv2.imwrite(str(path), values[:, :, ::-1] * 16)
    assert (read_rgb(path) == values * 16 // 256).all()  # as Pillow has it where the range is used


def test_the_setting_reaches_segment_and_data_sets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(ramp(0, 4095, np.uint16)).save(folder / "a.png")
    Image.fromarray(ramp(-1000, 1000, np.int32)).save(folder / "b.tif")
    means = [PhotosDataset(folder).load_image(i).mean() for i in (0, 1)]
    assert means == pytest.approx([127.5, 127.5], abs=1)
    assert caplog.text.count("value_range sets one range for all") == 1
    windowed = PhotosDataset(folder, value_range=(0, 8190))
    assert [windowed.load_image(i).mean() for i in (0, 1)] == pytest.approx([63.75, 7.8], abs=0.5)
    assert windowed.provenance["value_range"] == [0, 8190]
    assert "value_range" not in PhotosDataset(folder).provenance
    given = ["segment", str(folder), "-o", str(tmp_path / "out"), "--model", "mini_conv", "--sampler", "grid_proposals"]
    given += ["--points-per-side", "1"]
    brightness = []
    for options in ([], ["--value-range", "0", "65535"]):
        main([*given, *options])
        record = json.loads((tmp_path / "out" / "a.json").read_text())
        assert record["made_by"].get("value_range") == ([0, 65535] if options else None)
        brightness.append(np.asarray(Image.open(tmp_path / "out" / "a.png").convert("L")).mean())
    assert brightness[0] > brightness[1] + 30
    with pytest.raises(SystemExit, match="error: value_range must be two numbers, the lower one first"):
        main([*given, "--value-range", "5", "1"])


def test_what_set_image_advises_is_true() -> None:
    segany, deep = SegAny(build_sam("micro_conv")), ramp(0, 4095, np.uint16)
    with pytest.raises(ValueError, match=r"mobilesamv2\.data\.images has to_rgb\(array\)") as refused:
        segany.set_image(deep)
    assert "convert(" not in str(refused.value)  # Pillow's saturates 16 bits
    segany.set_image(to_rgb(deep))


def test_workers_that_are_forked_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    import os

    child = os.fork()
    if child == 0:
        logging.disable()
        to_rgb(ramp(0, 4095, np.uint16))
        os._exit(0)
    os.waitpid(child, 0)
    to_rgb(ramp(0, 4095, np.uint16))
    assert not caplog.text
