"""Mutations: what turns a sound file into a damaged or malicious one, by the kind of its content.

Each takes the bytes of a sound file and a generator of random numbers, and returns other bytes.
"""

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from support.corrupt_inputs import JUNK_VALUES, places, spoilt

Mutation = Callable[[bytes, random.Random], bytes]

CANARY = Path(__file__).parents[1] / "canary"
"""A file that no reader may create: every pickle and YAML of these tests asks for it."""


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(CANARY), "w"))


YAML_PAYLOAD = f"!!python/object/apply:builtins.open ['{CANARY}', 'w']"


def any_bytes(content: bytes, rng: random.Random) -> bytes:
    """Changes, removes, repeats or inserts bytes, near the ends half the time, or cuts the file off."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        near = rng.choice([64, 3000, len(changed), len(changed)])
        place = rng.randrange(max(1, min(near, len(changed)))) * rng.choice([1, -1]) % max(1, len(changed))
        length = rng.choice([1, 4, 100])
        kind = rng.choice(["bit", "bit", "byte", "zeros", "remove", "repeat", "insert", "cut"])
        if kind == "bit" and changed:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == "byte" and changed:
            changed[place] = rng.randrange(256)
        elif kind == "zeros":
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        elif kind == "remove":
            del changed[place : place + length]
        elif kind == "repeat":
            changed[place:place] = changed[place : place + length]
        elif kind == "insert":
            changed[place:place] = rng.randbytes(length)
        elif kind == "cut":
            del changed[place:]
    return bytes(changed)


def one_bit(content: bytes, rng: random.Random) -> bytes:
    """Changes a bit anywhere, as a bad disk does."""
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def json_values(content: bytes, rng: random.Random) -> bytes:
    """Replaces or removes one to three values of a JSON file."""
    value = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 3])):
        path = rng.choice(places(value))
        value = spoilt(value, path, rng.choice(JUNK_VALUES), bool(path) and rng.random() < 0.3)
    return json.dumps(value).encode()


def json_text(content: bytes, rng: random.Random) -> bytes:
    """Another text in the place of JSON."""
    return rng.choice([b"", b"null", b"[]", b"{}", b"3", b'"x"', b"[" * 100_000, b"9" * 5000, b"\xff\xfe\x00", b"{}{}"])


def zip_members(content: bytes, rng: random.Random) -> bytes:
    """Changes the bytes of a record of a zip, with checksums that are right again."""
    return _rewritten(content, rng, lambda name, data: any_bytes(data, rng))


def zip_pickles(content: bytes, rng: random.Random) -> bytes:
    """Puts a pickle that runs code into a record of a zip: an array of objects, or torch's own pickle."""

    def payload(name: str, data: bytes) -> bytes:
        if not name.endswith(".npy"):
            return pickle.dumps({"state_dict": Payload(), "model": Payload()}, protocol=2)
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.array([Payload()], object), allow_pickle=True)
        return stream.getvalue()

    return _rewritten(content, rng, payload, prefer="data.pkl")


def npz_headers(content: bytes, rng: random.Random) -> bytes:
    """Gives an array of an .npz another shape or type: of no axes, of other lengths, of 8 TB."""

    def other(name: str, data: bytes) -> bytes:
        shape = rng.choice([(), (0,), (1,), (3,), (2, 2), (10**12,), (2**62, 4), (-1,)])
        kind = rng.choice(["<f8", "<i8", "<U3", "|b1", "<c16", "|O", "|S1", "[('a', '<f8')]"])
        head = f"{{'descr': {kind if kind[0] == '[' else repr(kind)}, 'fortran_order': False, 'shape': {shape}}}\n"
        values = rng.choice([b"", bytes(8), bytes(100), data[-64:]])
        if rng.random() < 0.5 and 0 <= np.prod(shape, dtype=float) < 100 and kind != "|O":
            values = bytes(int(np.prod(shape)) * np.dtype("<f8" if kind[0] == "[" else kind).itemsize)
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + values

    return _rewritten(content, rng, other)


def safetensors_header(content: bytes, rng: random.Random) -> bytes:
    """Changes values in the header of safetensors, JSON within JSON included, with a length that is right again."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__")
    if metadata and rng.random() < 0.6:
        key = rng.choice(sorted(metadata))
        mutate = rng.choice([json_values, json_values, json_text, any_bytes])
        metadata[key] = mutate(metadata[key].encode(), rng).decode("utf-8", "replace")
        text = json.dumps(header).encode()
    else:
        text = json_values(json.dumps(header).encode(), rng)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def tar_headers(content: bytes, rng: random.Random) -> bytes:
    """Changes a byte of a header of a tar, with a checksum that is right again."""
    changed = bytearray(content)
    head = rng.choice([i for i in range(0, len(content), 512) if content[i : i + 3] == b"sa_"])
    changed[head + rng.randrange(512)] = rng.choice([rng.randrange(256), rng.choice(b"01234567 \0")])
    changed[head + 148 : head + 156] = b" " * 8
    changed[head + 148 : head + 156] = b"%06o\0 " % sum(changed[head : head + 512])
    return bytes(changed)


def onnx_metadata(content: bytes, rng: random.Random) -> bytes:
    """Changes the JSON in the metadata of an ONNX graph."""
    import onnx

    graph = onnx.load_from_string(content)
    entry = rng.choice(graph.metadata_props)
    mutate = rng.choice([json_values, json_text])
    entry.value = mutate(entry.value.encode(), rng).decode("utf-8", "replace")
    return graph.SerializeToString()


def lines_of_text(content: bytes, rng: random.Random) -> bytes:
    """Changes a line of a text or of YAML."""
    lines = content.decode().splitlines()
    junk = [
        "",
        "- [",
        "{",
        "a: *b",
        "\t",
        "null",
        "3",
        "- ",
        "ä\x00",
        "- " * 2000,
        f"x: {YAML_PAYLOAD}",
        f"- {YAML_PAYLOAD}",
    ]
    lines[rng.randrange(len(lines))] = rng.choice(junk)
    return "\n".join(rng.choice([lines, lines, [rng.choice(junk)]])).encode()


def _rewritten(
    content: bytes, rng: random.Random, change: Callable[[str, bytes], bytes], prefer: str | None = None
) -> bytes:
    """Writes a zip anew with one record changed: the one whose name ends with ``prefer``, or any."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as sound, zipfile.ZipFile(written, "w") as archive:
        names = sound.namelist()
        chosen = rng.choice([name for name in names if prefer and name.endswith(prefer)] or names)
        for name in names:
            data = sound.read(name)
            archive.writestr(name, change(name, data) if name == chosen else data)
    return written.getvalue()
