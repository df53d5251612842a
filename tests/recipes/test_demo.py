"""The jobs of the demo: what they compose to, and how they are run."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from support import ROOT

from mobilesamv2.recipes import demo, schema

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
    assert runs == grids | boxes | dense
    outputs = {str(job.output) for job in jobs}
    named = {value.split("=", 1)[1] for job in jobs for value in job.arguments if ".checkpoint=" in value}
    assert {path for path in named if path.startswith(str(tmp_path))} <= outputs  # weights that a job before writes
    names = [job.name for job in jobs]
    for job in jobs:  # each comes after what it needs
        assert set(job.needs) <= set(names[: names.index(job.name)])


def fake(name: str, folder: Path, needs: tuple[str, ...], arguments: tuple[str, ...]) -> demo.Job:
    return demo.Job(name, arguments, folder / name, needs, 1)


def test_jobs_wait_for_what_they_need_and_are_not_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def run(command: list[str], **_: object) -> object:
        order.append(command[-1])
        (tmp_path / command[-1]).touch()
        return type("Done", (), {"returncode": 0})()

    monkeypatch.setattr(demo.subprocess, "run", run)
    (tmp_path / "logs").mkdir()
    jobs = [fake("a", tmp_path, (), ("a",)), fake("c", tmp_path, ("a", "b"), ("c",)), fake("b", tmp_path, (), ("b",))]
    shown: list[float] = []
    assert {job.name for job, _ in demo.run_jobs(jobs, tmp_path, 2, shown.append)} == {"a", "b", "c"}
    assert order[-1] == "c"
    assert shown[-1] == 3  # all of the seconds that the jobs expect
    assert list(demo.run_jobs(jobs, tmp_path, 2)) == []
    assert len(order) == 3


def test_a_job_that_fails_is_named_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    job = fake("broken", tmp_path, (), ("synthesize", str(tmp_path / "x"), "--scenes=0"))
    with pytest.raises(ValueError, match=r"broken failed, see .*broken\.log\. error: --scenes must be at least 1"):
        list(demo.run_jobs([job], tmp_path, 1))


def test_a_folder_of_other_scenes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run_jobs", lambda *_: iter(()))
    monkeypatch.setattr(demo, "_report", lambda *_: 0)
    assert demo.run_demo(tmp_path, 2, 4, 2) == demo.run_demo(tmp_path, 2, 4, 2) == 0
    with pytest.raises(
        ValueError,
        match=r"holds a demo of seed 2, scenes 4, dense_scenes 2, got seed 3, scenes 4, dense_scenes 2\. Choose",
    ):
        demo.run_demo(tmp_path, 3, 4, 2)
