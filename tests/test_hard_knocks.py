"""What breaks programs: bytes, values, files and disks as nobody meant them. docs/hard_knocks.md is the table."""

import copy
import io
import json
import re
import resource
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import save_file
from test_conf import composed
from test_segment_photos import FAST

import schema
from mobilesamv2 import SegAny, SegEvery, build_sam, load_sam, masks
from mobilesamv2.checkpoints import load_weights, save_weights
from mobilesamv2.cli import main
from mobilesamv2.data.annotated_images import choose_images
from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.images import read_rgb
from mobilesamv2.data.lvis import LvisDataset, write_lvis
from mobilesamv2.data.results_files import read_boxes, read_results
from mobilesamv2.data.sa1b import SA1BDataset, require_tars, write_sa1b_tar
from mobilesamv2.data.shapes import ShapesDataset
from mobilesamv2.data.tar_index import cached_index
from mobilesamv2.downloads import download
from mobilesamv2.metrics.result_record import write_record
from mobilesamv2.metrics.result_shards import ImageResult, ResultShards
from mobilesamv2.models.sam import Sam
from mobilesamv2.prompts import GridProposals
from mobilesamv2.tasks.checkpointing import WholeCheckpoints
from mobilesamv2.transforms import ModelFrame
from mobilesamv2.whole_files import whole_file

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


# ---------------------------------------------------------------- masks and frames

some_masks = st.tuples(st.integers(1, 5), st.integers(1, 24), st.integers(1, 24)).flatmap(
    lambda shape: hnp.arrays(bool, shape)
)


def rles_of(array: np.ndarray) -> list[dict[str, Any]]:
    """Masks (D, H, W) as RLE."""
    return masks.encode(torch.from_numpy(array.copy()).transpose(1, 2))


@FUZZ
@given(some_masks, st.data())
def test_union_clip_uncrop_and_iou_are_numpys(array: np.ndarray, data: st.DataObject) -> None:
    count, height, width = array.shape
    rles = rles_of(array)
    assert (masks.decode(masks.union(rles)) == array.any(0)).all()
    x0, y0 = data.draw(st.integers(0, width)), data.draw(st.integers(0, height))
    x1, y1 = data.draw(st.integers(x0, width)), data.draw(st.integers(y0, height))
    inside = np.zeros((height, width), dtype=bool)
    inside[y0:y1, x0:x1] = True
    for rle, mask in zip(masks.clip(rles, (x0, y0, x1, y1)), array, strict=True):
        assert (masks.decode(rle) == (mask & inside)).all()
    x, y = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))
    size = (height + y + data.draw(st.integers(0, 4)), width + x + data.draw(st.integers(0, 4)))
    for rle, mask in zip(masks.uncrop(rles, (x, y), size), array, strict=True):
        whole = np.zeros(size, dtype=bool)
        whole[y : y + height, x : x + width] = mask
        assert (masks.decode(rle) == whole).all()
        alone = masks.encode_crop(mask.T, (x, y), size)
        assert alone == (rle if mask.any() else None)
    flat = array.reshape(count, -1).astype(np.int64)
    common = flat @ flat.T
    either = flat.sum(1)[:, None] + flat.sum(1) - common
    expected = np.divide(common, either, out=np.zeros(common.shape), where=either > 0)
    np.testing.assert_allclose(masks.iou(rles, rles), expected, rtol=1e-12)


@FUZZ
@given(st.integers(0, 30), st.integers(0, 999), st.sampled_from([0, 0.25, 0.5, 0.7, 0.9, 1]))
def test_nms_is_the_greedy_one(count: int, seed: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 20, (count, 2), generator=generator).float()
    boxes = torch.cat([corners, corners + torch.randint(1, 20, (count, 2), generator=generator)], dim=1)
    scores, groups = torch.rand(count, generator=generator), torch.randint(0, 2, (count,), generator=generator)
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        sides = [
            (torch.minimum(boxes[i, 2:], boxes[j, 2:]) - torch.maximum(boxes[i, :2], boxes[j, :2])).clamp(min=0).prod()
            for j in kept
            if groups[i] == groups[j]
        ]
        sizes = [(boxes[j, 2:] - boxes[j, :2]).prod() for j in kept if groups[i] == groups[j]]
        own = (boxes[i, 2:] - boxes[i, :2]).prod()
        if all(s / (own + size - s) <= threshold for s, size in zip(sides, sizes, strict=True)):
            kept.append(i)
    assert masks.nms(boxes, scores, groups, threshold).tolist() == kept


@FUZZ
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30), st.integers(1, 9), st.integers(1, 9))
def test_any_text_is_a_mask_or_refused(text: str, height: int, width: int) -> None:
    """pycocotools runs past its memory, or for ever, on run lengths that do not add up."""
    rle, _ = outcome(lambda: masks.to_rle({"size": [height, width], "counts": text}, (height, width)))
    if rle:
        mask = masks.decode(rle)
        assert mask.shape == (height, width)
        assert int(mask.sum()) == int(masks.areas([rle])[0])


@FUZZ
@given(st.lists(st.floats(-40, 80), min_size=6, max_size=16).filter(lambda p: len(p) % 2 == 0))
def test_polygons_are_pycocotools(polygon: list[float]) -> None:
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon], 30, 20)))
    assert (masks.decode(masks.to_rle([polygon], (30, 20))) == expected).all()


def test_a_polygon_of_two_points_is_refused() -> None:
    """Pycocotools takes its four numbers for a box."""
    with pytest.raises(ValueError, match="of three points or more"):
        masks.to_rle([[1, 1, 5, 5]], (30, 20))


@FUZZ
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([64, 256, 1024]), st.integers(0, 99))
def test_frames_go_there_and_back(height: int, width: int, side: int, seed: int) -> None:
    frame = ModelFrame((height, width), side)
    rows, columns = frame.resized
    assert max(rows, columns) == side
    assert min(rows, columns) >= 1
    coords = torch.rand(5, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    coords = coords * torch.tensor([width, height])
    there = frame.coords_to_model(coords)
    back = there.double() * torch.tensor([width / columns, height / rows], dtype=torch.float64)
    assert torch.allclose(back, coords, rtol=1e-6, atol=1e-3)
    corner = frame.coords_to_model(torch.tensor([[float(width), float(height)]]))
    assert torch.allclose(corner, torch.tensor([[float(columns), float(rows)]]), rtol=1e-6)
    boxes = torch.cat([coords, coords + 2], dim=1)
    assert torch.equal(frame.boxes_to_model(boxes)[:, :2], there)


@FUZZ
@given(st.integers(1, 60), st.integers(1, 60), st.floats(-20, 20, width=32))
def test_constant_logits_stay_constant(height: int, width: int, value: float) -> None:
    full = ModelFrame((height, width), 64).logits_to_original(torch.full((1, 16, 16), value))
    assert full.shape == (1, width, height)
    assert torch.allclose(full, torch.full_like(full, value), rtol=1e-5)


# ---------------------------------------------------------------- annotations and results

SQUARE = [[2, 2, 6, 2, 6, 6, 2, 6]]
BROKEN_RLES = [{"size": [8, 10], "counts": [81]}, {"size": 8, "counts": ""}, {"size": [1e9, 1e9], "counts": [1e18]}]
NUMBERS = [True, -1, 0, 2**40, 10**400, 0.5, float("nan"), float("inf"), -1e308, 1.7e308]
JUNK = st.sampled_from([*NUMBERS, *BROKEN_RLES, None, "", "ä\x00", [], [[]], [None], [[1, 2]], {}])


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


@settings(FUZZ, max_examples=400)
@given(st.sampled_from(places(coco_content())), JUNK, st.booleans())
def test_any_value_anywhere_in_an_annotation_file(tmp_path: Path, path: tuple[Any, ...], junk: Any, drop: bool) -> None:
    """A sentence that names the file, or a sound ground truth."""
    file = tmp_path / "file.json"
    file.write_text(json.dumps(spoilt(coco_content(), path, junk, drop and bool(path))))
    dataset, said = outcome(lambda: LvisDataset(file, tmp_path))
    assert not said or "file.json" in said or "data set is empty" in said
    truths, said = outcome(lambda: [dataset.ground_truth(i) for i in range(len(dataset))] if dataset else [])
    assert not said or "file.json" in said
    _, said = outcome(lambda: dataset and dataset.check_images())
    assert not said or "file.json" in said
    for truth in truths or ():
        assert all(area >= 0 for area in truth.areas)
        assert all(masks.decode(rle).shape == truth.size for rle in truth.rles)


RESULTS = [
    {"image_id": 5, "category_id": 3, "segmentation": SQUARE, "score": 0.5, "bbox": [1, 1, 3, 3]},
    {"image_id": 5, "category_id": 3, "segmentation": {"size": [8, 10], "counts": [80]}, "score": 1, "bbox": [0] * 4},
]


@settings(FUZZ, max_examples=300)
@given(st.sampled_from(places(RESULTS)), JUNK, st.booleans())
def test_any_value_anywhere_in_a_results_file(tmp_path: Path, path: tuple[Any, ...], junk: Any, drop: bool) -> None:
    listing, file = tmp_path / "listing.json", tmp_path / "file.json"
    listing.write_text(json.dumps(coco_content()))
    file.write_text(json.dumps(spoilt(RESULTS, path, junk, drop and bool(path))))
    dataset = CocoDataset(listing)
    found, said = outcome(lambda: list(read_results(file, dataset)))
    assert not said or "file.json" in said
    for _, (rles, scores) in found or ():
        assert [masks.decode(rle).shape for rle in rles] == [(8, 10)] * len(scores)
    boxes, said = outcome(lambda: read_boxes(file, dataset))
    assert not said or "file.json" in said
    assert not boxes or torch.isfinite(boxes[5].boxes_xyxy).all()


@FUZZ
@given(st.data())
def test_bytes_of_an_annotation_file_may_be_anything(tmp_path: Path, data: st.DataObject) -> None:
    file, content = tmp_path / "file.json", bytearray(json.dumps(coco_content()).encode())
    del content[data.draw(st.integers(0, len(content))) :]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    _, said = outcome(lambda: CocoDataset(file).ground_truth(0))
    assert not said or "file.json" in said


@pytest.mark.parametrize("content", ["[" * 100_000, '{"images": [' + "9" * 5000 + "]}", "", "null"])
def test_json_that_is_too_deep_too_long_or_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(ValueError, match=r"file\.json is not"):
        CocoDataset(tmp_path / "file.json")


def test_objects_of_one_id_are_each_counted(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][1]["id"] = 1
    (tmp_path / "file.json").write_text(json.dumps(content))
    assert len(CocoDataset(tmp_path / "file.json").ground_truth(0).rles) == 2


def test_names_of_any_alphabet(tmp_path: Path) -> None:
    content = coco_content()
    content["images"][0] = {"id": 5, "height": 8, "width": 10, "file_name": "Katze 貓 🐈.png"}
    Image.new("RGB", (10, 8), "red").save(tmp_path / "Katze 貓 🐈.png")
    (tmp_path / "file.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    assert CocoDataset(tmp_path / "file.json", tmp_path).load_image(0)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), -1, 0, 2.5])
def test_a_limit_that_is_no_number_of_images(limit: float) -> None:
    with pytest.raises(ValueError, match="limit is a number of images"):
        choose_images([1, 2, 3], limit)


def test_a_list_of_images_that_is_no_text_or_has_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"ids\.txt is no text"):
        choose_images([1, 2], image_list=tmp_path / "ids.txt")
    (tmp_path / "ids.txt").write_text("2\n", "utf-8-sig")
    assert choose_images([1, 2], image_list=tmp_path / "ids.txt") == [1]


# ---------------------------------------------------------------- tars


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


SA1B_RECORD = {"image": {"height": 8, "width": 10}, "annotations": [{"segmentation": SQUARE, "area": 16}]}


@settings(FUZZ, max_examples=200)
@given(st.sampled_from(places(SA1B_RECORD)), JUNK, st.booleans())
def test_any_value_anywhere_in_a_tars_annotations(tmp_path: Path, path: tuple[Any, ...], junk: Any, drop: bool) -> None:
    record = spoilt(SA1B_RECORD, path, junk, drop and bool(path))
    dataset = SA1BDataset(small_tar(tmp_path / "a.tar", annotations=record))
    sample, said = outcome(lambda: dataset[0])
    assert not said or "sa_5 of" in said
    assert not sample or all(0 <= area < float("inf") for area in sample[1].areas)


@settings(FUZZ, max_examples=200)
@given(st.data())
def test_bytes_of_a_tar_may_be_anything(tmp_path: Path, data: st.DataObject) -> None:
    """Headers with other bytes and a checksum that is right again, and tars that end early."""
    content = bytearray(small_tar(tmp_path / "a.tar").read_bytes())
    heads = [i for i in range(0, len(content), 512) if content[i : i + 3] == b"sa_"]
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    else:
        head = data.draw(st.sampled_from(heads))
        content[head + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
        content[head + 148 : head + 156] = b" " * 8
        content[head + 148 : head + 156] = b"%06o\0 " % sum(content[head : head + 512])
    (tmp_path / "a.tar").write_bytes(content)
    dataset, said = outcome(lambda: SA1BDataset(tmp_path / "a.tar", max_broken=1.0))
    assert not said or "a.tar" in said
    _, said = outcome(lambda: dataset and dataset[0])
    assert not said or "a.tar" in said


def test_tars_that_are_compressed_or_hold_strange_names(tmp_path: Path) -> None:
    import gzip

    path = small_tar(tmp_path / "a.tar")
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.tar is not a tar, or is truncated or compressed"):
        SA1BDataset(path)
    for name in ("sa_" + "9" * 30, "sa_²", "sa_-1", "sa_"):
        with pytest.raises(ValueError, match=r"b\.tar holds no pair"):
            SA1BDataset(small_tar(tmp_path / "b.tar", name=name))
    with pytest.raises(FileNotFoundError, match="list of tars is empty"):
        require_tars([])


def test_a_photo_of_no_bytes_in_a_tar(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Photo sa_5 of .*a\.tar can't be decoded"):
        SA1BDataset(small_tar(tmp_path / "a.tar", photo=b""))[0]


@FUZZ
@given(st.data())
def test_a_kept_index_of_any_bytes_is_made_anew(tmp_path: Path, data: st.DataObject) -> None:
    path, folder = tmp_path / "a.tar", tmp_path / "index"
    expected = cached_index(path if path.exists() else small_tar(path), folder)
    [kept] = folder.iterdir()
    sound = kept.read_bytes()
    content = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    kept.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert np.array_equal(cached_index(path, folder).entries, expected.entries)


# ---------------------------------------------------------------- photos


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
    image, said = outcome(lambda: read_rgb(io.BytesIO(bytes(content)), name, upright=True))
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
        place = folder / name
        # of a folder, GIFs are not taken; a tif beside a png of one name would be written over it
        place.with_name(f"{place.stem}_{place.suffix[1:]}{place.suffix}").write_bytes(content)
    strange = {"bomb.png": bomb(), "heic.jpg": b"\x00\x00\x00\x18ftypheic" + bytes(99), "empty.webp": b""}
    for name, content in strange.items():
        (folder / name).write_bytes(content)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        main(["segment", str(folder), str(folder / "moving_gif.gif"), "-o", str(out), *FAST])
    message = str(stopped.value)
    assert message.startswith("error: 3 of 18 photos were left out.")
    for name in strange:
        assert f"{name} can't be decoded" in message
    written = json.loads((out / "masks.json").read_text())
    assert len(written["images"]) == 15
    sizes = {(image["height"], image["width"]) for image in written["images"]}
    assert sizes == {(9, 13), (50, 10_000)}


def wide() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (50, 10_000, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (50, 10_000), (10_000, 3)])
def test_segany_and_segevery_on_extreme_sizes(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    sam = build_sam("micro_conv")
    segany = SegAny(sam)
    segany.set_image(image)
    assert segany.predict(points=[[[0, 0]]]).masks.shape == (1, 3, *size)
    for rle in SegEvery(sam, GridProposals(points_per_side=2))(image).rles:
        assert masks.decode(rle).shape == size


# ---------------------------------------------------------------- weights


@lru_cache
def micro() -> Sam:
    return build_sam("micro_conv")


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one model's files."""
    folder, sam = tmp_path_factory.mktemp("weights"), micro()
    save_weights(sam, folder / "a.safetensors")
    torch.save(sam.state_dict(), folder / "a.pth")
    torch.save(sam.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    return folder


@settings(FUZZ, max_examples=80)
@given(st.sampled_from(["a.safetensors", "a.pth", "old.pth"]), st.data())
def test_bytes_of_a_weight_file_may_be_anything(
    weight_files: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    content = bytearray((weight_files / name).read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    for _ in range(data.draw(st.sampled_from([1, 3, 8])) if content else 0):
        place = data.draw(st.sampled_from([data.draw(st.integers(0, 3000)), -data.draw(st.integers(1, 3000))]))
        content[place % len(content)] = data.draw(st.integers(0, 255))
    (tmp_path / name).write_bytes(content)
    _, said = outcome(lambda: load_weights(micro(), tmp_path / name))
    assert not said or name in said


@pytest.mark.parametrize(
    "content",
    [
        {1: torch.zeros(1)},
        {"image_encoder.x": "text"},
        {"PromtEncoder": {"a": 1}, "MaskDecoder": {2: torch.zeros(1)}},
        {"layers.0.blocks.x": torch.zeros(1), "epoch": 3},
        {},
    ],
)
def test_dictionaries_that_are_no_weights(tmp_path: Path, content: dict[Any, Any]) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt (holds|does not fit)"):
        build_sam("micro_conv", tmp_path / "odd.pt")


@pytest.mark.parametrize("said", ["[]", "3", "{}", "{", '{"name": "micro_conv"}', '{"name": "x", "encoder": "y"}'])
def test_safetensors_that_say_something_odd_of_their_model(tmp_path: Path, said: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={"mobilesamv2": said})
    with pytest.raises(ValueError, match=r"does not say which model|There is no model 'x'"):
        load_sam(tmp_path / "odd.safetensors")


def test_an_empty_list_of_weight_files_is_refused() -> None:
    with pytest.raises(ValueError, match="checkpoint of micro_conv is an empty list"):
        build_sam("micro_conv", [])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    sam = build_sam("micro_conv")
    sam.mask_decoder.iou_token.weight.data[0, 3] = bad
    save_weights(sam, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match=r"nan\.safetensors holds NaN or infinity in mask_decoder\.iou_token\.weight"):
        load_sam(tmp_path / "nan.safetensors")


def test_a_detector_whose_weights_are_not_finite_is_refused(tmp_path: Path) -> None:
    from mobilesamv2.models.object_detector import build_detector, save_detector

    detector = build_detector("yolov8n")
    next(detector.parameters()).data[0] = float("nan")
    save_detector(detector, tmp_path / "nan.pt")
    with pytest.raises(ValueError, match=r"nan\.pt holds NaN or infinity among its weights"):
        build_detector(checkpoint=tmp_path / "nan.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "nan.pt").read_bytes()[:50_000])
    with pytest.raises(ValueError, match=r"torn\.pt is not an ultralytics checkpoint"):
        build_detector(checkpoint=tmp_path / "torn.pt")


def broken_at(part: str) -> Sam:
    """A model that gives NaN, as one does in float16 that its values don't fit."""
    sam = build_sam("micro_conv")
    spoil = {
        "encoder": sam.image_encoder.neck,
        "iou": sam.mask_decoder.iou_prediction_head,
        "logits": sam.mask_decoder.output_upscaling,
    }[part]
    next(spoil.parameters()).data[0] = float("nan")
    return sam


@pytest.mark.parametrize(
    ("part", "network"), [("encoder", "image encoder"), ("iou", "mask decoder"), ("logits", "mask decoder")]
)
def test_nan_is_an_error_and_no_mask(photo: np.ndarray, part: str, network: str) -> None:
    sam = broken_at(part)
    with pytest.raises(ValueError, match=f"The {network} gives NaN or infinity in torch.float32: its weights"):
        SegEvery(sam, GridProposals(points_per_side=2))(photo)
    segany = SegAny(sam)
    if part == "encoder":
        with pytest.raises(ValueError, match=f"The {network} gives NaN"):
            segany.set_image(photo)
        return
    segany.set_image(photo)
    for more in ({}, {"mask_input": np.zeros((1, 64, 64))}):
        with pytest.raises(ValueError, match=f"The {network} gives NaN"):
            segany.predict(boxes=[[1, 1, 50, 50]], **more)


def test_a_run_that_diverged_writes_no_weights(tmp_path: Path) -> None:
    from functools import partial

    from mobilesamv2.tasks.finetune_decoder import FinetuneDecoder
    from train import write_weights

    task = FinetuneDecoder(broken_at("iou"), partial(torch.optim.AdamW, lr=1.0))
    with pytest.raises(ValueError, match=r"The run diverged: .* Lower optimizer\.lr"):
        write_weights(task, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- disks


@contextmanager
def small_disk(size: int = 4096) -> Iterator[None]:
    """No file may grow beyond a size, in bytes: the system's own refusal, in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


SCENES = ShapesDataset(4, (64, 96))


def write_embeddings(path: Path) -> None:
    EmbeddingCache(path.parent, {"teacher": "x"}, shard_size=1).write([1], torch.ones(1, 64, 16, 16))


def write_results(path: Path) -> None:
    shards = ResultShards(path.parent, {"a": 1})
    shards.add(ImageResult(1, {"x": np.random.default_rng(0).random(5000)}, None, 3))
    shards.flush()


WRITERS = {
    "a.safetensors": lambda path: save_weights(build_sam("micro_conv"), path),
    "a.ckpt": lambda path: WholeCheckpoints().save_checkpoint({"a": torch.ones(9000)}, path),
    "results.json": lambda path: write_record({"a": "x" * 9000}, path.parent),  # pyright: ignore
    "per_image.npz": lambda path: write_record({}, path.parent, a=np.random.default_rng(0).random(9000)),  # pyright: ignore
    "a.tar": lambda path: write_sa1b_tar((SCENES[i] for i in range(4)), path),
    "images/0.png": lambda path: write_lvis((SCENES[i] for i in range(4)), path.parents[1]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_a_sentence_and_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"earlier")
    with small_disk(), pytest.raises(OSError, match=rf"{name} can't be written: .*(File too large|disk is full)"):
        WRITERS[name](path)
    assert path.read_bytes() == b"earlier"
    assert not list(tmp_path.rglob("*.partial"))
    WRITERS[name](path)
    assert path.read_bytes() != b"earlier"


@pytest.mark.parametrize(("write", "said"), [(write_embeddings, "embeddings can't"), (write_results, "npz can't")])
def test_a_full_disk_amid_a_cache_or_an_evaluation(tmp_path: Path, write: Any, said: str) -> None:
    with small_disk(), pytest.raises(OSError, match=said):
        write(tmp_path / "x")
    assert not list(tmp_path.rglob("*.partial"))
    write(tmp_path / "x")


def test_a_full_disk_keeps_no_index_and_reads_the_tar_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = small_tar(tmp_path / "a.tar")
    with small_disk(16):
        assert len(cached_index(path, tmp_path / "index").entries) == 1
    assert "can't be kept" in caplog.text


def test_a_full_disk_amid_a_download_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilesamv2 import downloads

    class Answer(io.BytesIO):
        status, headers = 200, {"Content-Length": "9000"}

    asked: list[Any] = []
    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda r, timeout: asked.append(r) or Answer(bytes(9000)))
    with small_disk(), pytest.raises(OSError, match=r"a\.pt\.part can't be written: .*goes on from what came"):
        download("http://host/a.pt", tmp_path / "a.pt", pause_s=0)
    assert len(asked) == 1


def test_segmenting_onto_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(as_file(wide(), "PNG"))
    with small_disk(), pytest.raises(SystemExit, match=r"error: .*out/a\.png can't be written: File too large"):
        main(["segment", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), *FAST])


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PHOTOS["rgba.png"])
    for device in ("toaster", "cuda:99"):
        with pytest.raises(SystemExit, match=f"error: --device {device} can't be used here"):
            main(["segment", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), *FAST, "--device", device])


@pytest.mark.parametrize("command", ["segment", "draw", "draw tar", "yolo-data", "download"])
def test_an_output_below_a_file_is_a_sentence(tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop every user; this does."""
    (tmp_path / "file").write_text("x")
    out = str(tmp_path / "file" / "out")
    tar, photo = str(small_tar(tmp_path / "a.tar")), tmp_path / "a.png"
    photo.write_bytes(PHOTOS["rgba.png"])
    given = {
        "segment": ["segment", str(photo), "-o", out, *FAST],
        "draw": ["draw", out, "--scenes", "1", "--workers", "0"],
        "draw tar": ["draw", f"{out}.tar", "--scenes", "1", "--workers", "0"],
        "yolo-data": ["yolo-data", out, "--tars", tar],
        "download": ["download", "mobile_sam.pt", "-o", out],
    }[command]
    with pytest.raises(SystemExit, match=r"^error: .*file/out"):
        main(given)


def test_whole_files_replace_or_leave(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as partial:
        partial.write_text("one")

    def is_interrupted() -> None:
        with whole_file(path) as partial:
            partial.write_text("two")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        is_interrupted()
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_broken_results_of_a_stopped_evaluation_are_named(tmp_path: Path) -> None:
    write_results(tmp_path / "x")
    [shard] = (tmp_path / "progress").glob("*.npz")
    content = shard.read_bytes()
    for torn in (content[:100], b"", bytes(len(content)), content[:-50] + bytes(50)):
        shard.write_bytes(torn)
        with pytest.raises(ValueError, match=rf"{shard.name} can't be read .*delete that file"):
            ResultShards(tmp_path, {"a": 1})
    (tmp_path / "progress" / "identity.json").write_text("[")
    with pytest.raises(ValueError, match=r"identity\.json can't be read"):
        ResultShards(tmp_path, {"a": 1})


# ---------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dataset.limit=abc", "dataset.limit is 'abc'; LvisDataset takes float | None."),
        ("dataset.limit=true", "dataset.limit is True; LvisDataset takes float | None."),
        ("dataset.annotations=null", "dataset.annotations is null; LvisDataset takes str | Path."),
        ("prompt_sampler.points_per_side=1.5", "prompt_sampler.points_per_side is 1.5; GridProposals takes int."),
        ("prompt_sampler.multimask=1", "prompt_sampler.multimask is 1; GridProposals takes bool."),
        ("task.ks=3", "task.ks is 3; EvaluateProposals takes"),
        ("task.ks=[10,a]", "task.ks is [10, 'a']; EvaluateProposals takes"),
        ("model.checkpoint=3", "model.checkpoint is 3; build_sam takes"),
        ("dataset=shapes dataset.size=[256]", "dataset.size is [256]; ShapesDataset takes tuple[int, int]."),
        ("+prompt_sampler.typo=1", "There is no prompt_sampler.typo; GridProposals has points_per_side,"),
        ("+dataset.imgs=x", "There is no dataset.imgs; LvisDataset has annotations,"),
        ("model=by_name", "model.name has no value yet: model.name=VALUE."),
        ("~dataset", "dataset is not chosen, and this run reads it: dataset=NAME, one of conf/dataset."),
    ],
)
def test_a_setting_that_makes_no_sense_is_a_sentence(override: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        schema.require_settings(composed(*override.split()), ["dataset", "model"])


@pytest.mark.parametrize("override", ["prompt_sampler.predicted_iou=1", "model.checkpoint=[a,b]", "trainer.devices=2"])
def test_settings_of_other_types_that_do_fit(override: str) -> None:
    schema.require_settings(composed(override), ["dataset", "model"])


def test_a_data_set_without_objects_has_no_recall_and_no_error(tmp_path: Path) -> None:
    from test_evaluate import evaluate_here

    content = coco_content() | {"annotations": []}
    (tmp_path / "file.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(RESULTS[:1]))
    given = [f"dataset.annotations={tmp_path / 'file.json'}", f"predictions={tmp_path / 'results.json'}"]
    evaluate_here("dataset=coco", *given, f"output_dir={tmp_path / 'out'}")
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["metrics"]["mAR"] is None
    assert result["n_gt"]["all"] == 0
    without = ["prompt_sampler=object_aware", "~detector", f"output_dir={tmp_path / 'out'}"]
    with pytest.raises(SystemExit, match=r"error: prompt_sampler=object_aware .* detector is null"):
        evaluate_here("dataset=coco", given[0], *without)
    with pytest.raises(SystemExit, match=r"error: dataset\.limit is 'abc'"):
        evaluate_here("dataset=coco", "dataset.limit=abc", *given, f"output_dir={tmp_path / 'out'}")


def test_the_table_names_tests_that_exist() -> None:
    table = (ROOT / "docs" / "hard_knocks.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", table)
    assert len(named) > 80
    assert [name for name in named if f"def {name}(" not in sources] == []
    own = re.findall(r"^def (test_\w+)", Path(__file__).read_text(), re.MULTILINE)
    assert [name for name in own[:-1] if name not in named] == []
