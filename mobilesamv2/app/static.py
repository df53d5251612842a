"""The page without a server: files that segment in the browser, from any server of plain files."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from mobilesamv2.app.onnxruntime_web import BACKENDS, write_onnxruntime_web
from mobilesamv2.data.synthetic.render import render_scene
from mobilesamv2.export.onnx import MAX_GRAPH_BYTES, export_metadata, export_onnx
from mobilesamv2.export.runtime import require_export_packages
from mobilesamv2.files import atomic_write, remove_partial, write_text_atomic
from mobilesamv2.models.sam import Sam
from mobilesamv2.pretrained import toy_warning

PAGE = Path(__file__).parent / "static"
"""The page itself: HTML, JavaScript and CSS, copied as they are."""

PHOTOS = Path(__file__).parent / "assets"
"""Example photos, those of the page with a server."""

SCENE_SEED, SCENE_SIZE = 11, (384, 512)
"""Seed and size of the synthetic scene among the examples, pixels."""


def write_static_page(sam: Sam, folder: Path, onnxruntime: Path | None = None) -> None:
    """Write a page that segments images in the browser with a model; it sends nothing anywhere.

    ``index.html`` is written last: a folder without it is not complete.

    Args:
        sam: the model, in eval mode on the CPU, as ``export_onnx`` takes it.
        folder: created if missing; other files in it stay, but for what a page that was interrupted left half written.
        onnxruntime: the npm package, as in ``write_onnxruntime_web``.

    Raises:
        FileNotFoundError: as in ``write_onnxruntime_web``.
        ImportError: if a package of the extra ``export`` is not installed.
        ValueError: if the folder has an ``index.html`` of another kind, the model is too large for a browser, or can't
            be exported, or the npm package is another one.
        ConnectionError: if the npm package can't be downloaded.
        OSError: if a file can't be written.
    """
    require_export_packages()  # before anything is downloaded or written
    _require_room(folder)
    nbytes = sum(value.nbytes for value in sam.state_dict().values())
    if nbytes > MAX_GRAPH_BYTES:
        raise ValueError(
            f"{sam.name} has {nbytes / 1e9:.1f} GB of weights, more than a browser loads: choose a smaller model."
        )
    for part in ("", "model", "onnxruntime", "images"):
        remove_partial(folder / part)  # the folder is to be published
    write_onnxruntime_web(folder / "onnxruntime", onnxruntime)
    graphs = export_onnx(sam, folder / "model").paths
    images = _write_images(folder / "images", scene_first=bool(toy_warning(sam)))
    about = _describe(sam, folder, graphs) | {"images": images}
    write_text_atomic(folder / "model" / "model.json", json.dumps(about, indent=1))
    for path in sorted(PAGE.iterdir(), key=lambda path: path.name == "index.html"):
        write_text_atomic(folder / path.name, path.read_text(encoding="utf-8"))


def _require_room(folder: Path) -> None:
    """Check that no other page would be replaced."""
    index = folder / "index.html"
    if index.is_file() and 'content="mobilesamv2"' not in index.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{index} is not a page of mobilesamv2, and would be replaced: choose another folder.")


def _write_images(folder: Path, scene_first: bool) -> list[dict[str, str]]:
    """Write the examples, and return the file and title of each in the order in which the page shows them."""
    with atomic_write(folder / "scene.png") as partial:
        Image.fromarray(render_scene(SCENE_SEED, SCENE_SIZE)[0]).save(partial, "PNG")
    scene = {"file": "images/scene.png", "title": "A synthetic scene"}
    photos = []
    for path in sorted(PHOTOS.glob("*.jpg")):
        with atomic_write(folder / path.name) as partial:
            partial.write_bytes(path.read_bytes())
        photos.append({"file": f"images/{path.name}", "title": f"A photo: {path.stem}"})
    return [scene, *photos] if scene_first else [*photos, scene]


def _describe(sam: Sam, folder: Path, graphs: list[Path]) -> dict[str, Any]:
    """Return what the page needs to know of the model and of its files, whose paths are relative to the page."""
    return export_metadata(sam) | {
        "version": version("mobilesamv2"),
        "note": toy_warning(sam),
        "pred_iou_thresh": sam.thresholds.pred_iou_thresh,
        "stability_score_thresh": sam.thresholds.stability_score_thresh,
        "graphs": {part: _listed(folder, path) for part, path in zip(("encoder", "decoder"), graphs, strict=True)},
        "onnxruntime": {
            backend: {kind: _listed(folder, folder / "onnxruntime" / name) for kind, name in files.items()}
            for backend, files in BACKENDS.items()
        },
    }


def _listed(folder: Path, path: Path) -> dict[str, Any]:
    return {"file": path.relative_to(folder).as_posix(), "nbytes": path.stat().st_size}
