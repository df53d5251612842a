"""Published weights that are missing: downloaded where that is allowed, asked for in a terminal, else a sentence."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.file_server import Server, serving
from support.runs import FAST

from mobilesamv2 import SegAny, build_sam, load_pretrained
from mobilesamv2.checkpoints import save_weights
from mobilesamv2.cli.main import main
from mobilesamv2.data.synthetic.render import render_scene
from mobilesamv2.model_zoo import MODEL_FILES, WEIGHT_FILES, PublishedFile, download_setting

SETTINGS = ("MOBILESAMV2_DOWNLOAD", "CI", "HF_HUB_OFFLINE")


@pytest.fixture(scope="module")
def file_of_micro() -> bytes:
    content = io.BytesIO()
    torch.save(build_sam("micro_conv").state_dict(), content)
    return content.getvalue()


@pytest.fixture
def server(file_of_micro: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Publishes ``micro_conv`` as micro.pt; nothing is in the folders of weights, and the environment says nothing."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MOBILESAMV2_WEIGHTS", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    with serving(file_of_micro) as server:
        published = PublishedFile(server.url, server.url, licence="Apache-2.0", nbytes=len(file_of_micro))
        monkeypatch.setitem(WEIGHT_FILES, "micro.pt", published)
        monkeypatch.setitem(MODEL_FILES, "micro_conv", ("micro.pt",))
        yield server


@pytest.fixture
def photo_file(tmp_path: Path) -> Path:
    from PIL import Image

    Image.fromarray(render_scene(0)[0]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_missing_file_is_downloaded_once_into_the_users_folder(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_pretrained("micro_conv").name == "micro_conv"
    assert (tmp_path / "user" / "micro.pt").is_file()
    assert not (tmp_path / "weights").exists()
    said = capsys.readouterr().err
    size = f"{len(server.content) / 1e6:,.0f} MB"
    assert f"downloading micro.pt ({size}, Apache-2.0, from {server.url}) into {tmp_path / 'user'}" in said
    SegAny.from_pretrained("micro_conv")
    assert len(server.requested) == 1


def test_a_folder_of_weights_that_exists_gets_it(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    load_pretrained("micro_conv", download=True)
    assert (tmp_path / "weights" / "micro.pt").is_file()


@pytest.mark.parametrize(
    ("environment", "download", "downloads"),
    [
        ({"CI": "true"}, None, False),
        ({"HF_HUB_OFFLINE": "1"}, None, False),
        ({"MOBILESAMV2_DOWNLOAD": "0"}, None, False),
        ({}, False, False),
        ({"CI": "false"}, None, True),
        ({"CI": "true", "MOBILESAMV2_DOWNLOAD": "1"}, None, True),
        ({"MOBILESAMV2_DOWNLOAD": "0"}, True, True),
    ],
)
def test_the_argument_comes_before_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], download: bool | None, downloads: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if downloads:
        load_pretrained("micro_conv", download=download)
    else:
        with pytest.raises(FileNotFoundError, match=r"micro\.pt.*mobilesamv2 download micro\.pt.*network: mini_conv"):
            load_pretrained("micro_conv", download=download)
    assert len(server.requested) == downloads


def test_a_setting_that_is_neither_0_nor_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILESAMV2_DOWNLOAD", "yes")
    with pytest.raises(ValueError, match="MOBILESAMV2_DOWNLOAD must be 0 or 1, got 'yes'"):
        download_setting()


def test_without_a_network_the_message_says_what_works(server: Server) -> None:
    server.missing = True
    with pytest.raises(
        ConnectionError, match=r"HTTP status 404.* put it at .*micro\.pt\. Without a network: mini_conv"
    ):
        load_pretrained("micro_conv")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "downloads"), [("", True), ("\n", True), ("y\n", True), ("n\n", False)])
def test_a_terminal_is_asked(
    server: Server, photo_file: Path, monkeypatch: pytest.MonkeyPatch, answer: str, downloads: bool
) -> None:
    said = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", said)
    command = ["segment", str(photo_file), "-o", "out", *FAST, "--model", "micro_conv"]
    if downloads and answer:
        main(command)
    else:
        with pytest.raises(SystemExit, match=r"error: There is no weight file micro\.pt in weights, "):
            main(command)
    assert "There is no micro.pt yet: " in said.getvalue()
    assert ", Apache-2.0, from http://127.0.0.1" in said.getvalue()
    assert len(server.requested) == (downloads and bool(answer))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["segment", "export", "app"])
def test_elsewhere_the_commands_download_only_when_told_to(
    server: Server, photo_file: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("mobilesamv2.app.page.serve", lambda *given: None)
    given = {
        "segment": ["segment", str(photo_file), "-o", "out", *FAST, "--model", "micro_conv"],
        "export": ["export", "micro_conv", "-o", "out", "--no-check"],
        "app": ["app", "--model", "micro_conv"],
    }[command]
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(SystemExit, match=r"error: There is no weight file micro\.pt .*mobilesamv2 download micro\.pt"):
        main(given)
    assert not server.requested
    main([*given, "--download"])
    assert len(server.requested) == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["segment", "app"])
def test_a_checkpoint_takes_the_place_of_the_published_file(
    photo_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("mobilesamv2.app.page.serve", lambda *given: None)
    monkeypatch.chdir(tmp_path)
    sam = build_sam("micro_conv")
    save_weights(sam, tmp_path / "mine.safetensors")
    torch.save(sam.state_dict(), tmp_path / "mine.pt")
    options = ["segment", str(photo_file), "-o", "out", *FAST[2:]] if command == "segment" else ["app"]
    main([*options, "--checkpoint", "mine.safetensors"])
    main([*options, "--model", "micro_conv", "--checkpoint", "mine.pt"])
    with pytest.raises(
        SystemExit, match=r"error: The file name mine\.pt does not .* --model NAME --checkpoint mine\.pt"
    ):
        main([*options, "--checkpoint", "mine.pt"])
    with pytest.raises(SystemExit, match=r"error: mine\.pt does not fit mini: "):
        main([*options, "--model", "mini", "--checkpoint", "mine.pt"])
    with pytest.raises(SystemExit, match=r"error: --model must name the model of 2 weight files, got none"):
        main([*options, "--checkpoint", "mine.pt", "--checkpoint", "mine.pt"])
