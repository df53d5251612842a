"""A run is made anew from its own record."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from support import ROOT

from mobilesamv2.cli import rerun
from mobilesamv2.cli.main import main
from mobilesamv2.recipes.evaluation import image_list_record
from mobilesamv2.recipes.records import config_record
from mobilesamv2.recipes.reruns import differences_of_files
from mobilesamv2.recipes.run import compose_run
from mobilesamv2.recipes.run_folder import run_identity


def record(folder: Path, program: str = "train") -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "hydra.yaml").write_text(f"hydra: {{job: {{config_name: {program}}}}}")
    overrides = ["experiment=distill_tinyvit", "+trainer.x=1", "optimizer.lr=1e-3", "output_dir=there", "resume=null"]
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    then = {"versions": {"torch": "2.0"}, "commit": "abc", "code_sha256": "def", "is_clean": False}
    (folder / "run.json").write_text(json.dumps({"environments": [then]}))


def mobilesamv2(*arguments: str) -> str:
    command = [sys.executable, "-m", "mobilesamv2", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_recorded_command_with_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "run")
    ran: list[list[str]] = []
    monkeypatch.setattr("mobilesamv2.cli.main._run_hydra", ran.append)
    main(["rerun", str(tmp_path / "run"), "optimizer.lr=2e-3", "output_dir=new"])
    [command] = ran
    assert command[:2] == ["train", "hydra.mode=RUN"]
    assert command[2:] == ["experiment=distill_tinyvit", "+trainer.x=1", "optimizer.lr=2e-3", "output_dir=new"]
    printed = capsys.readouterr().out
    assert "torch was 2.0 and is " in printed
    assert "commit was abc and is " in printed
    assert "code_sha256 was def and is " in printed
    assert "mobilesamv2/ or conf/ had changes that commit abc lacks" in printed
    assert f"can't be found out: {tmp_path / 'run' / 'run.json'} does not record them." in printed
    with pytest.raises(SystemExit, match=r"error: output_dir must be another folder than "):
        main(["rerun", str(tmp_path / "run"), f"output_dir={tmp_path / 'run'}"])


def test_the_folder_of_further_configurations_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "run")
    hydra: dict[str, Any] = {
        "job": {"config_name": "train"},
        "overrides": {"hydra": ["hydra.searchpath=[there]", "a=b"]},
    }
    sources = [{"provider": "main", "path": "/conf"}, {"provider": "command-line", "path": str(tmp_path / "mine")}]
    hydra["runtime"] = {"config_sources": sources}
    (tmp_path / "run" / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": hydra}))
    with pytest.raises(
        SystemExit, match=r"There is no folder .*mine of configurations: name its place by --config-dir"
    ):
        main(["rerun", str(tmp_path / "run")])
    ran: list[list[str]] = []
    monkeypatch.setattr("mobilesamv2.cli.main._run_hydra", ran.append)
    for folder, more in ((tmp_path / "mine", []), (tmp_path / "moved", ["--config-dir", str(tmp_path / "moved")])):
        folder.mkdir()
        main(["rerun", str(tmp_path / "run"), *more])
        begin = ["train", "--config-dir", str(folder), "hydra.mode=RUN", "hydra.searchpath=[there]"]
        assert ran.pop()[:5] == begin


def write_scenes(path: Path, x: int) -> None:
    objects = [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 400, "bbox": [x, 2, 20, 20]}]
    objects[0]["segmentation"] = [[x, 2, x + 20, 2, x + 20, 22, x, 22]]
    images = [{"id": 1, "file_name": "1.png", "height": 64, "width": 96}]
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}]}))


@pytest.mark.slow
def test_files_that_differ_today_are_named(tmp_path: Path) -> None:
    annotations, weights = tmp_path / "a.json", tmp_path / "w.safetensors"
    write_scenes(annotations, 1)
    weights.write_bytes(b"1")
    given = ["dataset=coco", f"dataset.annotations={annotations}", f"dataset.images={tmp_path}"]
    given += ["model=mini", f"model.checkpoint={weights}"]
    cfg = compose_run("train", given)
    identity = run_identity(cfg, instantiate(cfg.dataset, _convert_="all"))
    (tmp_path / "run.json").write_text(json.dumps({"identity": identity}))
    cfg = compose_run("evaluate", given)
    protocol = image_list_record(instantiate(cfg.dataset, _convert_="all"), [0])
    (tmp_path / "results.json").write_text(
        json.dumps({"protocol": protocol, "run": {"model": config_record(cfg.model), "detector": None}})
    )
    assert differences_of_files(tmp_path, "train", given) == []
    assert differences_of_files(tmp_path, "evaluate", given) == []
    weights.write_bytes(b"2")
    [line] = differences_of_files(tmp_path, "train", given)
    assert line.startswith("model.checkpoint (SHA-256) was 6b86b273")
    assert " and is d4735e3a" in line
    write_scenes(annotations, 9)
    lines = differences_of_files(tmp_path, "evaluate", given)
    assert [line.split()[0] for line in lines] == ["annotations_sha256", "model.sha256"]
    annotations.unlink()
    [line] = differences_of_files(tmp_path, "evaluate", given)
    assert line.startswith("Whether the files are the same can't be found out: ")
    assert str(annotations) in line


def test_folders_that_record_no_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: There is no .*hydra\.yaml, so that .* is no folder of a training"):
        main(["rerun", str(tmp_path)])
    record(tmp_path / "other", "mine")
    with pytest.raises(SystemExit, match=r"must name the program train or evaluate, got mine"):
        main(["rerun", str(tmp_path / "other")])
    (tmp_path / "other" / ".hydra" / "hydra.yaml").write_text("[")
    with pytest.raises(SystemExit, match=r"\.hydra/hydra\.yaml can't be read: "):
        main(["rerun", str(tmp_path / "other")])
    assert rerun.recorded_environment(tmp_path) == {}


@pytest.mark.slow
def test_a_job_of_an_experiment_that_is_a_sweep_is_one_run(tmp_path: Path) -> None:
    """Of a folder of configurations of its own, by a rerun of the rerun too."""
    experiment = tmp_path / "mine" / "experiment" / "search_mine.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text(
        "# @package _global_\nseed: 1\nhydra: {mode: MULTIRUN, sweeper: {params: {dataset.limit: '1,2'}}}\n"
    )
    given = ["dataset=synthetic", "model=mini_conv", "prompt_sampler=grid_proposals", "num_workers=0"]
    given += ["prompt_sampler.points_per_side=4", "experiment=search_mine", f"output_dir={tmp_path / 'sweep'}"]
    mobilesamv2("evaluate", "--config-dir", str(tmp_path / "mine"), *given)
    mobilesamv2("rerun", str(tmp_path / "sweep" / "1"), f"output_dir={tmp_path / 'a'}")
    mobilesamv2("rerun", str(tmp_path / "a"), f"output_dir={tmp_path / 'b'}")
    folders = [tmp_path / "sweep" / "1", tmp_path / "a", tmp_path / "b"]
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert [result["protocol"]["num_images"] for result in results] == [2, 2, 2]
    assert results[0]["metrics"] == results[1]["metrics"] == results[2]["metrics"]


@pytest.mark.slow
def test_an_evaluation_is_made_anew_with_the_same_result(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    given = ["dataset=synthetic", "dataset.limit=2", "model=mini_conv", "prompt_sampler=grid_proposals"]
    given += ["prompt_sampler.points_per_side=4", "num_workers=0", f"output_dir={first}"]
    mobilesamv2("evaluate", *given)
    assert "dataset.limit=2" in mobilesamv2("rerun", str(first), f"output_dir={second}")
    results = [json.loads((folder / "results.json").read_text()) for folder in (first, second)]
    assert results[0]["metrics"] == results[1]["metrics"]
