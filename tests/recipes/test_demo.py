"""The jobs of the demo: what they compose to, and how they are run."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from support import ROOT

from mobilesamv2 import build_sam, load_pretrained
from mobilesamv2.recipes import demo, schema
from mobilesamv2.recipes.progress import job_bar
from mobilesamv2.tasks.distill import _copy_shared_tensors

schema.register()


def test_the_jobs_measure_what_the_claims_require(tmp_path: Path) -> None:
    jobs = demo.demo_jobs(tmp_path, seed=2, scenes=4, dense_scenes=2)
    runs = set()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for job in jobs:
            program, *overrides = job.arguments
            if program == "synthesize":
                continue
            cfg = compose(program, overrides)
            assert str(cfg.output_dir) in (str(job.output.parent), str(job.output))
            if program == "evaluate":
                sampler = cfg.prompt_sampler
                setting = (cfg.model.name, sampler._target_.rsplit(".", 1)[1], sampler.get("points_per_side"))
                runs.add((job.output.parent.parent.name, cfg.dataset.limit, *setting))
    boxes = {("runs", None, model, "ObjectAware", None) for model in ("mini_conv", "mini_conv_slim")}
    grids = {("runs", None, "mini_conv", "GridProposals", side) for side in (16, 32)}
    dense = {("dense", 2, "mini_conv", "GridProposals", 64), ("dense", 2, "mini_conv", "ObjectAware", None)}
    assert runs == grids | boxes | dense | {("start", 4, "mini_conv_slim", "ObjectAware", None)}
    start = tmp_path / "start" / "mini_conv_slim.safetensors"
    demo.write_start(start)
    outputs = {str(start), *(str(job.output) for job in jobs)}
    named = {value.split("=", 1)[1] for job in jobs for value in job.arguments if ".checkpoint=" in value}
    assert {path for path in named if path.startswith(str(tmp_path))} <= outputs  # weights that a job before writes
    names = [job.name for job in jobs]
    for job in jobs:  # each comes after what it needs
        assert set(job.needs) <= set(names[: names.index(job.name)])


def fake(name: str, folder: Path, needs: tuple[str, ...], arguments: tuple[str, ...]) -> demo.Job:
    return demo.Job(name, arguments, folder / name, needs, 1)


def start_instead(monkeypatch: pytest.MonkeyPatch, program: str) -> list[str]:
    """Have a program take the place of the jobs; return their names in the order of their start."""
    started: list[str] = []

    def start(arguments: tuple[str, ...], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        started.append(log.stem)
        assert environment["OMP_NUM_THREADS"]
        return subprocess.Popen([sys.executable, "-S", "-c", program, *arguments])

    monkeypatch.setattr(demo, "start", start)
    return started


def test_jobs_wait_for_what_they_need_and_are_not_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = start_instead(monkeypatch, "import sys; open(sys.argv[1], 'w')")

    def job(name: str, *needs: str) -> demo.Job:
        return fake(name, tmp_path, needs, (str(tmp_path / name),))

    jobs = [job("a"), job("c", "a", "b"), job("b")]
    shown: list[float] = []
    assert {job.name for job, _ in demo.run_jobs(jobs, tmp_path, 2, shown.append)} == {"a", "b", "c"}
    assert started == ["a", "b", "c"]
    assert shown[-1] == 3  # all of the seconds that the jobs expect
    assert list(demo.run_jobs(jobs, tmp_path, 2)) == []
    assert len(started) == 3


def test_the_other_jobs_are_stopped_with_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[subprocess.Popen[bytes]] = []

    def start(arguments: tuple[str, ...], log: Path, _: object) -> subprocess.Popen[bytes]:
        log.parent.mkdir(exist_ok=True)
        log.write_text("error: no disk\n")
        processes.append(subprocess.Popen(["sleep", *arguments]))
        return processes[-1]

    monkeypatch.setattr(demo, "start", start)
    jobs = [fake("long", tmp_path, (), ("60",)), fake("short", tmp_path, (), ("0",))]
    with pytest.raises(ValueError, match=r"short failed, see .*short\.log\. error: no disk"):
        list(demo.run_jobs(jobs, tmp_path, 2))
    assert [process.poll() for process in processes] == [-signal.SIGTERM, 0]


def test_a_job_that_fails_is_named_with_its_log(tmp_path: Path) -> None:
    job = fake("broken", tmp_path, (), ("synthesize", str(tmp_path / "x"), "--scenes=0"))
    with pytest.raises(ValueError, match=r"broken failed, see .*broken\.log\. error: --scenes must be at least 1"):
        list(demo.run_jobs([job], tmp_path, 1))


def test_the_student_before_distillation_is_the_teacher_pruned(tmp_path: Path) -> None:
    demo.write_start(tmp_path / "start.safetensors")
    student, teacher = load_pretrained(tmp_path / "start.safetensors"), load_pretrained(demo.TEACHER)
    theirs, fresh = teacher.state_dict(), build_sam(demo.STUDENT)
    assert student.name == demo.STUDENT
    assert all(torch.equal(value, theirs[name]) for name, value in student.state_dict().items())
    _copy_shared_tensors(teacher.image_encoder, fresh.image_encoder)  # what task.init_from_teacher does
    for name, value in fresh.image_encoder.state_dict().items():
        assert torch.equal(value, student.image_encoder.state_dict()[name]), name


def test_a_folder_of_another_demo_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "write_start", lambda *_: None)
    monkeypatch.setattr(demo, "run_jobs", lambda *_: (job for job in ()))
    monkeypatch.setattr(demo, "_report", lambda *_: 0)
    assert demo.run_demo(tmp_path, 2, 4, 2, 2) == demo.run_demo(tmp_path, 2, 4, 2, 2) == 0
    with pytest.raises(ValueError, match=r"holds a demo of seed 2, got seed 3\. Choose"):
        demo.run_demo(tmp_path, 3, 4, 2, 2)
    record = json.loads((tmp_path / "demo.json").read_text())
    (tmp_path / "demo.json").write_text(json.dumps(record | {"mini_detector.pt": "another"}))
    with pytest.raises(ValueError, match=r"holds a demo of mini_detector\.pt another, got mini_detector\.pt \w{12}\."):
        demo.run_demo(tmp_path, 2, 4, 2, 2)
    (tmp_path / "demo.json").write_text(json.dumps(record | {"code": "another"}))
    capsys.readouterr()
    demo.run_demo(tmp_path, 2, 4, 2, 2)
    assert "done by another version of the code" in capsys.readouterr().out


def test_a_library_that_a_job_needs_is_missed_before_the_first_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LIBRARIES", (*demo.LIBRARIES, "ultralytics_missing"))
    with pytest.raises(ModuleNotFoundError, match="ultralytics_missing") as raised:
        demo.run_demo(tmp_path / "demo", 2, 4, 2, 2)
    assert raised.value.name == "ultralytics_missing"
    assert not (tmp_path / "demo").exists()


def test_a_bar_in_a_log_is_of_whole_lines(capfd: pytest.CaptureFixture[str]) -> None:
    with job_bar(3, "demo", demo.BAR) as bar:
        bar.update()
        bar.refresh()
    lines = capfd.readouterr().err
    assert "\r" not in lines
    assert "demo:  33%" in lines
    assert lines.endswith("\n")
