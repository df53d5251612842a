"""The teacher's embeddings on disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mobilesamv2.data.embeddings import EmbeddingCache

TEACHER = {"teacher": "sam_vit_mini", "weights": "abc", "image_size": 256}


def test_reads_what_the_first_pass_trained_on(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache", TEACHER, shard_size=4)
    embeddings = torch.randn(6, 3, 2, 2).to(memory_format=torch.channels_last)
    for i in range(6):
        cache.write([i], embeddings[i : i + 1])
    first = cache.read(range(6))
    assert torch.allclose(first.float(), embeddings, atol=2e-3)
    assert torch.equal(cache.read([5, 0]), first[[5, 0]])  # one pending, one on disk
    assert len(list(cache.folder.iterdir())) == 1
    cache.flush()
    again = EmbeddingCache(tmp_path / "cache", TEACHER)
    assert torch.equal(again.read(range(6)), first)
    assert len(again) == 6
    assert 6 not in again
    with pytest.raises(KeyError, match="image 6"):
        again.read([6])


def test_a_killed_run_loses_only_the_shard_in_progress(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, TEACHER, shard_size=2)
    cache.write([0, 1, 2], torch.randn(3, 1, 1, 1))
    (tmp_path / "half.partial").write_bytes(b"half a shard")
    del cache
    again = EmbeddingCache(tmp_path, TEACHER)
    assert [i in again for i in range(3)] == [True, True, False]


def test_a_block_keeps_what_is_pending_whatever_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Amid a write of its own too, which the handler of a signal may interrupt."""

    def stop(folder: Path, error: type[BaseException]) -> None:
        with EmbeddingCache(folder, TEACHER) as cache:
            cache.write([0, 1], torch.randn(2, 1, 1, 1))
            raise error

    for name, error in (("error", ValueError), ("stop", SystemExit), ("interrupt", KeyboardInterrupt)):
        with pytest.raises(error):
            stop(tmp_path / name, error)
        assert len(EmbeddingCache(tmp_path / name, TEACHER)) == 2

    def interrupted(*args: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr("mobilesamv2.data.tensor_shards.save_file", interrupted)
    with pytest.raises(RuntimeError, match="pid 7"), EmbeddingCache(tmp_path / "amid", TEACHER, shard_size=2) as cache:
        cache.write([0, 1, 2], torch.randn(3, 1, 1, 1))
    assert len(EmbeddingCache(tmp_path / "amid", TEACHER)) == 3
    assert not list((tmp_path / "amid").glob("*.partial"))


def test_two_writers_find_each_others_shards(tmp_path: Path) -> None:
    one, two = (EmbeddingCache(tmp_path, TEACHER, shard_size=1) for _ in range(2))
    one.write([1], torch.ones(1, 1, 1, 1))
    two.write([2], torch.full((1, 1, 1, 1), 2.0))
    assert 2 not in one
    one.refresh()
    assert one.read([1, 2]).flatten().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("orders", [(range(8), range(8)), (range(8), [5, 2, 7, 0, 1, 3, 6, 4])])
def test_two_runs_that_fill_a_cache_store_each_image_once(tmp_path: Path, orders: tuple[list[int], list[int]]) -> None:
    runs = [EmbeddingCache(tmp_path, TEACHER, shard_size=4) for _ in orders]
    for images in zip(*orders, strict=True):
        for cache, image in zip(runs, images, strict=True):
            cache.write([image], torch.full((1, 1, 1, 1), float(image)))
    for cache in runs:
        cache.flush()
        assert cache.read(range(8)).flatten().tolist() == list(range(8))
    stored = [key for path in tmp_path.iterdir() for key in load_file(path)]
    assert sorted(stored) == [str(image) for image in range(8)]


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
@pytest.mark.parametrize("store_padding", [True, False])
def test_a_header_of_another_type_or_shape_is_noticed(tmp_path: Path, dtype: str, store_padding: bool) -> None:
    """The bytes, and so their checksum, are the same."""
    given = {"dtype": dtype, "store_padding": store_padding}
    cache = EmbeddingCache(tmp_path, TEACHER, shard_size=1, **given)
    cache.write([3], torch.randn(1, 4, 8, 8), cells=torch.tensor([[8, 6]]))
    [shard] = tmp_path.iterdir()
    content = shard.read_bytes()
    sides = (8, 8) if store_padding else (8, 6)
    shape = "[4,{},{}]".format(*sides).encode()
    other = "[{},4,{}]".format(*sides).encode() if store_padding else b"[4,6,8]"
    values = (b'"F16"', b'"I16"') if dtype == "fp16" else (b'"I8"', b'"U8"')
    for then, now in (values, (shape, other)):
        assert content.count(then) == 1
        shard.write_bytes(content.replace(then, now))
        with pytest.raises(ValueError, match=f"image 3 in {shard} fails its checksum; delete that file"):
            EmbeddingCache(tmp_path, TEACHER, **given).read([3])
    shard.write_bytes(content.replace(b'"crc32"', b'"crc33"'))
    with pytest.raises(ValueError, match=f"{shard} can't be read .*crc32.*; delete that file"):
        EmbeddingCache(tmp_path, TEACHER, **given)
    shard.write_bytes(content)
    EmbeddingCache(tmp_path, TEACHER, **given).read([3])


def test_a_stale_cache_is_refused_with_a_reason(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path, TEACHER, shard_size=1).write([1], torch.ones(1, 1, 1, 1))
    with pytest.raises(ValueError, match="differ from this run's: weights abc instead of xyz"):
        EmbeddingCache(tmp_path, TEACHER | {"weights": "xyz"})


def test_broken_shards_and_infinite_embeddings_are_named(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, TEACHER)
    with pytest.raises(ValueError, match="image 8"):
        cache.write([7, 8], torch.tensor([1.0, 1e6]).view(2, 1, 1, 1))
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"broken\.safetensors can't be read"):
        EmbeddingCache(tmp_path, TEACHER)


def test_int8_is_off_by_half_a_step_of_its_channel_and_half_as_large(tmp_path: Path) -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(4, 8, 16, 16) * torch.tensor([0.1, 1.0, 10.0, 100.0] * 2).view(1, 8, 1, 1)
    embeddings[0, 3] = 0.0
    sizes = {}
    for dtype in ("fp16", "int8"):
        cache = EmbeddingCache(tmp_path / dtype, TEACHER, dtype=dtype, shard_size=4)
        cache.write(range(4), embeddings)
        again = EmbeddingCache(tmp_path / dtype, TEACHER, dtype=dtype)
        assert again.read(range(4)).dtype == torch.float16
        error = (again.read(range(4)).float() - embeddings).abs().amax((2, 3))
        largest = embeddings.abs().amax((2, 3))
        assert (error <= largest * (0.5 / 127 + 2**-10 if dtype == "int8" else 2**-10) + 1e-7).all()
        sizes[dtype] = sum(path.stat().st_size for path in cache.folder.iterdir()) / 4
    assert sizes["fp16"] == pytest.approx(2 * 8 * 16 * 16, rel=0.1)
    assert sizes["int8"] == pytest.approx(8 * 16 * 16 + 8 * 4, rel=0.2)
    with pytest.raises(ValueError, match="dtype int8 instead of fp16"):
        EmbeddingCache(tmp_path / "int8", TEACHER)
    with pytest.raises(ValueError, match="store_padding true instead of false"):
        EmbeddingCache(tmp_path / "fp16", TEACHER, store_padding=False)


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_padding_is_not_stored_where_it_is_not_needed(tmp_path: Path, dtype: str) -> None:
    embeddings = torch.randn(2, 3, 16, 16)
    cells = torch.tensor([[16, 5], [9, 16]])
    cache = EmbeddingCache(tmp_path, TEACHER, dtype=dtype, store_padding=False, shard_size=2)
    with pytest.raises(ValueError, match="requires cells"):
        cache.write([0, 1], embeddings)
    cache.write([0, 1], embeddings, cells)
    read = EmbeddingCache(tmp_path, TEACHER, dtype=dtype, store_padding=False).read([0, 1]).float()
    for i, (rows, columns) in enumerate(cells.tolist()):
        assert torch.allclose(read[i, :, :rows, :columns], embeddings[i, :, :rows, :columns], atol=0.02)
        assert read[i, :, rows:].abs().sum() == read[i, :, :, columns:].abs().sum() == 0
    assert (
        sum(p.stat().st_size for p in tmp_path.iterdir()) < 2 * 3 * 16 * 16 * (2 if dtype == "fp16" else 1) * 0.75 + 800
    )


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, TEACHER, shard_size=1)
    cache.write([3], torch.ones(1, 4, 2, 2))
    [shard] = tmp_path.iterdir()
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=f"image 3 in {shard} fails its checksum; delete that file"):
        EmbeddingCache(tmp_path, TEACHER).read([3])
    shard.write_bytes(content[:-4])
    with pytest.raises(ValueError, match="can't be read"):
        EmbeddingCache(tmp_path, TEACHER)


def test_another_image_of_the_same_id_is_noticed(tmp_path: Path) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    cache = EmbeddingCache(tmp_path, TEACHER, shard_size=2)
    cache.write([0, 1], torch.randn(2, 4, 4, 4), pixels=pixels)
    again = EmbeddingCache(tmp_path, TEACHER)
    again.read([1, 0], pixels.flip(0) + 0.02)  # as another decoder of JPEGs might have it
    with pytest.raises(ValueError, match="another image with id 1, perhaps of another data set: set cache"):
        again.read([0, 1], torch.stack([pixels[0], pixels[0]]))


def test_a_full_disk_leaves_no_part_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilesamv2.data import tensor_shards

    def breaks(tensors: dict, path: Path, metadata: dict) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(tensor_shards, "save_file", breaks)
    cache = EmbeddingCache(tmp_path, TEACHER, shard_size=2)
    with pytest.raises(OSError, match=rf"{tmp_path}/\w+\.safetensors can't be written: No space left"):
        cache.write([0, 1], torch.ones(2, 4, 4, 4))
    assert list(tmp_path.iterdir()) == []
