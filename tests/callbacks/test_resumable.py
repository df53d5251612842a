"""Checkpoints that are damaged or foreign: a sentence with the file's name, and nothing in the folder changes."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.runs import SMALL, train
from support.training import distilling, trainer

from mobilesamv2.callbacks.resumable import require_resumable


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after three steps."""
    folder = tmp_path_factory.mktemp("saved")
    task, data = distilling()
    runner = trainer(folder, max_steps=3)
    runner.fit(task, datamodule=data)
    runner.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def changed(path: Path, change: Callable[[dict[str, Any]], object], into: Path) -> Path:
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, into)
    return into


def other_moments(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(7, 7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("optimizer_states"), "is no checkpoint of a training run, it has no optimizer_states; resume"),
        (lambda c: c.update(loops=None, callbacks=3), "is no checkpoint of a training run, it has no loops, callbacks"),
        (other_moments, "is of other parameters: exp_avg of the shape (7, 7). resume=null starts over"),
        (lambda c: c["optimizer_states"][0].update(state=None), "The optimizer's state in "),
        (lambda c: c["state_dict"].update(more=torch.zeros(1)), "is of another model, unexpected key(s): more."),
        (lambda c: c["state_dict"].popitem(), "is of another model, missing key(s): student"),
    ],
)
def test_a_checkpoint_that_lacks_or_has_something_else(
    change: Callable[[dict[str, Any]], object], said: str, saved: Path, tmp_path: Path
) -> None:
    task, _ = distilling()
    path = changed(saved, change, tmp_path / "changed.ckpt")
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        require_resumable(path, task, None)
    assert str(path) in str(error.value)


def test_files_that_are_no_checkpoints_are_named(saved: Path, tmp_path: Path) -> None:
    task, _ = distilling()
    assert require_resumable(saved, task, None) == (3, False)
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1  # one bit of a weight or a moment
    (tmp_path / "flipped.ckpt").write_bytes(content)
    (tmp_path / "cut.ckpt").write_bytes(content[:9999])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, said in (
        ("flipped.ckpt", "can't be read: Bad CRC-32"),
        ("cut.ckpt", "can't be read: it is cut off, or no checkpoint of a training run; resume takes"),
        ("empty.ckpt", "can't be read"),
        ("weights.safetensors", "can't be read: .*model.checkpoint and detector.checkpoint take weights"),
        (
            "weights.pt",
            "is no checkpoint of a training run, it has no state_dict, .*; resume takes a .ckpt that a run wrote",
        ),
        ("list.pt", "is no checkpoint of a training run"),
    ):
        with pytest.raises(ValueError, match=f"{name} {said}"):
            require_resumable(tmp_path / name, task, None)


def test_a_state_that_can_not_be_restored_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    """What only Lightning finds wrong, once a run restores: groups of the optimizer, a callback's state."""
    folder = tmp_path / "run"
    given = [*SMALL, "dataset.limit=8", "validation_images=2", "teacher.cache=off", f"output_dir={folder}"]
    train(*given, "trainer.max_epochs=1")
    last = folder / "checkpoints" / "last.ckpt"
    sound = tmp_path / "sound.ckpt"
    shutil.copy(last, sound)

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    for change, said in (
        (lambda c: c["optimizer_states"][0]["param_groups"].pop(), "different number of parameter groups"),
        (
            lambda c: next(s for k, s in c["callbacks"].items() if "ModelCheckpoint" in k).pop("best_model_score"),
            "best_model_score",
        ),
    ):
        changed(sound, change, last)
        before = contents()
        with pytest.raises(SystemExit, match=rf"last\.ckpt can't be resumed from: .*{said}.* resume=null starts over"):
            train(*given, "trainer.max_epochs=2")
        assert contents() == before
