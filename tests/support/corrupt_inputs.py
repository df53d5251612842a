"""What the tests of hard cases share: how they draw, and files and values as nobody meant them."""

import copy
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def outcome(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call gives, or the sentence that it is refused with; any other error is the test's failure."""
    try:
        return call(), ""
    except (ValueError, FileNotFoundError) as error:
        return None, str(error)


SQUARE = [[2, 2, 6, 2, 6, 6, 2, 6]]
BROKEN_RLES = [{"size": [8, 10], "counts": [81]}, {"size": 8, "counts": ""}, {"size": [1e9, 1e9], "counts": [1e18]}]
NUMBERS = [True, -1, 0, 2**40, 10**400, 0.5, float("nan"), float("inf"), -1e308, 1.7e308]
JUNK_VALUES = [*NUMBERS, *BROKEN_RLES, None, "", "ä\x00", [], [[]], [None], [[1, 2]], {}]
JUNK = st.sampled_from(JUNK_VALUES)


def coco_content() -> dict[str, Any]:
    """A sound file of one image with two objects."""
    return {
        "images": [{"id": 5, "height": 8, "width": 10, "file_name": "a.png", "coco_url": "http://host/x/a.png"}],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": 3, "segmentation": SQUARE, "area": 16, "iscrowd": 0} for i in (1, 2)
        ],
        "categories": [{"id": 3, "name": "ü", "frequency": "f"}],
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all that lies in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, part in items for deeper in places(part, (*path, key)))]


def spoilt(content: Any, path: tuple[Any, ...], junk: Any, drop: bool) -> Any:
    """The content with something else at a path, or nothing."""
    if not path:
        return junk
    inner = content = copy.deepcopy(content)
    for key in path[:-1]:
        inner = inner[key]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = junk
    return content


RESULTS = [
    {"image_id": 5, "category_id": 3, "segmentation": SQUARE, "score": 0.5, "bbox": [1, 1, 3, 3]},
    {"image_id": 5, "category_id": 3, "segmentation": {"size": [8, 10], "counts": [80]}, "score": 1, "bbox": [0] * 4},
]


def small_tar(path: Path, photo: bytes | None = None, annotations: Any = None, name: str = "sa_5") -> Path:
    """A tar of one photo."""
    content = io.BytesIO()
    Image.new("RGB", (10, 8)).save(content, "JPEG")
    sound = {"image": {"height": 8, "width": 10}, "annotations": [{"segmentation": SQUARE, "area": 16}]}
    record = json.dumps(sound if annotations is None else annotations).encode()
    with tarfile.open(path, "w") as tar:
        for suffix, part in ((".jpg", content.getvalue() if photo is None else photo), (".json", record)):
            member = tarfile.TarInfo(name + suffix)
            member.size = len(part)
            tar.addfile(member, io.BytesIO(part))
    return path


def as_file(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def photos_of_all_kinds() -> dict[str, bytes]:
    """Photos of 9 x 13 pixels by the names of their files."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 255, (9, 13, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65535, (9, 13), dtype=np.uint16))
    more = {"save_all": True, "append_images": [colour.rotate(180)]}
    exif = Image.Exif()
    exif[0x0112] = 3
    return {
        "colour.jpg": as_file(colour, "JPEG", exif=exif),
        "cmyk.jpg": as_file(colour.convert("CMYK"), "JPEG"),
        "grey.jpg": as_file(colour.convert("L"), "JPEG"),
        "rgba.png": as_file(colour.convert("RGBA"), "PNG"),
        "palette.png": as_file(colour.convert("P"), "PNG", transparency=0),
        "bits.png": as_file(colour.convert("1"), "PNG"),
        "grey_alpha.png": as_file(colour.convert("LA"), "PNG"),
        "deep.png": as_file(deep, "PNG"),
        "deep.tif": as_file(deep, "TIFF"),
        "lzw.tif": as_file(colour, "TIFF", compression="tiff_lzw"),
        "moving.gif": as_file(colour, "GIF", **more),
        "moving.webp": as_file(colour, "WEBP", **more),
        "plain.bmp": as_file(colour, "BMP"),
    }


PHOTOS = photos_of_all_kinds()


def wide() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (50, 10_000, 3), dtype=np.uint8))
