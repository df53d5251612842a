"""Loaders whose workers the system kills, and output that nobody reads."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import ROOT
from support.disks import small_disk
from support.runs import SMALL, composed, evaluate_here
from torch.utils.data import DataLoader, TensorDataset

from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.loader_failures import SOCKET_NAME, SOCKET_PATH_BYTES, check_socket_folder, loader_failure
from mobilesamv2.recipes.errors import errors_without_traceback
from mobilesamv2.recipes.train import main as train

KILLED = r"^error: A worker of the loader (\(process \d+\) )?was killed, most likely as memory ran out\. Lower "
SCENES = [
    "dataset=synthetic",
    "dataset._target_=support.killed_scenes.KilledScenes",
    "dataset.size=[64,64]",
    "num_workers=1",
]


@pytest.mark.slow
def test_a_killed_worker_of_an_evaluation_is_a_sentence_and_results_are_kept(tmp_path: Path) -> None:
    given = ["model=micro_conv", "prompt_sampler.points_per_side=2", "dataset.limit=12", "trainer.accelerator=cpu"]
    with pytest.raises(SystemExit, match=KILLED):
        evaluate_here(*SCENES, *given, "+trainer.enable_progress_bar=false", f"output_dir={tmp_path}")
    [kept] = (tmp_path / "progress").glob("*.npz")
    assert np.load(kept)["image_id"].tolist()[:3] == [0, 1, 2]
    assert not (tmp_path / "run.lock").exists()


@pytest.mark.parametrize(
    ("task", "noticed"),
    [("distill", "by a signal"), ("cache_teacher", "by a signal"), ("cache_teacher", "as it lacks")],
)
def test_a_killed_worker_of_training_is_a_sentence_and_embeddings_are_kept(
    tmp_path: Path, task: str, noticed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every embedding that was stored when the kill was noticed is on disk, whatever notices it."""
    stored: set[str] = set()

    def write(cache: EmbeddingCache, image_ids: Sequence[int], *args: Any) -> None:
        unrecorded(cache, image_ids, *args)
        stored.update(map(str, image_ids))

    unrecorded = EmbeddingCache.write
    monkeypatch.setattr(EmbeddingCache, "write", write)
    if noticed == "as it lacks":  # torch's handler of SIGCHLD raises at once, the loader itself after some seconds
        monkeypatch.setattr("torch.utils.data._utils.signal_handling._set_SIGCHLD_handler", lambda: None)
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    else:
        handler = signal.getsignal(signal.SIGCHLD)
    given = [*SMALL, f"task={task}", *SCENES, "dataset.limit=24", "validation_images=2", "trainer.max_epochs=1"]
    given += ["batch_size=2", "trainer.accelerator=cpu", "+trainer.enable_progress_bar=false"]
    given += ["task.largest_batch=2"] if task == "cache_teacher" else []  # or the teacher would wait for all images
    try:
        with pytest.raises(SystemExit, match=KILLED):
            train(composed(*given, f"paths.data={tmp_path}", f"output_dir={tmp_path}", primary="train"))
    finally:
        signal.signal(signal.SIGCHLD, handler)
    kept = {
        key.partition(".")[0]
        for shard in (tmp_path / "embeddings" / "sam_vit_mini").glob("*.safetensors")
        for key in load_file(shard)
    }
    # The worker is two batches ahead at most: it draws the eleventh scene once the fourth batch was taken.
    assert len(stored) >= 6
    assert stored <= kept
    assert not (tmp_path / "run.lock").exists()


def test_full_shared_memory_is_a_sentence() -> None:
    """The limit on the size of files is one on shared memory too."""
    loader = DataLoader(TensorDataset(torch.zeros(4, 100_000)), batch_size=4, num_workers=1)
    full = r"^error: Shared memory \(/dev/shm\), .* is full: raise it \(docker run --shm-size=8g\), lower num_workers"
    with small_disk(), pytest.raises(SystemExit, match=full), errors_without_traceback():
        next(iter(loader))


@pytest.mark.skipif(os.name != "posix", reason="no Unix sockets")
def test_temporary_files_in_a_folder_with_a_long_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket can be opened where the check passes, and not in a folder whose path has one byte more."""
    longest = SOCKET_PATH_BYTES - len(SOCKET_NAME)
    with tempfile.TemporaryDirectory(dir="/tmp") as base, contextlib.closing(socket.socket(socket.AF_UNIX)) as opened:
        fits, too_long = (Path(base) / ("é" + "x" * (length - len(base) - 3)) for length in (longest, longest + 1))
        for folder in (fits, too_long):
            (folder / Path(SOCKET_NAME).parts[1]).mkdir(parents=True)
        monkeypatch.setattr(tempfile, "tempdir", str(fits))
        check_socket_folder(num_workers=1)
        opened.bind(f"{fits}{SOCKET_NAME}")
        monkeypatch.setattr(tempfile, "tempdir", str(too_long))
        sentence = (
            f"at most {longest} bytes .* got {longest + 1}: {too_long}. Set TMPDIR to another one, or num_workers=0."
        )
        with pytest.raises(ValueError, match=sentence):
            check_socket_folder(num_workers=1)
        with pytest.raises(OSError, match="AF_UNIX path too long"):
            socket.socket(socket.AF_UNIX).bind(f"{too_long}{SOCKET_NAME}")
        check_socket_folder(num_workers=0)


def test_other_errors_are_none_of_a_loader() -> None:
    assert loader_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert loader_failure(FileNotFoundError("There is no file a.tar.")) is None
    bus = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out"
    assert str(loader_failure(RuntimeError(bus))).startswith("Shared memory")
    exits = "DataLoader worker (pid(s) 7, 8) exited unexpectedly"
    assert "(process 7, 8) was killed" in str(loader_failure(RuntimeError(exits), "--workers"))


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_broken_pipe_is_quiet(tmp_path: Path, unbuffered: str) -> None:
    result = '{"metrics": {"AR@1": 1, "mAR": 1}, "interval": {"AR@1": null, "mAR": null}, "n_gt": {"all": 1},'
    result += ' "protocol": {"ks": [1], "num_images": 1}}'
    (tmp_path / "results.json").write_text(result)
    program = [sys.executable, "-m", "mobilesamv2", "report", "table", str(tmp_path)]
    environ = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as reader:
        reader.wait()
        assert reader.stdin is not None
        kept = {"stderr": subprocess.PIPE, "text": True, "env": environ, "cwd": ROOT}
        done = subprocess.run(program, stdout=reader.stdin, check=False, **kept)  # pyright: ignore
        reader.stdin.close()
    assert (done.returncode, done.stderr) == (141, "")
