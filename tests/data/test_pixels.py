"""Pixels that are kept on disk: the bits that decoding gives, and what is refused."""

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.embeddings import fingerprint
from mobilesamv2.data.images import checksum_of_blocks
from mobilesamv2.data.photos import PhotosDataset
from mobilesamv2.data.pixels import PixelCache
from mobilesamv2.data.samples import (
    EncoderSamples,
    PromptSamples,
    Sample,
    normalized_pixels,
    strided_pixels,
    to_model_inputs,
)
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.tensor_shards import ShardError
from mobilesamv2.structures import GroundTruth
from mobilesamv2.transforms import Resizing

ROOT = Path(__file__).parents[2]

SIDE = 160


@pytest.fixture
def photos(tmp_path: Path) -> PhotosDataset:
    """Three photos, wide, high and smaller than the input."""
    rng = np.random.default_rng(0)
    for i, size in enumerate(((200, 301), (333, 120), (50, 40))):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        (tmp_path / "photos").mkdir(exist_ok=True)
        coarse.resize(size[::-1], Image.Resampling.BICUBIC).save(tmp_path / "photos" / f"{i}.jpg", quality=90)
    return PhotosDataset(tmp_path / "photos")


def batches(samples: EncoderSamples) -> list[Sample]:
    """Return what a task receives of one pass over all images, in batches of one."""
    data = TrainingData(samples, batch_size=1)
    return [data.on_after_batch_transfer(data.on_before_batch_transfer(b, 0), 0) for b in data.predict_dataloader()]


@pytest.mark.parametrize("pixel_format", ["raw", "webp"])
def test_the_model_sees_the_same_bits_with_and_without_a_cache(
    tmp_path: Path, photos: PhotosDataset, pixel_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [normalized_pixels(photos.load_image(i), SIDE) for i in range(3)]
    smaller = [normalized_pixels(photos.load_image(i), 64) for i in range(3)]
    for decodes in (True, False):
        samples = EncoderSamples(photos, SIDE, student_size=64)
        samples.keep_pixels(tmp_path / "cache", pixel_format)
        if not decodes:
            monkeypatch.setattr(photos, "load_image", None)
        for batch, pixels, student in zip(batches(samples), wanted, smaller, strict=True):
            assert torch.equal(batch["pixels"], pixels[None])
            assert batch["pixels"].is_contiguous()
            assert torch.equal(batch["student_pixels"], student[None])
            assert batch.keys() == {"pixels", "student_pixels", "image_id", "resized"}
        assert all(len(cache) == 3 for cache in samples.pixel_caches.values())
        for cache in samples.pixel_caches.values():
            cache.flush()
    sizes = [sum(file.stat().st_size for file in tmp_path.glob(f"cache/pixels_{side}/*")) for side in (SIDE, 64)]
    stored = sum(batch["resized"].prod().item() * 3 for batch in batches(samples))
    assert sizes[0] < stored + 2000 if pixel_format == "raw" else sizes[0] < stored


def test_prompts_need_no_image_where_its_pixels_are_kept(tmp_path: Path) -> None:
    scenes = SyntheticDataset(2, (60, 80))
    first = PromptSamples(scenes, 64, prompts_per_image=2)
    wanted = batches(first)
    first.keep_pixels(tmp_path, "raw")
    batches(first)
    for batch, plain in zip(batches(first), wanted, strict=True):
        assert batch.keys() == plain.keys()
        assert all(torch.equal(batch[k], plain[k]) for k in batch if isinstance(batch[k], torch.Tensor))

    class Wider(SyntheticDataset):
        def ground_truth(self, index: int):
            truth = super().ground_truth(index)
            return truth.__class__(truth.image_id, (60, 81), truth.rles, truth.areas, truth.frequencies)

        def __getitem__(self, index: int):
            raise ValueError(f"Scene {index} must have another size.")

    other = PromptSamples(Wider(2, (60, 80)), 64)
    other.pixel_caches = first.pixel_caches
    with pytest.raises(ValueError, match="Scene 1 must have another size"):
        other[1]


def test_another_image_of_the_same_id_is_refused(tmp_path: Path, photos: PhotosDataset) -> None:
    samples = EncoderSamples(photos, SIDE)
    samples.keep_pixels(tmp_path / "cache", "raw")
    batches(samples)
    Image.new("RGB", (30, 30)).save(photos.folder / "1.jpg")
    number = photos.image_ids[1]
    with pytest.raises(ShardError, match=f"the pixels of another image with id {number}, .*: delete that folder"):
        samples[1]
    with pytest.raises(ShardError, match="another image"):  # no broken image, which another one would take the place of
        TrainingData(samples, batch_size=1, max_broken=1.0).samples[(0, 1)]
    turned = EncoderSamples(PhotosDataset(photos.folder, upright="never"), SIDE)
    turned.pixel_caches = samples.pixel_caches
    with pytest.raises(ShardError, match=r"decoded by other settings than .*upright.*never"):
        turned[0]
    scenes = [SyntheticDataset(1, seed=seed) for seed in (0, 1)]
    assert scenes[0].signature(0) != scenes[1].signature(0)


def drawn(folder: Path, seed: int, suffix: str) -> tuple[PhotosDataset, CocoDataset]:
    """A picture that is stored without compression, as a photo and as an annotated image."""
    folder.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"a{suffix}")
    listed = {"images": [{"id": 1, "file_name": f"a{suffix}", "height": 60, "width": 80}], "annotations": []}
    (folder / "a.json").write_text(json.dumps(listed))
    return PhotosDataset(folder), CocoDataset(folder / "a.json", folder)


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".ppm"])
def test_another_image_of_the_same_length_is_refused(tmp_path: Path, suffix: str) -> None:
    ours, theirs = (drawn(tmp_path / str(seed), seed, suffix) for seed in (0, 1))
    for kept, given in zip(ours, theirs, strict=True):
        assert kept.signature(0) == given.signature(0)  # which reads no file
        samples, others = EncoderSamples(kept, SIDE), EncoderSamples(given, SIDE)
        samples.keep_pixels(tmp_path / type(kept).__name__, "raw")
        batches(samples)
        others.pixel_caches = samples.pixel_caches
        samples[0]
        with pytest.raises(ShardError, match="the pixels of another image with id"):
            others[0]


class Turned(SyntheticDataset):
    """Scenes that lie on their side, with the signature of those that do not."""

    def load_image(self, index: int) -> np.ndarray:
        return super().load_image(index).transpose(1, 0, 2)

    def ground_truth(self, index: int) -> GroundTruth:
        height, width = super().ground_truth(index).size
        return GroundTruth(self.image_ids[index], (width, height), [], [], [])


def test_pixels_that_were_kept_before_an_image_was_turned_are_refused(tmp_path: Path) -> None:
    before = PromptSamples(SyntheticDataset(1, (60, 80)), SIDE)
    before.keep_pixels(tmp_path / "cache", "raw")
    batches(before)
    after = PromptSamples(Turned(1, (60, 80)), SIDE)
    after[0]
    after.pixel_caches = before.pixel_caches
    with pytest.raises(ShardError, match=r"kept with .* \(60, 80\) and annotated with \(80, 60\).*: delete pixels_"):
        after[0]


@pytest.mark.parametrize("kind", [EncoderSamples, PromptSamples])
def test_annotations_of_the_other_orientation_are_refused(tmp_path: Path, kind: type[EncoderSamples]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 60)).save(tmp_path / "a.jpg", exif=exif)
    annotated = []
    for size in ((60, 80), (80, 60)):
        listed = {"images": [{"id": 1, "file_name": "a.jpg", "height": size[0], "width": size[1]}], "annotations": []}
        (tmp_path / f"{size[0]}.json").write_text(json.dumps(listed))
        annotated.append(kind(CocoDataset(tmp_path / f"{size[0]}.json", tmp_path), SIDE))
    stored, upright = annotated
    stored.keep_pixels(tmp_path / "cache", "raw")
    batches(stored)
    upright.pixel_caches = stored.pixel_caches
    with pytest.raises(ShardError, match=r"decoded by other settings than .* annotated \(80, 60\): delete that folder"):
        upright[0]


@pytest.mark.parametrize("place", [0, 50_000, 99_999])
def test_the_checksum_of_a_file_is_of_its_ends_and_its_middle(tmp_path: Path, place: int) -> None:
    content = bytearray(100_000)
    (tmp_path / "a.bmp").write_bytes(content)
    before = checksum_of_blocks(tmp_path / "a.bmp")
    content[place] = 1
    (tmp_path / "a.bmp").write_bytes(content)
    assert checksum_of_blocks(tmp_path / "a.bmp") != before


@pytest.mark.parametrize("pixel_format", ["raw", "webp"])
def test_a_flipped_bit_and_another_header_are_noticed(tmp_path: Path, pixel_format: str) -> None:
    cache = PixelCache(tmp_path, 64, pixel_format, shard_size=1)
    rgb = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    cache.write(cache.encode(7, "7 bytes", rgb, (80, 128)))
    read, size = PixelCache(tmp_path, 64, pixel_format).read(7, "7 bytes")
    assert np.array_equal(read, rgb)
    assert size == (80, 128)
    [shard] = tmp_path.iterdir()
    content = shard.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    shape = (b"[40,64,3]", b"[64,40,3]") if pixel_format == "raw" else (b'"U8"', b'"I8"')
    for broken in (flipped, content.replace(*shape)):
        assert broken != content
        shard.write_bytes(broken)
        with pytest.raises(ShardError, match=f"The copy of image 7 in {shard} fails its checksum; delete that file"):
            PixelCache(tmp_path, 64, pixel_format).read(7, "7 bytes")
    shard.write_bytes(content[:-4])
    with pytest.raises(ShardError, match=f"The pixels in {shard} can't be read"):
        PixelCache(tmp_path, 64, pixel_format)
    shard.write_bytes(content)
    with pytest.raises(ShardError, match="image_size 64 instead of 128"):
        PixelCache(tmp_path, 128, pixel_format)


def test_what_can_not_be_kept_is_refused(tmp_path: Path) -> None:
    scenes = SyntheticDataset(1)
    with pytest.raises(ValueError, match=r"cache\.pixels must be off, raw or webp, got png\."):
        EncoderSamples(scenes, 64).keep_pixels(tmp_path, "png")
    with pytest.raises(ValueError, match=r"cache\.pixels must be off for SAM 2"):
        EncoderSamples(scenes, 64, resizing=Resizing.SQUARE).keep_pixels(tmp_path, "raw")


@pytest.mark.parametrize("side", [64, 320, 384])
def test_fingerprints_are_those_of_the_whole_input(side: int) -> None:
    scenes = SyntheticDataset(2, (50, 90))
    samples = EncoderSamples(scenes, side)
    batch = samples.collate([samples[0], samples[1]])
    pixels = torch.stack([normalized_pixels(scenes.load_image(i), side) for i in range(2)])
    assert torch.equal(fingerprint(strided_pixels(batch)), fingerprint(pixels))
    assert torch.equal(to_model_inputs(batch)["pixels"], pixels)


def test_every_byte_is_normalised_alike_on_its_way_to_the_model() -> None:
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    samples = EncoderSamples(SyntheticDataset(1), 16)
    sample, _ = samples._encoder_sample(0, lambda: image)
    assert torch.equal(to_model_inputs(samples.collate([sample]))["pixels"][0], normalized_pixels(image, 16))


def test_the_benchmark_compares_bits_and_prints_every_loader(
    tmp_path: Path, photos: PhotosDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["loading.py", "--photos", str(photos.folder), "--image-size", "64", "--repeats", "1", "--images", "3"]
    monkeypatch.setattr(sys, "argv", given)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    runpy.run_path(str(ROOT / "benchmarks" / "loading.py"), run_name="__main__")
    printed = capsys.readouterr().out
    for row in ("decode", "plain loop", "torchvision folder", "no cache", "raw, warm", "webp, warm", "100%"):
        assert row in printed
    if importlib.util.find_spec("webdataset") is None:
        assert "webdataset is not installed and is left out" in printed
