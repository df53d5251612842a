"""Arrays of files whose headers promise more than there is."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mobilesamv2.files import read_arrays


def npy(shape: tuple[int, ...], values: bytes) -> bytes:
    head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + values


def test_a_header_of_8_tb_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy((10**12,), bytes(80)))
    with pytest.raises(
        ValueError, match=r"a\.npz can't be read \(x\.npy has 80 bytes for an array of 8,000,000,000,000\)"
    ):
        read_arrays(path)


def test_a_record_that_says_it_expands_to_8_tb(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(9))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npy can't have 4,294,967,294 bytes in [0-9]+"):
        read_arrays(path)


def test_arrays_are_numpys(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.array("text"), "c": np.zeros((0, 4), np.float32)}
    arrays["d"] = np.asfortranarray(arrays["a"])
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, **arrays)  # pyright: ignore
        (tmp_path / "a.npz").write_bytes(stream.getvalue())
        read = read_arrays(tmp_path / "a.npz")
        assert {name: (each.dtype, each.tolist()) for name, each in read.items()} == {
            name: (each.dtype, each.tolist()) for name, each in arrays.items()
        }


def test_arrays_that_are_not_asked_for_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy((2,), bytes(16)))
        archive.writestr("damaged.npy", b"")
    assert {name: array.tolist() for name, array in read_arrays(path, ["x", "absent"]).items()} == {"x": [0.0, 0.0]}
    with pytest.raises(ValueError, match=r"a\.npz can't be read"):
        read_arrays(path)
