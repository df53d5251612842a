"""A folder belongs to one run: what is refused, what stops a run, and what is kept."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import SMALL, train

from mobilesamv2 import build_sam
from mobilesamv2.checkpoints import save_weights


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_a_run_with_other_settings_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each difference is named with both values, and nothing in the folder changes."""
    folder, teacher = tmp_path / "run", tmp_path / "teacher.safetensors"
    save_weights(build_sam("sam_vit_mini"), teacher)
    given = [*SMALL, "dataset.limit=8", "validation_images=2", "teacher.cache=off", f"output_dir={folder}"]
    given += [f"teacher.checkpoint={teacher}"]
    train(*given, "trainer.max_epochs=2")
    before = contents(folder)
    for others, said in (
        (["seed=3"], "(seed was 0 and is 3). Resume with the settings of the folder"),
        (["optimizer.lr=0.5", "task.warmup_images=7"], "(optimizer.lr was 0.001 and is 0.5; task.warmup_images was "),
        (["dataset.limit=7"], "(dataset.limit was 8 and is 7; images (SHA-256 of their ids) was "),
        (["validation_images=1"], "(validation_images was 2 and is 1)"),
        (["trainer.accumulate_grad_batches=2"], "(images per step was 2 and is 4)"),
        (["encoder=repvit"], "(encoder was null and is repvit)"),
        (["trainer.max_epochs=1"], "6 steps are in "),
    ):
        with pytest.raises(SystemExit, match=re.escape(said)):
            train(*given, "trainer.max_epochs=3", *others)
        assert contents(folder) == before, others
    torch.manual_seed(7)  # a run that was refused before this test may have left the state that this one left too
    save_weights(build_sam("sam_vit_mini"), teacher)  # other random weights under the same name
    with pytest.raises(SystemExit, match=r"\(teacher.checkpoint \(SHA-256\) was "):
        train(*given, "trainer.max_epochs=3")
    assert contents(folder) == before
    elsewhere = tmp_path / "elsewhere" / "last.ckpt"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes((folder / "checkpoints" / "last.ckpt").read_bytes())
    other = [*(x for x in given if "output_dir" not in x), f"output_dir={tmp_path / 'other'}", f"resume={elsewhere}"]
    with pytest.raises(SystemExit, match=r"is of another model, .*: student.image_encoder.* resume=null starts over"):
        train(*other, "trainer.max_epochs=3", "encoder=repvit")
    [checkpoint] = (folder / "checkpoints").glob("last.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:9999])
    os.utime(checkpoint)
    with pytest.raises(SystemExit, match=r"\(teacher.checkpoint"):
        train(*given, "trainer.max_epochs=3")
    (folder / "run.json").write_text("{")
    with pytest.raises(SystemExit, match=r"run.json can't be read"):
        train(*given, "trainer.max_epochs=3")
    capsys.readouterr()
    train(*given, "trainer.max_epochs=1", "seed=3", "resume=null")
    train(*given, "trainer.max_epochs=2", "seed=3", "num_workers=1")
    assert "had max_epochs 1, max_steps -1 and has max_epochs 2" in capsys.readouterr().out
    checkpoint.write_bytes(checkpoint.read_bytes()[:9999])
    os.utime(checkpoint)
    with pytest.raises(SystemExit, match=r"last.ckpt can't be read: .*resume=null starts over"):
        train(*given, "trainer.max_epochs=3", "seed=3")


def write_squares(folder: Path, x: int, noise: int = 0) -> list[str]:
    """Six images with a square at ``x`` each, as settings."""
    (folder / "images").mkdir(parents=True)
    images = [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 96} for i in range(1, 7)]
    square = [[x, 12, x + 20, 12, x + 20, 32, x, 32]]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "area": 400, "bbox": [x, 12, 20, 20], "segmentation": square}
        for i in range(1, 7)
    ]
    for i in range(1, 7):
        pixels = np.random.default_rng(i).integers(0, 60 + noise, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (folder / "file.json").write_text(json.dumps(content))
    return [f"dataset.annotations={folder / 'file.json'}", f"dataset.images={folder / 'images'}"]


@pytest.mark.slow
def test_other_annotations_or_photos_of_the_same_ids_are_another_run(tmp_path: Path) -> None:
    data = {name: write_squares(tmp_path / name, x) for name, x in (("a", 10), ("moved", 50))}
    data["noise"] = write_squares(tmp_path / "noise", 10, noise=190)
    (tmp_path / "copies").mkdir()
    (tmp_path / "a").rename(tmp_path / "copies" / "a")
    elsewhere = [setting.replace(f"{tmp_path}/a", f"{tmp_path}/copies/a") for setting in data["a"]]
    given = ["experiment=finetune_decoder_tinyvit", "model=mini", "dataset=coco", "validation_images=2"]
    given += ["task.warmup_images=0", f"output_dir={tmp_path / 'run'}"]
    train(*given, *elsewhere, "trainer.max_epochs=1")
    before = contents(tmp_path / "run")
    for name, said in (
        ("moved", r"annotations \(SHA-256\) was"),
        ("noise", r"images \(SHA-256 of their signatures\) w"),
    ):
        with pytest.raises(SystemExit, match=rf"holds another run \({said}"):
            train(*given, *data[name], "trainer.max_epochs=2")
        assert contents(tmp_path / "run") == before
    (tmp_path / "copies" / "a").rename(tmp_path / "a")
    train(*given, *data["a"], "dataset.bad_annotations=leave_out", "trainer.max_epochs=2")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["result"]["steps"] == 4


def test_callbacks_of_the_command_line_come_beside_ours(tmp_path: Path) -> None:
    given = [*SMALL, "dataset.limit=8", "validation_images=2", "teacher.cache=off", f"output_dir={tmp_path}"]
    stop = "{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/loss, stopping_threshold: 1e9}"
    train(*given, "trainer.max_epochs=5", f"+trainer.callbacks=[{stop}]")
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert sum(bool(row["val/loss"]) for row in rows) == 1  # it stopped, and ours logged
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    assert all("=" not in path.name for path in tmp_path.rglob("*"))  # the command line can read what is written
    with pytest.raises(SystemExit, match=r"error: trainer\.logger would replace .*: logger=NAME"):
        train(*given, "+trainer.logger=false", "resume=null")


@pytest.mark.slow
def test_an_objective_that_is_not_logged_is_found_at_the_first_validation(tmp_path: Path) -> None:
    given = [*SMALL, "dataset.limit=8", "validation_images=2", "teacher.cache=off", f"output_dir={tmp_path}"]
    with pytest.raises(SystemExit, match=r"objective must be a logged metric, one of .*val/loss.*, got val/los\."):
        train(*given, "trainer.max_epochs=9", "objective=val/los")
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open())) if (tmp_path / "metrics.csv").exists() else []
    assert sum(bool(row["val/loss"]) for row in rows) <= 1
    value = train(*given, "trainer.max_epochs=1", "objective=val/loss", "resume=null")
    weights = (tmp_path / "mini.safetensors").stat().st_mtime_ns
    assert train(*given, "trainer.max_epochs=1", "objective=val/loss") == value  # from the folder
    assert (tmp_path / "mini.safetensors").stat().st_mtime_ns == weights


def test_training_on_images_without_objects_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    images = [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 96} for i in range(6)]
    for i in range(6):
        Image.fromarray(np.full((64, 96, 3), 40 * i, dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    (tmp_path / "file.json").write_text(json.dumps(content))
    data = ["dataset=coco", f"dataset.annotations={tmp_path / 'file.json'}", f"dataset.images={tmp_path / 'images'}"]
    given = [*data, "validation_images=2", "trainer.max_epochs=1", f"output_dir={tmp_path / 'run'}"]
    for experiment in ("detect_yolov8n_synthetic", "distill_tinyvit_semi_coupled"):
        small = ["model=mini", "model@teacher=by_name", "teacher.name=sam_vit_mini"] if "distill" in experiment else []
        with pytest.raises(
            SystemExit, match=r"error: The 6 images of the data set have no object, and this task learns"
        ):
            train(f"experiment={experiment}", *small, *given)
    assert not (tmp_path / "run" / "run.json").exists()
    train(*SMALL, *given, "teacher.cache=off")  # decoupled distillation reads images alone
