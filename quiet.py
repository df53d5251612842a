"""Imported before all else: torchmetrics imports matplotlib, which writes its list of fonts into the home directory."""

import atexit
import os
import shutil
import tempfile


def _remove(folder: str, process: int) -> None:
    """Removes a folder, in the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


if "MPLCONFIGDIR" not in os.environ:
    os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="mobilesamv2-matplotlib-")
    atexit.register(_remove, os.environ["MPLCONFIGDIR"], os.getpid())
