"""train.py as a user runs it."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from support import ROOT
from support.runs import QUIET, composed, train

from mobilesamv2 import load_sam
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.writers import write_sa1b_tar
from mobilesamv2.recipes import build, distill, run


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    scenes = SyntheticDataset(8, (90, 120))
    write_sa1b_tar((scenes[i] for i in range(8)), tmp_path / "sa_000000.tar")
    return tmp_path / "sa_000000.tar"


def test_distils_from_a_tar(tar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    given = [
        "experiment=distill_tinyvit",
        "model=mini",
        "model@teacher=by_name",
        "teacher.name=sam_vit_mini",
        f"dataset.tars={tar}",
    ]
    given += [f"cache.folder={tmp_path / 'cache'}", "validation_images=2", "trainer.log_every_n_steps=1"]
    train(*given, f"output_dir={out}", "trainer.max_epochs=2")
    printed = capsys.readouterr().out
    assert re.search(r"\n6 steps, 0:0\d:\d\d, val/loss \S+", printed), printed
    assert f"next: mobilesamv2 segment IMAGE -o masks --model {out / 'mini.safetensors'}" in printed
    assert load_sam(out / "mini.safetensors").name == "mini"
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert sum(bool(row["train/loss"]) for row in rows) == 6
    assert sum(bool(row["val/loss"]) for row in rows) == 2
    assert (out / "images.txt").read_text().split() == [str(i) for i in range(8)]
    [environment] = json.loads((out / "run.json").read_text())["environments"]
    assert environment["seed"] == 0
    assert environment["versions"]["torch"]

    resumed = [f"output_dir={tmp_path / 'more'}", "trainer.max_epochs=3", f"resume={out / 'checkpoints' / 'last.ckpt'}"]
    train(*given, *resumed)
    steps = torch.load(tmp_path / "more" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert steps == 9


def test_boxes_alone_distil_where_no_mask_is_learnt(tmp_path: Path) -> None:
    box = {"id": 1, "image_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
    content = {"images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}], "annotations": [box]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    given = ["model=mini", "model@teacher=mini", "teacher.cache=off", "dataset=coco", f"dataset.images={tmp_path}"]
    given += [f"dataset.annotations={tmp_path / 'a.json'}"]
    for task in ("distill", "distill_coupled"):
        assert len(distill.build(composed(f"task={task}", *given, primary="train")).samples) == 1
    with pytest.raises(ValueError, match="must have masks for this task, got 1 boxes without a segmentation"):
        distill.build(composed("task=tinysam", *given, primary="train"))


def test_a_run_gives_what_a_search_is_to_improve(tar: Path, tmp_path: Path) -> None:
    given = [
        "experiment=distill_tinyvit",
        "model=mini",
        "model@teacher=by_name",
        "teacher.name=sam_vit_mini",
        f"dataset.tars={tar}",
    ]
    given += ["teacher.cache=off", "validation_images=2", "trainer.max_epochs=1"]
    found = train(*given, f"output_dir={tmp_path / 'a'}", "objective=val/loss")
    rows = list(csv.DictReader((tmp_path / "a" / "metrics.csv").open()))
    assert found == pytest.approx(float(next(row["val/loss"] for row in rows if row["val/loss"])))
    with pytest.raises(SystemExit, match=r"error: objective must be a logged metric, one of .*val/loss.*, got val/los"):
        train(*given, f"output_dir={tmp_path / 'b'}", "objective=val/los")


@pytest.mark.slow
def test_a_search_in_miniature(tmp_path: Path) -> None:
    given = [
        "experiment=search_distill",
        "model=mini",
        "model@teacher=by_name",
        "teacher.name=sam_vit_mini",
        "dataset=synthetic",
    ]
    given += ["dataset.limit=12", "validation_images=4", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
    given += ["trainer.max_epochs=1", "task.warmup_images=0", f"output_dir={tmp_path / 'search'}"]
    command = [sys.executable, str(ROOT / "train.py"), *given, *QUIET]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    best = (tmp_path / "search" / "optimization_results.yaml").read_text()
    losses = []
    for job in ("0", "1"):
        rows = list(csv.DictReader((tmp_path / "search" / job / "metrics.csv").open()))
        losses.append(float(next(row["val/loss"] for row in reversed(rows) if row["val/loss"])))
    assert f"best_value: {min(losses)}"[:18] in best
    assert "optimizer.lr" in best


def test_the_jobs_of_a_sweep_are_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}
    monkeypatch.setattr(build, "instantiate", lambda node, **given: told.update(given))
    monkeypatch.setattr(build, "is_sweep", lambda: True)
    job = SimpleNamespace(override_dirname="optimizer.lr=1")
    monkeypatch.setattr(build, "HydraConfig", SimpleNamespace(get=lambda: SimpleNamespace(job=job)))
    build.loggers(OmegaConf.create({"wandb": {"project": "p"}}), tmp_path / "sweep" / "3")
    assert (told["group"], told["name"]) == ("sweep", "optimizer.lr=1")
    told.clear()
    build.loggers(OmegaConf.create({"wandb": {"group": "mine"}}), tmp_path / "sweep" / "3")
    assert "group" not in told


def test_a_run_of_weights_and_biases_ends_with_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, ended = SimpleNamespace(run=None), []
    monkeypatch.setitem(sys.modules, "wandb", fake)

    def open_run(name: str, fails: bool = False) -> None:
        def finish(exit_code: int) -> None:
            ended.append((name, exit_code))
            fake.run = None

        fake.run = fake.run or SimpleNamespace(finish=finish)
        if fails:
            raise ZeroDivisionError

    for name in ("first", "second"):
        with build.own_wandb_run():
            open_run(name)
    with pytest.raises(ZeroDivisionError), build.own_wandb_run():
        open_run("third", fails=True)
    assert ended == [("first", 0), ("second", 0), ("third", 1)]
    open_run("of a user")
    with build.own_wandb_run():
        open_run("fourth")
    assert len(ended) == 3
    assert fake.run is not None


@pytest.mark.slow
def test_a_student_of_full_size_becomes_a_mobile_sam(tar: Path, tmp_path: Path) -> None:
    """One step at 1024 pixels, with the student as its own teacher."""
    from mobilesamv2 import build_sam

    given = ["model.checkpoint=null", "model@teacher=by_name", "teacher.name=mobile_sam", f"dataset.tars={tar}"]
    given += ["teacher.cache=off", "validation_images=0", "trainer.max_epochs=-1", "trainer.max_steps=1"]
    train("experiment=distill_tinyvit", *given, f"output_dir={tmp_path / 'out'}")
    build_sam("mobile_sam", tmp_path / "out" / "mobile_sam.pt", allow_partial=False)


@pytest.mark.slow
def test_trains_a_small_sam_on_drawn_scenes(tmp_path: Path) -> None:
    given = ["experiment=pretrain_mini", "model=mini", "dataset.limit=6", "validation_images=2"]
    train(*given, f"output_dir={tmp_path}", "logger=wandb")
    assert load_sam(tmp_path / "mini.safetensors").encoder_name == "tiny_vit_mini"
    assert (tmp_path / "metrics.csv").is_file()
    logged = OmegaConf.to_container(OmegaConf.load(tmp_path / "hparams.yaml"))
    assert isinstance(logged, dict)
    assert (logged["optimizer.lr"], logged["dataset.limit"]) == (0.0015, 6)
    assert (logged["num_workers"], logged["trainer.accelerator"]) == (0, "cpu")  # what may change from run to run too
    assert len(logged["images (SHA-256 of their ids)"]) == 64
    train(*given, f"output_dir={tmp_path}", "logger=wandb", "trainer.max_epochs=2")
    parts = [path.name.rpartition("-")[2] for path in tmp_path.glob("wandb/offline-run-*")]
    assert parts == [json.loads((tmp_path / "run.json").read_text())["id"]] * 2  # one run, in two parts


def test_missing_files_are_all_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"(?s)sam_vit_h_4b8939\.pth.*published at.*data/sa1b.*SA-1B is published at"):
        train("experiment=distill_tinyvit", f"output_dir={tmp_path}")
    with pytest.raises(SystemExit, match=r"no file none\.ckpt"):
        train("experiment=distill_tinyvit", "resume=none.ckpt", f"output_dir={tmp_path}")


def test_pixels_are_kept_by_tasks_with_a_teacher_alone(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"cache\.pixels must be off for a task without a teacher, .* got raw"):
        train("task=finetune_decoder", "model=mini", "dataset=synthetic", "cache.pixels=raw", f"output_dir={tmp_path}")


@pytest.mark.parametrize(
    ("experiment", "override"),
    [
        ("distill_tinyvit", "detector=mini_detector"),
        ("distill_tinyvit", "prompt_sampler=grid"),
        ("finetune_decoder_tinyvit", "model@teacher=sam_vit_b"),
        ("finetune_detector", "model@teacher=sam_vit_b"),
        ("prompt_head_tinyvit", "model=mini"),
        ("prompt_head_tinyvit", "encoder=repvit"),
        ("cache_teacher", "model=mini"),
    ],
)
def test_a_network_that_the_task_does_not_read_is_refused(tmp_path: Path, experiment: str, override: str) -> None:
    group = override.rpartition("@")[2].partition("=")[0].partition(".")[0]
    with pytest.raises(ValueError, match=rf"Nothing would read {override}: this task has no {group}\. Leave it out\."):
        run.train(f"experiment={experiment}", override, "dataset=synthetic", f"output_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_trains_a_detector_that_ultralytics_loads(tar: Path, tmp_path: Path) -> None:
    given = ["experiment=detect_yolov8n_synthetic", "dataset=sa1b", f"dataset.tars={tar}"]
    given += ["detector.image_size=128", "validation_images=2", f"output_dir={tmp_path / 'out'}"]
    train(*given)
    from ultralytics import YOLO

    detector = YOLO(tmp_path / "out" / "detector.pt")
    assert (detector.task, len(detector.names)) == ("detect", 1)
