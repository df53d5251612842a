"""Training a detector asks the network for nothing and writes nowhere but into its folder."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

BLOCKED = """
import socket
connect, look_up = socket.socket.connect, socket.getaddrinfo

def refuse(self, address, *rest):
    if self.family != socket.AF_UNIX:
        open({log!r}, "a").write(f"{{address}}\\n")
        raise OSError("no network")
    return connect(self, address, *rest)

def refuse_name(host, *rest, **more):
    open({log!r}, "a").write(f"{{host}}\\n")
    raise socket.gaierror("no network")

socket.socket.connect, socket.getaddrinfo = refuse, refuse_name
"""


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder of temporary files, whose path leaves room for the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="tmp", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.slow
def test_a_run_writes_into_its_folder_alone_and_asks_nobody(tmp_path: Path, short_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("home", "cwd", "site")}
    for folder in folders.values():
        folder.mkdir()
    folders["tmp"] = short_path
    log = tmp_path / "asked"
    (folders["site"] / "sitecustomize.py").write_text(BLOCKED.format(log=str(log)))
    hidden = ("YOLO_", "MPLCONFIGDIR", "XDG_", "TORCH", "WANDB")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    environ |= {"HOME": str(folders["home"]), "TMPDIR": str(folders["tmp"])}
    environ["PYTHONPATH"] = os.pathsep.join([str(folders["site"]), str(ROOT)])
    given = ["experiment=detect_yolov8n_synthetic", "detector.image_size=64", "dataset.limit=4", "batch_size=2"]
    given += ["validation_images=1", "num_workers=1", "trainer.accelerator=cpu", "trainer.max_epochs=1", "model=mini"]
    command = [sys.executable, str(ROOT / "train.py"), *given, "output_dir=out"]
    done = subprocess.run(command, cwd=folders["cwd"], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not log.exists(), log.read_text()
    assert [path.name for path in folders["cwd"].iterdir()] == ["out"]
    assert (folders["cwd"] / "out" / "detector.pt").is_file()
    left = [path for name in ("home", "tmp") for path in folders[name].rglob("*") if not path.is_dir()]
    assert left == []
    assert list(folders["home"].iterdir()) == []
