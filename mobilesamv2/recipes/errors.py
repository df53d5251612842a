"""A user's mistakes become sentences, and a library's noise is left out."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import InstantiationException
from omegaconf import MissingMandatoryValue

from mobilesamv2.broken_pipe import quiet_broken_pipe
from mobilesamv2.data.loader_failures import loader_failure
from mobilesamv2.extras import missing_library
from mobilesamv2.recipes.schema import CONF


@contextmanager
def errors_without_traceback() -> Iterator[None]:
    """End the program with one sentence, and no traceback, where a file is missing or a value makes no sense.

    ``HYDRA_FULL_ERROR=1`` shows the traceback all the same.
    """
    try:
        with quiet_broken_pipe():
            yield
    except MissingMandatoryValue as error:
        key = str(error).splitlines()[0].rpartition(": ")[2]
        way_out = f"{key}=NAME, one of conf/{key}" if (CONF / key).is_dir() else f"{key}=VALUE"
        raise SystemExit(f"error: {key} must be chosen for this run: {way_out}.") from error
    except (RuntimeError, MemoryError, EOFError) as error:
        sentence = loader_failure(error)
        if sentence is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        raise SystemExit(f"error: {sentence}") from error
    except (OSError, ValueError, ImportError, InstantiationException) as error:
        reason = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(reason, OSError | ValueError | ImportError) or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sentence = missing_library(reason) if isinstance(reason, ImportError) else loader_failure(reason) or reason
        raise SystemExit(f"error: {sentence}") from error


def silence_warnings() -> None:
    """Leave out what Lightning prints that no user of these programs can act on."""
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",  # its own use of torch
        ".*does not have many workers.*",  # num_workers is in conf
        ".*Experiment logs directory .* exists.*",  # checkpoints and log share output_dir
        r".*module\(s\) in eval mode at the start.*",  # teachers and frozen parts; the tasks set the modes
        ".*Checkpoint directory .* exists and is not empty.*",  # a run that resumes
        ".*`srun` command is available on your system but is not used.*",
        ".*is smaller than the logging interval.*",  # the end of an epoch is logged all the same
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # devices, and what it does next


def keep_matplotlib_out_of_home() -> None:
    """Have matplotlib, which torchmetrics imports, write its list of fonts into a temporary folder.

    To be called before anything imports it.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it says that it lists its fonts anew
    if "MPLCONFIGDIR" not in os.environ:
        os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="mobilesamv2-matplotlib-")
        atexit.register(_remove, os.environ["MPLCONFIGDIR"], os.getpid())


def _remove(folder: str, process: int) -> None:
    """Remove a folder, in the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
