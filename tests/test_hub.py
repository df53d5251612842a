"""Repositories of the Hugging Face Hub as its client keeps them, and as it answers; no network access."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.hf_api import ModelInfo

from mobilesamv2 import build_sam, load_pretrained, save_pretrained
from mobilesamv2.cli.main import main
from mobilesamv2.cli.options import may_download

SETTINGS = ("MOBILESAMV2_DOWNLOAD", "CI", "HF_HUB_OFFLINE")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The client's cache, empty; the environment says nothing of downloads."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def requests(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the client asks the Hub for: someone/small-sam is there, and a download of it puts it into the cache."""
    asked: list[str] = []

    def model_info(self: HfApi, repo_id: str, **given: object) -> ModelInfo:
        asked.append(f"info of {repo_id}")
        if repo_id == "weights_x/mine":
            raise OSError("no network")
        siblings = [{"rfilename": "model.safetensors", "size": 375_000_000}] if "small" in repo_id else []
        return ModelInfo(id=repo_id, siblings=siblings, cardData={"license": "apache-2.0"})

    def download(repo_id: str, filename: str) -> str:
        asked.append(f"{filename} of {repo_id}")
        return str(fill(cache))

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def fill(cache: Path) -> Path:
    """Put a model into the cache as someone/small-sam."""
    repository, commit = cache / "models--someone--small-sam", "0" * 40
    path = save_pretrained(build_sam("micro_conv"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return path


@pytest.mark.parametrize("variable", ["MOBILESAMV2_DOWNLOAD=0", "CI=true", "HF_HUB_OFFLINE=1", None])
def test_the_hub_is_not_asked_where_downloads_are_forbidden(
    cache: Path, requests: list[str], monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    download = False if variable is None else None
    if variable is not None:
        monkeypatch.setenv(*variable.split("="))
    with pytest.raises(FileNotFoundError, match=r"no folder someone/small-sam, .* not in the .* network: mini_conv"):
        load_pretrained("someone/small-sam", download=download)
    fill(cache)
    assert load_pretrained("someone/small-sam", download=download).name == "micro_conv"
    assert not requests


def test_size_and_licence_are_shown_before_a_download(
    requests: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", "true")
    load_pretrained("someone/small-sam", download=True)
    assert requests == ["info of someone/small-sam", "model.safetensors of someone/small-sam"]
    said = capsys.readouterr().err
    assert "of someone/small-sam (375 MB, apache-2.0, from https://huggingface.co/someone/small-sam)" in said


def test_a_folder_that_is_missing_is_named_as_one(requests: list[str]) -> None:
    with pytest.raises(ConnectionError, match=r"no folder weights_x/mine; .* the Hub can't be reached"):
        load_pretrained("weights_x/mine")
    with pytest.raises(ConnectionError, match=r"no folder a/b, and the Hugging Face Hub has no model\.safetensors in"):
        load_pretrained("a/b")
    assert requests == ["info of weights_x/mine", "info of a/b"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "allowed"), [("y\n", True), ("n\n", False)])
def test_a_terminal_is_asked(requests: list[str], monkeypatch: pytest.MonkeyPatch, answer: str, allowed: bool) -> None:
    said = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", said)
    assert may_download("someone/small-sam", Path("weights"), None) is allowed
    assert "There is no model.safetensors of someone/small-sam yet: 375 MB, apache-2.0, from https" in said.getvalue()
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    assert may_download("someone/small-sam", Path("weights"), None) is False


def test_segment_does_not_download_when_told_not_to(
    requests: list[str], tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    Image.fromarray(photo).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="error: There is no folder someone/small-sam"):
        main(["segment", "photo.png", "-o", "out", "--model", "someone/small-sam", "--no-download"])
    assert not requests
