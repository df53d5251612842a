"""Which of the models that ultralytics describes can be object detectors, and what to say of the others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilesamv2.names import did_you_mean

HEADS = ("Detect", "v10Detect", "Segment", "Segment26")
"""Heads of ultralytics' models that are trained on boxes, or boxes and masks, of a fixed set of classes."""

WEIGHT_SUFFIXES = (".pt", ".pth", ".onnx", ".engine", ".torchscript", ".safetensors")
"""Suffixes by which a weight file is told from a name."""


def require_object_detector(name: str, description: Mapping[str, Any], folder: Path) -> None:
    """Check that a model which ultralytics describes is an object detector, and that its name says its size.

    Args:
        name: that the user chose.
        description: content of its file, with the ``scale`` that ultralytics found in the name.
        folder: of ultralytics' descriptions.

    Raises:
        ValueError: if its head is not one of ``HEADS``, or the name leaves its size open.
    """
    head = description["head"][-1][2]
    if head not in HEADS:
        raise ValueError(
            f"The head of ultralytics' {name} must be one of {', '.join(HEADS)}, got {head}, which is neither trained "
            f"nor run here. {_supported(folder)}"
        )
    sizes = "".join(description.get("scales") or "")
    if len(sizes) > 1 and not description.get("scale"):
        raise ValueError(
            f"architecture must say the size of {name}: one of {', '.join(_with_size(name, size) for size in sizes)}."
        )


def unknown_architecture(name: str, folder: Path) -> str:
    """Return what to say of a name that ultralytics does not know: the way out.

    Args:
        name: that the user chose.
        folder: of ultralytics' descriptions.
    """
    if name.endswith(WEIGHT_SUFFIXES):
        return (
            f"architecture must be the name of an ultralytics model, got the weight file '{name}': name weights by "
            f"checkpoint, on the command line detector.checkpoint={name}, beside the architecture that they are of."
        )
    names = [_with_size(stem, size) for stem, sizes in _described(folder).items() for size in sizes or [""]]
    return (
        f"architecture must be the name of an ultralytics model, such as yolov8n, yolov8x-seg or yolo11s, "
        f"got '{name}'.{did_you_mean(name, names)} {_supported(folder)}"
    )


def _supported(folder: Path) -> str:
    names = [_with_size(stem, f"[{sizes}]" if sizes else "") for stem, sizes in _described(folder).items()]
    return f"Supported, with one of the letters in brackets: {', '.join(names)}."


def _described(folder: Path) -> dict[str, str]:
    """Return the object detectors that ultralytics describes, with the letters of their sizes."""
    import yaml

    found = {path.stem: yaml.safe_load(path.read_text()) for path in folder.rglob("*.yaml")}
    # a single size is part of the name, as in yolov10n
    sizes = {stem: "".join(each.get("scales") or "") for stem, each in found.items() if each["head"][-1][2] in HEADS}
    return {stem: letters if len(letters) > 1 else "" for stem, letters in sorted(sizes.items())}


def _with_size(stem: str, size: str) -> str:
    """Insert a size after the version: ``yolov8-seg`` and ``n`` make ``yolov8n-seg``."""
    return re.sub(r"(\d+)", rf"\g<1>{size}", stem, count=1)
