"""The teacher's embeddings on disk."""

from pathlib import Path

import pytest
import torch

from mobilesamv2.data.embeddings import EmbeddingCache

TEACHER = {"teacher": "sam_vit_mini", "weights": "abc", "image_size": 256}


def test_reads_what_the_first_pass_trained_on(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache", TEACHER, shard_size=4)
    embeddings = torch.randn(6, 3, 2, 2).to(memory_format=torch.channels_last)
    first = torch.cat([cache.write([i], embeddings[i : i + 1]) for i in range(6)])
    assert torch.allclose(first, embeddings, atol=2e-3)
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


def test_two_writers_find_each_others_shards(tmp_path: Path) -> None:
    one, two = (EmbeddingCache(tmp_path, TEACHER, shard_size=1) for _ in range(2))
    one.write([1], torch.ones(1, 1, 1, 1))
    two.write([2], torch.full((1, 1, 1, 1), 2.0))
    assert 2 not in one
    one.refresh()
    assert one.read([1, 2]).flatten().tolist() == [1.0, 2.0]


def test_a_stale_cache_is_refused_with_a_reason(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path, TEACHER, shard_size=1).write([1], torch.ones(1, 1, 1, 1))
    with pytest.raises(ValueError, match="another teacher: weights abc instead of xyz"):
        EmbeddingCache(tmp_path, TEACHER | {"weights": "xyz"})


def test_broken_shards_and_infinite_embeddings_are_named(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, TEACHER)
    with pytest.raises(ValueError, match="image 8"):
        cache.write([7, 8], torch.tensor([1.0, 1e6]).view(2, 1, 1, 1))
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"broken\.safetensors can't be read"):
        EmbeddingCache(tmp_path, TEACHER)
