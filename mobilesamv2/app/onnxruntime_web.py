"""onnxruntime-web, which runs graphs in a browser: its npm package of one version, checked, and the files needed."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import platformdirs

from mobilesamv2.downloads import download
from mobilesamv2.files import atomic_write
from mobilesamv2.model_zoo import DOWNLOAD_VARIABLE, download_setting

VERSION = "1.30.0"

URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"

INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Hash of the package, as the registry states it and lock files write it."""

BACKENDS: Mapping[str, Mapping[str, str]] = {
    "wasm": {
        "script": "ort.wasm.min.mjs",
        "glue": "ort-wasm-simd-threaded.mjs",
        "wasm": "ort-wasm-simd-threaded.wasm",
    },
    "webgpu": {
        "script": "ort.webgpu.min.mjs",
        "glue": "ort-wasm-simd-threaded.asyncify.mjs",
        "wasm": "ort-wasm-simd-threaded.asyncify.wasm",
    },
}
"""Backend -> its files in the package's folder ``dist``: what a page imports, and what that loads."""

WAY_OUT = f"`npm pack onnxruntime-web@{VERSION}` writes the file, and --onnxruntime FILE reads it."
"""How to go on where the package can't be downloaded."""


def write_onnxruntime_web(folder: Path, source: Path | None = None) -> None:
    """Write the files of ``BACKENDS`` into a folder.

    Args:
        folder: created if missing.
        source: the package as ``npm pack`` writes it, or its folder in ``node_modules``; None downloads it, once, into
            the user's cache.

    Raises:
        FileNotFoundError: if ``source`` or a file of it does not exist, or the package may not be downloaded.
        ValueError: if the package is another one or another version.
        ConnectionError: if it can't be downloaded.
        OSError: if a file can't be written.
    """
    files = _read_package(_download() if source is None else source)
    for name, content in files.items():
        with atomic_write(folder / name) as partial:
            partial.write_bytes(content)


def _download() -> Path:
    """Return the package in the user's cache, downloaded if it is not there."""
    path = Path(platformdirs.user_cache_dir("mobilesamv2")) / URL.rpartition("/")[2]
    if not path.is_file():
        if download_setting() is False:
            raise FileNotFoundError(
                f"There is no onnxruntime-web in {path}, and {DOWNLOAD_VARIABLE}, CI or HF_HUB_OFFLINE forbids its "
                f"download. {WAY_OUT}"
            )
        print(f"downloading onnxruntime-web {VERSION} (33 MB, MIT, from {URL}) to {path}", file=sys.stderr)
        try:
            download(URL, path)
        except ConnectionError as error:
            raise ConnectionError(f"{error} Or {WAY_OUT}") from error
        try:
            _require_integrity(path)
        except ValueError:
            path.unlink()  # so that the next call downloads it again
            raise
    return path


def _read_package(source: Path) -> dict[str, bytes]:
    """Return the needed files of a package by name."""
    if not source.exists():
        raise FileNotFoundError(f"There is no onnxruntime-web at {source}. {WAY_OUT}")
    names = [name for files in BACKENDS.values() for name in files.values()]
    if source.is_file():
        _require_integrity(source)
        with tarfile.open(source) as package:
            return {name: _member(package, f"package/dist/{name}") for name in names}
    _require_version(source)
    missing = [name for name in names if not (source / "dist" / name).is_file()]
    if missing:
        raise FileNotFoundError(f"There is no dist/{missing[0]} in {source}: the package is incomplete. {WAY_OUT}")
    return {name: (source / "dist" / name).read_bytes() for name in names}


def _member(package: tarfile.TarFile, name: str) -> bytes:
    content = package.extractfile(name)
    assert content is not None, f"{name} is a file in the package whose hash is INTEGRITY"
    return content.read()


def _require_integrity(path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    found = f"sha512-{base64.b64encode(digest).decode()}"
    if found != INTEGRITY:
        raise ValueError(
            f"{path} must be the npm package onnxruntime-web {VERSION}, whose integrity is {INTEGRITY}, got {found}. "
            f"{WAY_OUT}"
        )


def _require_version(folder: Path) -> None:
    try:
        about = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        found = f"{about['name']} {about['version']}"
    except (OSError, ValueError, KeyError, TypeError):
        found = "no package.json with a name and a version"
    if found != f"onnxruntime-web {VERSION}":
        raise ValueError(f"{folder} must be the npm package onnxruntime-web {VERSION}, got {found}. {WAY_OUT}")
