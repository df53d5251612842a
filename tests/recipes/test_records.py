"""What a run records of its code, and says of its weights."""

import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.runs import composed

from mobilesamv2.recipes import distill, records


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def repository(folder: Path) -> Path:
    """With one module of a package."""
    module = folder / "mobilesamv2" / "recipes" / "records.py"
    module.parent.mkdir(parents=True)
    module.write_text("a = 1\n")
    git(folder, "init", "-q")
    return module


def test_a_commit_counts_where_it_has_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = repository(tmp_path)
    monkeypatch.setattr(records, "CONF", tmp_path / "mobilesamv2" / "conf")
    (tmp_path / "other").write_text("of the repository that merely contains the package")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-qm", "Add")
    assert records._commit(module) == {"commit": None, "is_clean": None}
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "Add the package")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert records._commit(module) == {"commit": commit, "is_clean": True}
    (tmp_path / "other").write_text("no part of the code")
    assert records._commit(module) == {"commit": commit, "is_clean": True}
    new = module.with_name("new.py")
    new.write_text("")
    assert records._commit(module) == {"commit": commit, "is_clean": False}
    new.unlink()
    module.write_text("a = 2\n")
    assert records._commit(module) == {"commit": commit, "is_clean": False}


def test_a_folder_outside_any_repository_has_no_commit(tmp_path: Path) -> None:
    assert records._commit(tmp_path / "records.py") == {"commit": None, "is_clean": None}
    assert records._commit(tmp_path / "gone" / "records.py") == {"commit": None, "is_clean": None}


@pytest.mark.parametrize(
    ("whole", "backbone", "from_teacher", "said"),
    [
        (None, None, False, "random weights"),
        (None, "timm", False, "random weights, its image encoder's backbone from those of timm"),
        ("a.pt", "timm", False, "a.pt"),
        ("a.pt", None, True, "its teacher's image encoder where the two have tensors in common, elsewhere from a.pt"),
    ],
)
def test_the_line_on_what_a_model_starts_from(
    whole: str | None, backbone: str | None, from_teacher: bool, said: str
) -> None:
    node = OmegaConf.create({"checkpoint": whole, "backbone_checkpoint": backbone})
    assert records.describe_start("model", node, from_teacher) == f"model starts from {said}"


def test_a_distillation_says_that_its_student_starts_from_the_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mini = ["model=by_name", "model.name=sam_vit_mini", "model@teacher=by_name", "teacher.name=sam_vit_mini"]
    given = [*mini, "dataset=synthetic", "dataset.limit=2", f"cache.folder={tmp_path}", "task.init_from_teacher=true"]
    distill.build(composed("experiment=distill_tinyvit", *given, primary="train"))
    line = "model starts from its teacher's image encoder where the two have tensors in common, elsewhere from random"
    assert line in capsys.readouterr().out
