"""Weights never lie under a record that they are not of."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from support.runs import SMALL, composed, train
from support.training import StopsAt

from mobilesamv2 import build_sam
from mobilesamv2.recipes import run_outputs
from mobilesamv2.recipes.run_outputs import (
    checkpoint_to_resume,
    has_weights,
    keep_apart,
    make_room,
    make_room_for_more,
    require_other_inputs,
    sam_writers,
    write_files,
)

TINY = [*SMALL, "dataset.limit=6", "dataset.size=[64,64]", "validation_images=2", "teacher.cache=off"]
TINY += ["task.warmup_images=0", "trainer.log_every_n_steps=1"]
STOPS_EARLY = "{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/loss, stopping_threshold: 1e9}"
CHECKPOINTS = "{_target_: pytorch_lightning.callbacks.ModelCheckpoint, monitor: val/loss, save_weights_only: true}"


def write(folder: Path, *names: str, record: object = None) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    if record is not None:
        (folder / "run.json").write_text(json.dumps(record))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def result_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())["result"]


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files of a folder, with what tells whether one was written again."""
    return {name: ((folder / name).stat().st_mtime_ns, (folder / name).read_bytes()) for name in files(folder)}


def test_all_that_an_earlier_run_left_goes_with_its_record(tmp_path: Path) -> None:
    left = {"checkpoints/last.ckpt", "own_checkpoints/a.ckpt", "best/a.pt", "a.pt", "b.pt", "metrics.csv"}
    left |= {"calibration.csv", "images.txt", ".hydra/config.yaml", "hparams.yaml", "events.out.tfevents.1"}
    others = {"data/c.pt", "c.pt", "run.lock"}
    write(tmp_path, *left, *others, record={"weights": ["a.pt"]})
    make_room(tmp_path, ["b.pt"], with_logs=True)
    [aside] = tmp_path.glob("earlier.*")
    assert files(aside) == left | {"run.json"}
    assert files(tmp_path) - {f"{aside.name}/{name}" for name in files(aside)} == others
    write(tmp_path, "hparams.yaml", record={})
    make_room(tmp_path, ["b.pt"], with_logs=True)
    assert len(list(tmp_path.glob("earlier.*"))) == 1  # a record and logs alone are of no weights
    assert (tmp_path / "run.json").is_file()


def test_what_no_run_wrote_is_not_moved(tmp_path: Path) -> None:
    write(tmp_path, "checkpoints/mobile_sam.pt", "best/cat.jpg")
    with pytest.raises(ValueError, match=r"holds checkpoints, best and no run\.json, so that no run here wrote"):
        make_room(tmp_path, ["a.pt"], with_logs=True)
    assert files(tmp_path) == {"checkpoints/mobile_sam.pt", "best/cat.jpg"}
    write(tmp_path, "checkpoints/last.ckpt")  # of a version without a record
    make_room(tmp_path, ["a.pt"], with_logs=True)
    assert not (tmp_path / "checkpoints").exists()


def test_a_kill_amid_the_move_leaves_the_record_where_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.pt", "metrics.csv", ".hydra/config.yaml", record={"weights": ["a.pt"]})
    moved = []

    def rename(path: Path, target: Path) -> None:
        moved.append(path.name)

    monkeypatch.setattr(Path, "rename", rename)
    make_room(tmp_path, [], with_logs=True)
    assert moved == ["a.pt", "metrics.csv", ".hydra", "run.json"]


def test_a_longer_run_keeps_its_record_and_moves_the_weights_with_a_copy(tmp_path: Path) -> None:
    write(tmp_path, "a.pt", "best/a.pt", "checkpoints/last.ckpt", "metrics.csv", record={"weights": ["a.pt"]})
    make_room_for_more(tmp_path, ["a.pt"])
    [aside] = tmp_path.glob("earlier.*")
    assert files(aside) == {"a.pt", "best/a.pt", "run.json"}
    assert files(tmp_path) >= {"checkpoints/last.ckpt", "metrics.csv", "run.json"}
    make_room_for_more(tmp_path, ["a.pt"])
    assert len(list(tmp_path.glob("earlier.*"))) == 1


def test_a_damaged_record_does_not_keep_a_run_from_starting_over(tmp_path: Path) -> None:
    write(tmp_path, "a.pt")
    (tmp_path / "run.json").write_text("{")
    make_room(tmp_path, ["a.pt"], with_logs=True)
    assert not (tmp_path / "a.pt").exists()


def test_no_input_of_a_run_is_moved_or_overwritten(tmp_path: Path) -> None:
    write(tmp_path, record={"weights": ["a.pt"]})
    for name, given in (("model.checkpoint", tmp_path / "b.pt"), ("teacher.checkpoint", [str(tmp_path / "a.pt")])):
        value = given if isinstance(given, list) else str(given)
        with pytest.raises(ValueError, match=rf"^{name} must not be a file that runs in .* write, got"):
            require_other_inputs({name: value}, tmp_path, ["b.pt"])
    settings = {"model.checkpoint": str(tmp_path / "c.pt"), "detector.checkpoint": None, "x": str(tmp_path / "a.pt")}
    require_other_inputs(settings, tmp_path, ["b.pt"])


def test_a_run_resumes_from_our_checkpoints_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = composed("experiment=distill_tinyvit", primary="train")
    assert checkpoint_to_resume(cfg, tmp_path) is None
    for name in ("last", "epoch0-step3", "recent", "stopped"):
        write(tmp_path / "checkpoints", f"{name}.ckpt", "epoch=0-step=3.ckpt", "last-v1.ckpt", "mine.ckpt")
        assert checkpoint_to_resume(cfg, tmp_path) == tmp_path / "checkpoints" / f"{name}.ckpt"
    cfg.resume = None
    assert checkpoint_to_resume(cfg, tmp_path) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert checkpoint_to_resume(cfg, tmp_path) == tmp_path / "checkpoints" / "stopped.ckpt"
    cfg.resume = "other.ckpt"
    assert checkpoint_to_resume(cfg, tmp_path / "new") == Path("other.ckpt")


def test_a_users_checkpoints_lie_apart(tmp_path: Path) -> None:
    kinds = [ModelCheckpoint(), ModelCheckpoint(tmp_path / "x"), StopsAt(1, True)]
    keep_apart(kinds, tmp_path)
    assert [getattr(kind, "dirpath", None) for kind in kinds] == [
        str(tmp_path / "own_checkpoints"),
        str(tmp_path / "x"),
        None,
    ]
    with pytest.raises(ValueError, match=r"dirpath of a ModelCheckpoint in trainer\.callbacks must not be .*own_check"):
        keep_apart([ModelCheckpoint(tmp_path / "checkpoints")], tmp_path)


def test_the_names_of_weight_files_are_known_before_they_are_written(tmp_path: Path) -> None:
    writers = sam_writers(build_sam("mini"))
    paths = write_files(writers, tmp_path)
    assert paths == [tmp_path / name for name in writers] == [tmp_path / "mini.safetensors"]
    assert has_weights(tmp_path, tuple(writers), {"best": None})
    assert not has_weights(tmp_path, tuple(writers), {"best": {"metric": "val/loss"}})
    assert list(sam_writers(build_sam("mobile_sam"))) == ["mobile_sam.safetensors", "mobile_sam.pt"]
    assert list(sam_writers(build_sam("mobile_sam", image_size=256))) == ["mobile_sam.safetensors"]


@pytest.mark.slow
def test_weights_do_not_stay_under_the_record_of_a_run_that_did_not_make_them(tmp_path: Path) -> None:
    given = [*TINY, "trainer.max_epochs=1", f"output_dir={tmp_path}"]
    train(*given)
    first = (tmp_path / "mini.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="The run diverged"):
        train(*given, "optimizer.lr=1e30", "resume=null", "trainer.max_epochs=9")
    assert not (tmp_path / "mini.safetensors").exists()
    assert not (tmp_path / "best").exists()
    assert json.loads((tmp_path / "run.json").read_text())["identity"]["optimizer.lr"] == 1e30
    [aside] = tmp_path.glob("earlier.*")
    assert (aside / "mini.safetensors").read_bytes() == first
    assert json.loads((aside / "run.json").read_text())["identity"]["optimizer.lr"] == 1e-3
    assert train(*given[:-1], f"output_dir={aside}", "objective=val/loss") == result_of(aside)["metrics"]["val/loss"]


@pytest.mark.slow
def test_a_result_is_compared_without_checkpoints_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*TINY, f"output_dir={tmp_path}"]
    train(*given, "trainer.max_epochs=1")
    shutil.rmtree(tmp_path / "checkpoints")
    before = state(tmp_path)
    with pytest.raises(SystemExit, match=re.escape("holds another run (optimizer.lr was 0.001 and is 0.5)")):
        train(*given, "trainer.max_epochs=1", "optimizer.lr=0.5")
    with pytest.raises(SystemExit, match=r"holds a run that ended, of another length .* resume=null"):
        train(*given, "trainer.max_epochs=2")
    capsys.readouterr()
    train(*given, "trainer.max_epochs=1")
    assert f"{tmp_path} is done" in capsys.readouterr().out
    assert state(tmp_path) == before


@pytest.mark.slow
def test_a_longer_run_that_is_killed_leaves_no_weights_of_the_shorter_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*TINY, f"output_dir={tmp_path / 'run'}"]
    train(*given, "trainer.max_epochs=1")
    first = (tmp_path / "run" / "mini.safetensors").read_bytes()
    from mobilesamv2.recipes import training

    with monkeypatch.context() as patched:
        patched.setattr(training, "own_callbacks", lambda _: [StopsAt(3, at_the_end=True)])
        with pytest.raises(RuntimeError, match="stopped"):
            train(*given, "trainer.max_epochs=2")
    assert not (tmp_path / "run" / "mini.safetensors").exists()
    [aside] = (tmp_path / "run").glob("earlier.*")
    assert (aside / "mini.safetensors").read_bytes() == first
    assert result_of(aside)["steps"] == 2
    assert "result" not in json.loads((tmp_path / "run" / "run.json").read_text())
    train(*given, "trainer.max_epochs=2")
    assert result_of(tmp_path / "run")["steps"] == 4


@pytest.mark.slow
def test_a_run_that_stopped_early_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*TINY, "objective=val/loss", f"+trainer.callbacks=[{STOPS_EARLY}]", f"output_dir={tmp_path}"]
    value = train(*given, "trainer.max_epochs=5")
    before, result = state(tmp_path), result_of(tmp_path)
    assert (result["steps"], result["total_steps"]) == (2, 10)
    capsys.readouterr()
    assert train(*given, "trainer.max_epochs=5") == value
    assert state(tmp_path) == before
    said = capsys.readouterr().out
    assert f"{tmp_path} is done: val/loss is {value:.6g}" in said
    weights = load_file(tmp_path / "mini.safetensors")
    (tmp_path / "mini.safetensors").unlink()  # written again from the checkpoint, without a further step
    assert train(*given, "trainer.max_epochs=5") == value
    assert all(torch.equal(value, weights[key]) for key, value in load_file(tmp_path / "mini.safetensors").items())
    assert result_of(tmp_path)["steps"] == 2
    train(*given, "trainer.max_epochs=6")  # of another length, it goes on
    assert result_of(tmp_path)["steps"] == 4


@pytest.mark.slow
def test_a_finished_run_prints_its_summary_and_leaves_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*TINY, "trainer.max_epochs=1", f"+trainer.callbacks=[{CHECKPOINTS}]", f"output_dir={tmp_path}"]
    train(*given)
    end = capsys.readouterr().out.partition("\n2 steps")[2]
    assert re.search(r"val/loss \d", end)
    assert "next: mobilesamv2 segment" in end
    assert "best: val/loss " in end
    assert [path.name for path in (tmp_path / "own_checkpoints").iterdir()] == ["epoch=0-step=2.ckpt"]
    before = state(tmp_path)
    train(*given)
    assert state(tmp_path) == before
    assert capsys.readouterr().out.partition("\n2 steps")[2] == end
    shutil.copy(tmp_path / "own_checkpoints" / "epoch=0-step=2.ckpt", tmp_path / "checkpoints")  # the newest
    train(*given[:-3], *given[-2:], "trainer.max_epochs=2")
    assert result_of(tmp_path)["steps"] == 4


@pytest.mark.slow
def test_a_record_of_an_earlier_version_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*TINY, f"output_dir={tmp_path}"]
    train(*given, "trainer.max_epochs=1")
    record = json.loads((tmp_path / "run.json").read_text())
    for key in ("annotations (SHA-256)", "images (SHA-256 of their signatures)"):
        del record["identity"][key]
    del record["weights"]
    record["result"] = {key: record["result"][key] for key in ("steps", "metrics", "best")}
    (tmp_path / "run.json").write_text(json.dumps(record))
    capsys.readouterr()
    for epochs, said in ((1, "is done"), (2, "resuming from")):
        train(*given, f"trainer.max_epochs={epochs}")
        out = capsys.readouterr().out
        assert said in out
        assert "run.json is of an earlier version, without annotations (SHA-256) and images (SHA-256 of their" in out
    assert run_outputs.recorded_weights(tmp_path) == ["mini.safetensors"]
    assert len(list(tmp_path.glob("earlier.*/mini.safetensors"))) == 1
