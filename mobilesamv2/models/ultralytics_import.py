"""Imports of ultralytics (AGPL-3.0), which happen only when it is used."""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import tempfile
from typing import Any


def ultralytics_module(module: str) -> Any:
    """Import a module of ultralytics without its settings file, installer or telemetry.

    Ultralytics writes a settings file on import: it goes to a temporary folder that is deleted with the process.
    """
    if "YOLO_CONFIG_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="mobilesamv2-ultralytics-")
        os.environ["YOLO_CONFIG_DIR"] = folder
        atexit.register(_remove_folder, folder, os.getpid())
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    return importlib.import_module(f"ultralytics.{module}")


def _remove_folder(folder: str, process: int) -> None:
    """Remove a folder, only in the process that created it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
