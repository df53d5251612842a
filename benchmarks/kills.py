"""Kill runs at random moments, resume them by the same command, and compare them with runs that were left alone.

    python benchmarks/kills.py                                           # 20 kills; exit status 1 on a difference
    python benchmarks/kills.py --kills 100 --seed 1 --tar sa_000000.tar  # on photos of a tar of SA-1B instead of scenes

Every second signal is SIGKILL, the others SIGTERM. A run saves after every step. What is compared, bit for bit: the
teacher's embeddings of each image; the last and the best weights of a student and of a detector; metrics, intervals and
counts of an evaluation. Programs start from one process that has imported everything, so that kills meet their work.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
IMPORTED = [
    "mobilesamv2.recipes.training",
    "mobilesamv2.recipes.distill",
    "mobilesamv2.recipes.cache_teacher",
    "mobilesamv2.recipes.segment_everything",
    "ultralytics.nn.tasks",
]


class Program(NamedTuple):
    """A program in miniature, and what it leaves.

    Attributes:
        name: in the table.
        file: train.py or evaluate.py.
        overrides: of its configuration; ``{folder}`` is that of the run.
        read: returns what is compared, by name.
    """

    name: str
    file: str
    overrides: list[str]
    read: Callable[[Path], dict[str, Any]]


def programs(tar: Path | None) -> list[Program]:
    """Return the four programs, on a tar's photos or on synthetic scenes."""
    data = ["dataset=synthetic"] if tar is None else ["dataset=sa1b", f"dataset.tars={tar}"]
    every = [*data, "num_workers=0", "trainer.accelerator=cpu", "+trainer.enable_progress_bar=false"]
    training = [*every, "dataset.limit=24", "batch_size=4", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"]
    training += ["checkpoint_minutes=1e-6", "paths.data={folder}/data", "output_dir={folder}"]
    fitting = [*training, "validation_images=4", "task.warmup_images=4"]
    teacher = "model@teacher=mini_conv"
    student = ["experiment=distill_tinyvit", "model=micro_conv", teacher]
    detector = ["experiment=detect_yolov8n_synthetic", "detector.image_size=128", "ema=0.9"]
    boxes = ["prompt_sampler=grid_proposals", "prompt_sampler.points_per_side=8", "output_dir={folder}"]
    return [
        Program("embeddings", "train.py", ["experiment=cache_teacher", teacher, *training], read_embeddings),
        Program("distillation", "train.py", [*student, *fitting], read_weights),
        Program("detector", "train.py", [*detector, *fitting], read_weights),
        Program("evaluation", "evaluate.py", ["model=mini_conv", *every, "dataset.limit=16", *boxes], read_results),
    ]


def read_embeddings(folder: Path) -> dict[str, Any]:
    """Return the tensors of all shards, whose limits a kill may move."""
    from safetensors.torch import load_file

    return {
        key: value for path in folder.rglob("embeddings/**/*.safetensors") for key, value in load_file(path).items()
    }


def read_weights(folder: Path) -> dict[str, Any]:
    """Return the tensors of the last weights and of the best."""
    from safetensors.torch import load_file

    from mobilesamv2.models.object_detector import build_detector

    found: dict[str, Any] = {}
    for part in (folder, folder / "best"):
        for path in part.glob("*.safetensors"):
            found |= {f"{part.name == 'best'} {key}": value for key, value in load_file(path).items()}
        for path in part.glob("*.pt"):
            state = build_detector(checkpoint=path).state_dict()
            found |= {f"{part.name == 'best'} {key}": value for key, value in state.items()}
    return found


def read_results(folder: Path) -> dict[str, Any]:
    """Return an evaluation without its times."""
    from mobilesamv2.files import read_arrays

    results = json.loads((folder / "results.json").read_text())
    found = {key: results[key] for key in ("metrics", "interval", "n_gt", "protocol")}
    arrays = read_arrays(folder / "per_image.npz")
    return found | {key: values.tolist() for key, values in arrays.items() if "ms" not in key}


def is_same(one: Any, other: Any) -> bool:
    """Return whether two values are the same, bit for bit."""
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and repr(one) == repr(other)  # so that nan is nan


def work(file: str, overrides: list[str], log: Path) -> None:
    """Run a program, in a process of its own, as the command line would."""
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.argv = [file, *overrides]
    sys.path.insert(0, str(ROOT))
    runpy.run_path(str(ROOT / file), run_name="__main__")


def start(program: Program, folder: Path) -> Any:
    """Start a program in a folder and return its process."""
    folder.mkdir(parents=True, exist_ok=True)
    overrides = [override.format(folder=folder) for override in program.overrides]
    process: Any = SERVER.Process(target=work, args=(program.file, overrides, folder.with_suffix(".log")))
    process.start()
    return process


def finish(process: Any, folder: Path) -> None:
    """Wait for a program that is to end by itself."""
    process.join()
    if process.exitcode:
        raise SystemExit(f"{folder} ended with {process.exitcode}:\n{folder.with_suffix('.log').read_text()[-3000:]}")


def differences(program: Program, kills: int, folder: Path, draw: random.Random) -> tuple[list[str], int]:
    """Kill a program so many times, in one folder after another; return what differs, and the runs that were done."""
    began = time.monotonic()
    finish(start(program, folder / "whole"), folder / "whole")
    seconds = time.monotonic() - began
    expected = program.read(folder / "whole")
    wrong, runs, landed = [] if expected else ["nothing was written"], 0, 0
    while landed < kills:
        run = folder / f"killed{runs}"
        while True:
            process = start(program, run)
            process.join(draw.uniform(0, seconds) if landed < kills else None)
            if process.exitcode is not None:
                finish(process, run)
                break
            number = (signal.SIGKILL, signal.SIGTERM)[landed % 2]
            os.kill(process.pid, number)
            process.join()
            if process.exitcode == 0:  # it was about to end
                break
            if process.exitcode not in (-number, 128 + number):
                finish(process, run)
            landed += 1
        found, runs = program.read(run), runs + 1
        names = sorted(expected.keys() | found.keys())
        wrong += [f"{run}: {name}" for name in names if not is_same(expected.get(name), found.get(name))]
        shutil.rmtree(run)
    return wrong, runs


def main() -> None:
    """Print a table of the four programs; exit with 1 if a killed run differs from one that was not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tar", type=Path, help="a tar of SA-1B; without one, synthetic scenes")
    args = parser.parse_args()
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # of the locks of killed programs
    SERVER.set_forkserver_preload(IMPORTED)
    draw, all_wrong = random.Random(args.seed), []
    todo = programs(args.tar and args.tar.absolute())
    print(f"{'program':14}{'kills':>7}{'runs':>6}{'differences':>13}{'minutes':>9}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for i, program in enumerate(todo):
            began, kills = time.monotonic(), args.kills // len(todo) + (i < args.kills % len(todo))
            wrong, runs = differences(program, kills, Path(temporary) / program.name, draw)
            minutes = (time.monotonic() - began) / 60
            print(f"{program.name:14}{kills:7}{runs:6}{len(wrong):13}{minutes:9.1f}", flush=True)
            all_wrong += wrong
    for name in all_wrong[:20]:
        print(name, file=sys.stderr)
    raise SystemExit(bool(all_wrong))


if __name__ == "__main__":
    main()
