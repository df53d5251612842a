"""How many images a teacher encodes at once, and that a cache's bits depend on nothing else."""

import json
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from support.training import trainer
from torch import Tensor

from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.pixels import PixelCache
from mobilesamv2.data.samples import EncoderSamples
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.recipes.cache_teacher import report
from mobilesamv2.registry import build_sam
from mobilesamv2.tasks import teacher_batch
from mobilesamv2.tasks.teacher import CacheTeacher, Teacher, teacher_identity
from mobilesamv2.tasks.teacher_batch import RECORD, agree_on_batch, available_bytes, find_batch, peak_growth

SHAPE = (3, 8, 8)


@pytest.mark.parametrize(("fits", "found"), [(64, 64), (63, 32), (5, 4), (1, 1)])
def test_a_batch_that_does_not_fit_is_halved(fits: int, found: int) -> None:
    tried = []

    def encode(pixels: Tensor) -> None:
        tried.append(len(pixels))
        if len(pixels) > fits:
            raise torch.OutOfMemoryError

    assert find_batch(encode, SHAPE, 64, "meta") == found
    assert tried == [64 >> i for i in range(len(tried))]
    fits = 0
    with pytest.raises(ValueError, match="The memory of meta must hold one image of 8 pixels in the teacher, and does"):
        find_batch(encode, SHAPE, 64, "meta")


def test_a_cpu_is_asked_for_its_memory_and_never_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(teacher_batch, "peak_growth", lambda run: run() or 1000_000)
    monkeypatch.setattr(teacher_batch, "available_bytes", lambda: 10_000_000)
    assert find_batch(lambda pixels: sizes.append(len(pixels)), SHAPE, 64, "cpu") == 8  # 80% of 10 MB, 1 MB each
    assert find_batch(lambda pixels: sizes.append(len(pixels)), SHAPE, 3, "cpu") == 3
    assert sizes == [1, 1]
    monkeypatch.setattr(teacher_batch, "available_bytes", lambda: 0)
    assert find_batch(lambda pixels: None, SHAPE, 64, "cpu") == 1


def test_memory_is_measured_while_a_function_runs() -> None:
    def takes() -> None:
        with mmap.mmap(-1, 32_000_000) as pages:  # torch might reuse what earlier tests have freed
            pages.write(b"1" * 32_000_000)

    assert 25e6 < peak_growth(takes) < 200e6
    assert available_bytes() > 1e6


def test_all_that_fill_a_cache_take_what_the_first_one_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def other(largest: int) -> int:
        (tmp_path / RECORD).write_text(f'{{"images": 6, "largest_batch": {largest}}}')  # first, while this one tries
        return 9

    assert agree_on_batch(tmp_path, 16, other) == 6
    assert agree_on_batch(tmp_path, 16, lambda largest: 1 // 0) == 6  # nothing is tried
    assert caplog.text == ""
    assert agree_on_batch(tmp_path, 8, lambda largest: 1 // 0) == 6
    assert (
        f"{tmp_path / RECORD} says that the embeddings there are encoded 6 at once, and task.largest_b" in caplog.text
    )
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]
    caplog.clear()
    (tmp_path / RECORD).write_text('{"images": 6}')  # of an earlier version
    assert [agree_on_batch(tmp_path, largest, lambda largest: 1 // 0) for largest in (4, 6, 64)] == [6] * 3
    assert caplog.text.count("task.largest_batch=4 changes nothing") == caplog.text.count("WARNING") == 1
    for broken in ("", "[]", '{"images": 0}', '{"images": true}', "{}", '{"images": 6, "largest_batch": "x"}'):
        (tmp_path / RECORD).write_text(broken)
        with pytest.raises(ValueError, match=f"{tmp_path / RECORD} can't be read .* delete that file"):
            agree_on_batch(tmp_path, 16, lambda largest: 1)


def test_a_trial_of_few_images_does_not_fix_their_number_for_the_cache(tmp_path: Path) -> None:
    teacher = build_sam("sam_vit_mini")
    cache = EmbeddingCache(tmp_path, teacher_identity(teacher))
    task = CacheTeacher(Teacher(teacher, cache), largest_batch=3)
    samples = EncoderSamples(SyntheticDataset(2, (60, 90)), teacher.image_size)
    trainer(tmp_path).predict(task, datamodule=TrainingData(samples, batch_size=2, embeddings=cache))
    assert len(cache) == 2
    assert json.loads((tmp_path / RECORD).read_text()) == {"images": 3, "largest_batch": 3}


def test_the_same_bits_whatever_arrives_together_or_is_resumed(tmp_path: Path) -> None:
    teacher = build_sam("sam_vit_mini")
    pixels = torch.randn(7, 3, teacher.image_size, teacher.image_size)

    def fill(name: str, *batches: list[int]) -> EmbeddingCache:
        cache = EmbeddingCache(tmp_path / name, teacher_identity(teacher), shard_size=3)
        (cache.folder / RECORD).write_text(json.dumps({"images": 4}))
        task = CacheTeacher(Teacher(teacher, cache))
        task.on_predict_start()
        for ids in batches:
            resized = torch.full((len(ids), 2), teacher.image_size)
            task.predict_step({"image_id": torch.tensor(ids), "pixels": pixels[ids], "resized": resized}, 0)
        task.on_predict_end()
        assert task.images_per_second > 0 or not task.teacher.images_encoded
        return cache

    whole = fill("whole", [0, 1, 2, 3], [4, 5, 6])
    fill("parts", [6, 1], [3])  # as if it had been killed
    parts = fill("parts", [0, 1, 2], [3, 4], [5, 6])
    assert torch.equal(whole.read(range(7)), parts.read(range(7)))
    assert fill("parts", [0, 1, 2, 3, 4, 5, 6]).num_bytes() == parts.num_bytes() > 0


def test_the_report_is_arithmetic(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, {"teacher": "x"}, shard_size=2)
    cache.write([0, 1], torch.zeros(2, 256, 64, 64))
    assert report(cache, 0.0) == []
    lines = report(cache, 10.0)
    assert lines[0] == "  10 images/s in this process, 2.1 MB an image, 2 images so far"
    assert lines[1] == "    1% of SA-1B: 3.11 hours of a process like this one, 0.235 TB, computed"
    assert lines[3] == "  100% of SA-1B: 311 hours of a process like this one, 23.5 TB, computed"
    pixels = PixelCache(tmp_path / "pixels", 1024, "raw", shard_size=1)
    pixels.write(pixels.encode(0, "a", np.zeros((1024, 682, 3), np.uint8), (1500, 1000)))
    lines = report(cache, 10.0, [pixels])
    assert lines[0] == "  10 images/s in this process, 4.19 MB an image, 2 images so far"
    assert lines[3] == "  100% of SA-1B: 311 hours of a process like this one, 46.9 TB, computed"
