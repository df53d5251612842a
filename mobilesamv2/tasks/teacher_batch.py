"""How many images a teacher encodes at once: as many as memory allows, and the same number throughout a cache.

An embedding's last bits depend on the shape of the batch that it was encoded in, and on nothing else of the batch. All
jobs of task=cache_teacher that fill a cache therefore encode equally many images at once, short rests filled up; its
folder records how many. A task that trains encodes what the cache lacks in batches of its own.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

RECORD = "teacher_batch.json"
"""File of the number, in the folder of a cache."""

MEMORY_SHARE = 0.8
"""Share of the available memory of a CPU that a batch may take."""

LEAST_COPIES = 8
"""Bytes that an image takes at least, in multiples of its pixels: a network of milliseconds escapes the measurement."""


def find_batch(encode: Callable[[Tensor], object], shape: tuple[int, int, int], largest: int, device: str) -> int:
    """Return how many images fit at once, at most ``largest``: by trying, and halving where memory runs out.

    A CPU does not say that its memory runs out, it ends the program: there one image is encoded, and the memory that it
    takes is divided into what is available.

    Args:
        encode: the teacher's image encoder.
        shape: (3, S, S) of its input.
        largest: images at once, at most.
        device: of the encoder.

    Raises:
        ValueError: if not even one image fits.
    """
    if torch.device(device).type == "cpu":
        pixels = torch.zeros(1, *shape)
        each = max(peak_growth(lambda: encode(pixels)), LEAST_COPIES * pixels.nbytes)
        return max(1, min(largest, int(available_bytes() * MEMORY_SHARE) // each))
    batch = largest
    while batch:
        try:
            pixels = torch.zeros(batch, *shape, device=device)
            waiting = pixels.clone()  # images that wait for the next batch take memory, too
            encode(pixels)
            del waiting
            return batch
        except torch.OutOfMemoryError:
            batch //= 2
        finally:
            pixels = waiting = None
            torch.cuda.empty_cache()
    raise ValueError(
        f"The memory of {device} must hold one image of {shape[-1]} pixels in the teacher, and does not: end what else "
        "runs there, or choose a smaller teacher."
    )


def agree_on_batch(folder: Path, largest: int, find: Callable[[int], int]) -> int:
    """Return how many images all processes that fill a cache encode at once: what the first of them found.

    The record is linked into place, which fails where there is one: no process waits for another, on NFS too. A limit
    other than that of the first one changes nothing any more, and the log says so.

    Args:
        folder: of the cache.
        largest: images at once, at most.
        find: returns how many fit here, given ``largest``; called where nothing is recorded.

    Raises:
        ValueError: if the record can't be read.
    """
    path = folder / RECORD
    if not path.is_file():
        partial = folder / f"{os.getpid()}-{os.urandom(4).hex()}.partial"
        partial.write_text(json.dumps({"images": find(largest), "largest_batch": largest}))
        try:
            os.link(partial, path)
        except FileExistsError:
            pass  # another process was first
        except OSError:  # a disk without links
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    images, recorded = _read(path)
    # earlier versions recorded no limit: theirs may have been above what memory allowed
    changes_nothing = largest < images if recorded is None else largest != recorded
    if changes_nothing:
        logger.warning(
            "%s says that the embeddings there are encoded %d at once, and task.largest_batch=%d changes nothing; "
            "another cache.folder begins anew.",
            path,
            images,
            largest,
        )
    return images


def _read(path: Path) -> tuple[int, int | None]:
    """Return the number of images, and the limit that it was found with; earlier versions recorded none."""
    try:
        record = json.loads(path.read_text())
        images, largest = record["images"], record.get("largest_batch")
        for value in (images, *([] if largest is None else [largest])):
            if type(value) is not int or value < 1:
                raise ValueError(f"a number of images is {value!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} can't be read ({error!r}); delete that file and the cache beside it.") from error
    return images, largest


def available_bytes() -> int:
    """Return the memory that programs can still take on this machine, or in this control group if it has less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        [line] = [line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")] or ["x: 0 kB"]
        free = max(free, int(line.split()[1]) * 1024)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(free, 0)


def peak_growth(function: Callable[[], object]) -> int:
    """Return the bytes by which this process grows while a function runs; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return 0
    done, sizes = threading.Event(), [_resident(statm)]

    def watch() -> None:
        while not done.wait(0.002):
            sizes.append(_resident(statm))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        function()
        sizes.append(_resident(statm))
    finally:
        done.set()
        watcher.join()
    return max(sizes) - sizes[0]


def _resident(statm: Path) -> int:
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
