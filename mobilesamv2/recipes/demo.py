"""The papers in miniature on synthetic scenes: distil, fine-tune the detector, evaluate, and check the claims.

Read from top to bottom: the jobs, and how they are run. Each job is a command of this program with one thread; as many
run at a time as ``workers``. A job that is done is not run again, and one that was stopped resumes. However the demo
ends, its jobs end with it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from subprocess import Popen

from mobilesamv2.data.json_files import read_json
from mobilesamv2.files import sha256_of, write_text_atomic
from mobilesamv2.model_zoo import PACKAGE_WEIGHTS
from mobilesamv2.recipes.processes import sigterm_raises, start, stop
from mobilesamv2.recipes.progress import job_bar

TEACHER, STUDENT, DETECTOR = "mini_conv", "mini_conv_slim", "mini_detector.pt"

LIBRARIES = ("hydra", "pytorch_lightning", "lvis", "tabulate", "jinja2", "matplotlib", "ultralytics")
"""Looked for before the first job, so that what is missing is not found after some of them."""

GRIDS = (32, 16)
"""Points per side of the grids that the boxes are compared with on all scenes."""

START_SCENES = 40
"""The first test scenes, on which the student is measured before it is distilled."""

DENSE = 64
"""Points per side of the grid that the paper compares AR with; 20 times the boxes' time, hence fewer scenes."""

BOXES = ("prompt_sampler.confidence=0.004", "prompt_sampler.detector_nms_iou=0.75",
         "prompt_sampler.snap=0")  # fmt: skip
"""Settings of the detector's boxes, about 150 of a scene."""


@dataclass(frozen=True)
class Job:
    """A command, what it waits for, and what it leaves.

    Attributes:
        name: of its line and its log.
        arguments: after ``mobilesamv2``.
        output: a file or folder that is there once the job is done.
        needs: names of the jobs before it.
        seconds: that it takes on one idle core, for the time that is left.
    """

    name: str
    arguments: tuple[str, ...]
    output: Path
    needs: tuple[str, ...]
    seconds: float


def demo_jobs(folder: Path, seed: int, scenes: int, dense_scenes: int) -> list[Job]:
    """Return the jobs of the demo, in an order in which they can run.

    Args:
        folder: to write into.
        seed: of the test scenes; those to train on have the next one.
        scenes: test scenes.
        dense_scenes: the first of them, on which the grid of 64 x 64 is measured.
    """
    test, runs = folder / "test", folder / "runs"
    student, detector = folder / "student", folder / "detector"
    teacher = str(PACKAGE_WEIGHTS / f"{TEACHER}.safetensors")
    shipped_detector = str(PACKAGE_WEIGHTS / DETECTOR)
    tar = folder / "train.tar"  # rendering each scene once takes less time than in each epoch
    training = ("dataset=sa1b", f"dataset.tars={tar}", "num_workers=0")
    jobs = [
        Job(
            "test-scenes",
            ("synthesize", str(test), f"--scenes={scenes}", f"--seed={seed}", "--split=test", "--workers=0"),
            test / "annotations.json",
            (),
            8,
        ),
        Job(
            "train-scenes",
            ("synthesize", str(tar), "--scenes=384", f"--seed={seed + 1}", "--workers=0"),
            tar,
            (),
            10,
        ),
        Job(
            "distill-student",
            ("train", "experiment=distill_slim_synthetic", *training, f"teacher.checkpoint={teacher}",
             "dataset.limit=384", "trainer.max_epochs=1", f"output_dir={student}"),
            student / "mini_conv_slim.safetensors",
            ("train-scenes",),
            60,
        ),
        Job(
            "finetune-detector",
            ("train", "experiment=finetune_detector_synthetic", *training, f"detector.checkpoint={shipped_detector}",
             "dataset.limit=224", "task.warmup_images=32", f"output_dir={detector}"),
            detector / "detector.pt",
            ("train-scenes",),
            60,
        ),
    ]  # fmt: skip
    evaluate = (
        "evaluate", "dataset=lvis", f"dataset.annotations={test / 'annotations.json'}",
        f"dataset.images={test / 'images'}", "num_workers=0", "task.save_masks=true",
    )  # fmt: skip
    student_model = ("model=by_name", f"model.name={STUDENT}")
    models = {
        "teacher": ("model=mini_conv", f"model.checkpoint={teacher}"),
        "student": (*student_model, f"model.checkpoint={student / 'mini_conv_slim.safetensors'}"),
    }
    boxes = (
        "prompt_sampler=object_aware",
        "detector=mini_detector",
        f"detector.checkpoint={detector / 'detector.pt'}",
        *BOXES,
    )
    trained = ("distill-student", "finetune-detector", "test-scenes")

    def evaluation(output: Path, needs: tuple[str, ...], seconds: float, *settings: str) -> Job:
        name = output.name if output.parent == runs else f"{output.name}-{output.parent.name}"
        return Job(name, (*evaluate, *settings, f"output_dir={output}"), output / "results.json", needs, 6 + seconds)

    def grid(parent: Path, points: int, number: int, *settings: str) -> Job:
        sampler = ("prompt_sampler=grid_proposals", f"prompt_sampler.points_per_side={points}")
        output, seconds = parent / f"teacher-grid-{points}", number * points**2 / 580
        return evaluation(output, ("test-scenes",), seconds, *models["teacher"], *sampler, *settings)

    dense, few = folder / "dense", f"dataset.limit={dense_scenes}"
    jobs += [grid(runs, points, scenes) for points in GRIDS]
    jobs.append(grid(dense, DENSE, dense_scenes, few))
    for model, settings in models.items():
        jobs.append(evaluation(runs / f"{model}-boxes", trained, scenes * 0.35, *settings, *boxes))
    jobs.append(evaluation(dense / "teacher-boxes", trained, dense_scenes * 0.35, *models["teacher"], *boxes, few))
    start, first = (*student_model, f"model.checkpoint={_start_file(folder)}"), min(START_SCENES, scenes)
    needs, limit = ("finetune-detector", "test-scenes"), f"dataset.limit={first}"
    jobs.append(evaluation(folder / "start" / "student-boxes", needs, first * 0.35, *start, *boxes, limit))
    return jobs


def _start_file(folder: Path) -> Path:
    """Return where the student before its distillation lies."""
    return folder / "start" / f"{STUDENT}.safetensors"


def write_start(path: Path) -> None:
    """Write the student before its distillation: all its tensors are the teacher's, as ``task.init_from_teacher``."""
    from mobilesamv2.checkpoints import save_weights
    from mobilesamv2.registry import build_sam

    teacher, student = build_sam(TEACHER, PACKAGE_WEIGHTS / f"{TEACHER}.safetensors"), build_sam(STUDENT)
    tensors = teacher.state_dict()
    student.load_state_dict({name: tensors[name] for name in student.state_dict()})
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(student, path)


def run_demo(folder: Path, seed: int, scenes: int, dense_scenes: int, workers: int) -> int:
    """Run the demo, print its tables and claims, and return how many claims failed.

    Args:
        folder: to write into.
        seed: of the scenes.
        scenes: test scenes.
        dense_scenes: the first of them, on which the grid of 64 x 64 is measured.
        workers: jobs at a time, each with one thread.

    Raises:
        ValueError: if a job failed, with its name and log, or the folder holds a demo of other scenes or weights.
        ModuleNotFoundError: if a library is missing that a job will need.
    """
    for library in LIBRARIES:
        if find_spec(library) is None:
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)
    folder = folder.resolve()  # which the evaluations record for the report, wherever that is made from
    jobs = demo_jobs(folder, seed, scenes, dense_scenes)
    folder.mkdir(parents=True, exist_ok=True)
    _check_same_demo(folder, {"seed": seed, "scenes": scenes, "dense_scenes": dense_scenes})
    for job in jobs:
        if job.output.exists():
            print(f"{job.name:<20}done before")
    if not _start_file(folder).exists():
        write_start(_start_file(folder))
    total = sum(job.seconds for job in jobs if not job.output.exists())
    with job_bar(round(total), "demo", BAR) as bar:

        def show(seconds_of_work: float) -> None:
            bar.update(min(round(seconds_of_work), bar.total) - bar.n)

        with sigterm_raises(), closing(run_jobs(jobs, folder, workers, show)) as finished:
            for job, seconds in finished:
                bar.write(f"{job.name:<20}{seconds:6.0f} s")
    return _report(folder, seed)


def _check_same_demo(folder: Path, scenes: dict[str, int]) -> None:
    """Write down what the folder is of; refuse one of something else, and say where the code is another."""
    from mobilesamv2.recipes.records import code_sha256

    path = folder / "demo.json"
    weights = {name: sha256_of([PACKAGE_WEIGHTS / name])[:12] for name in (f"{TEACHER}.safetensors", DETECTOR)}
    record = scenes | weights | {"code": code_sha256()}
    before = record | read_json(path) if path.is_file() else record  # a demo of an earlier version knew its scenes only
    different = [key for key in record if before[key] != record[key]]
    if different == ["code"]:
        print(f"What was done before was done by another version of the code; rm -r {folder} starts over.")
    elif different:
        was, now = (", ".join(f"{key} {one[key]}" for key in different if key != "code") for one in (before, record))
        raise ValueError(f"{folder} holds a demo of {was}, got {now}. Choose another folder with -o, or remove it.")
    write_text_atomic(path, json.dumps(before) + "\n")


def _report(folder: Path, seed: int) -> int:
    """Print and write the tables and claims; return how many claims failed."""
    from mobilesamv2.reports.claim_report import format_claims, write_claims
    from mobilesamv2.reports.table import as_markdown

    _, claims, tables = write_claims(folder / "runs", TEACHER, STUDENT, folder / "dense", folder / "start", seed)
    for title, table in tables.items():
        print(f"{title}\n\n{as_markdown(table)}\n")
    print(format_claims(claims))
    print(f"\nwritten: {folder / 'runs'}/report.html, report.md and the figures beside them")
    return sum(claim.outcome == "failed" for claim in claims)


BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} elapsed, {remaining} left"


POLL_S = 0.2
"""Seconds between two looks at what runs."""


@dataclass(frozen=True)
class Running:
    """A job that runs, and when it began, in seconds of the monotonic clock."""

    job: Job
    process: Popen[bytes]
    begin: float


def run_jobs(
    jobs: Sequence[Job], folder: Path, workers: int, show: Callable[[float], None] = lambda _: None
) -> Generator[tuple[Job, float]]:
    """Run the jobs that are not done, each once what it needs is done; yield each with its seconds.

    Those that run are stopped if one fails or the generator is closed.

    Args:
        jobs: in an order in which they can run.
        folder: of their logs.
        workers: jobs at a time.
        show: is told again and again how much is done, in the seconds that ``Job`` expects.

    Raises:
        ValueError: if a job failed, with its name and log.
    """
    done = {job.name for job in jobs if job.output.exists()}
    waiting = [job for job in jobs if job.name not in done]
    running: list[Running] = []
    finished_seconds = 0.0
    try:
        while waiting or running:
            ready = [job for job in waiting if done.issuperset(job.needs)]
            for job in ready[: workers - len(running)]:
                waiting.remove(job)
                running.append(_start(job, folder))
            time.sleep(POLL_S)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                _check(one, folder)
                yield one.job, time.monotonic() - one.begin
                done.add(one.job.name)
                finished_seconds += one.job.seconds
            begun = ((time.monotonic() - one.begin, one.job.seconds) for one in running)
            show(finished_seconds + sum(min(elapsed, 0.95 * expected) for elapsed, expected in begun))
    finally:
        stop(one.process for one in running)


def _start(job: Job, folder: Path) -> Running:
    """Start a job in a process of its own, its output in a log."""
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return Running(job, start(job.arguments, _log(job, folder), environment), time.monotonic())


def _check(ended: Running, folder: Path) -> None:
    """Check that a job did what it was to do."""
    if ended.process.returncode or not ended.job.output.exists():
        log = _log(ended.job, folder)
        last = [line for line in log.read_text().splitlines() if line.strip()][-1:]
        raise ValueError(f"{ended.job.name} failed, see {log}. {' '.join(last)}")


def _log(job: Job, folder: Path) -> Path:
    return folder / "logs" / f"{job.name}.log"
