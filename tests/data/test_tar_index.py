"""Indices of tars are cached, and rebuilt when the tar changes."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mobilesamv2.data import tar_index
from mobilesamv2.data.sa1b import SA1BDataset
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.tar_index import cached_index, index_tar
from mobilesamv2.data.writers import write_sa1b_tar
from mobilesamv2.files import read_arrays


def write_tar(path: Path, ids: range) -> Path:
    scenes = SyntheticDataset(ids.stop, (40, 60))
    write_sa1b_tar((scenes[i] for i in ids), path)
    return path


def test_a_kept_index_is_read_instead_of_the_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar, folder = write_tar(tmp_path / "a.tar", range(3)), tmp_path / "index"
    walked: list[Path] = []
    walk = tar_index.index_tar
    monkeypatch.setattr(tar_index, "index_tar", lambda path: walked.append(path) or walk(path))
    first, again = (SA1BDataset(tar, index_folder=folder) for _ in range(2))
    assert walked == [tar]
    assert first.image_ids == again.image_ids == [0, 1, 2]
    assert np.array_equal(first[1][0], again[1][0])
    write_tar(tar, range(2, 4))
    assert SA1BDataset(tar, index_folder=folder).image_ids == [2, 3]
    os.utime(tar, ns=(1, 1))
    SA1BDataset(tar, index_folder=folder)
    assert len(walked) == 3
    [kept] = folder.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert SA1BDataset(tar, index_folder=folder).image_ids == [2, 3]
    assert len(walked) == 4
    assert SA1BDataset(tar).image_ids == [2, 3]
    assert len(walked) == 5


def test_a_tar_replaced_at_the_same_size_and_time_is_indexed_anew(tmp_path: Path) -> None:
    tar, folder = write_tar(tmp_path / "a.tar", range(3)), tmp_path / "index"
    sizes, stat = [1000, 3000, 2000], tar.stat()

    def write(order: list[int]) -> None:
        with tarfile.open(tar, "w") as file:
            for i, size in zip(order, (sizes[i] for i in order), strict=True):
                for name in (f"sa_{i}.jpg", f"sa_{i}.json"):
                    member = tarfile.TarInfo(name)
                    member.size = size
                    file.addfile(member, io.BytesIO(bytes([i]) * size))
        os.utime(tar, ns=(stat.st_mtime_ns, stat.st_mtime_ns))

    for order in ([0, 1, 2], [0, 2, 1], [2, 1, 0]):
        write(order)
        assert cached_index(tar, folder).entries.tolist() == index_tar(tar).entries.tolist()
        assert cached_index(tar, folder).entries[:, 0].tolist() == order


@pytest.mark.parametrize(
    "changed",
    [
        {"entries": np.zeros((2, 5))},
        {"entries": np.zeros((0, 5), np.int64)},
        {"entries": np.full((2, 5), -7)},
        {"entries": np.zeros(3, np.int64)},
        {"notes": np.array("[]")},
        {"notes": np.array("[" * 9999)},
    ],
)
def test_an_index_of_other_content_is_made_anew(tmp_path: Path, changed: dict[str, np.ndarray]) -> None:
    tar, folder = write_tar(tmp_path / "a.tar", range(3)), tmp_path / "index"
    expected = cached_index(tar, folder).entries
    [kept] = folder.iterdir()
    np.savez(kept, **(read_arrays(kept) | changed))  # pyright: ignore
    assert np.array_equal(cached_index(tar, folder).entries, expected)


def test_a_folder_that_cant_be_written_to_keeps_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar, folder = write_tar(tmp_path / "a.tar", range(1)), tmp_path / "index"
    folder.write_text("a file, not a folder")
    assert SA1BDataset(tar, index_folder=folder).image_ids == [0]
    assert "can't be kept" in caplog.text


def test_tars_of_one_name_in_two_folders_have_indices_of_their_own(tmp_path: Path) -> None:
    for name, ids in (("one", range(2)), ("two", range(2, 3))):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "a.tar", ids)
    for _ in range(2):
        assert SA1BDataset([tmp_path / "one", tmp_path / "two"], index_folder=tmp_path / "index").image_ids == [0, 1, 2]


def test_a_share_of_the_images(tmp_path: Path) -> None:
    tars = [write_tar(tmp_path / f"{i}.tar", range(5 * i, 5 * i + 5)) for i in range(2)]
    assert SA1BDataset(tars, limit=0.4).image_ids == [0, 1, 2, 3]
    drawn = SA1BDataset(tars, limit=0.4, subset_seed=1).image_ids
    assert len(drawn) == 4
    assert drawn == SA1BDataset(tars, limit=4, subset_seed=1).image_ids != [0, 1, 2, 3]
    assert SA1BDataset(tars, limit=0.01).image_ids == [0]
    for limit in (0, -1, 1.5):
        with pytest.raises(ValueError, match="a share of them below 1"):
            SA1BDataset(tars, limit=limit)
